"""Webhooks: told once, within seconds, and without their address anywhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from orchestrator import notify as notifying
from orchestrator.errors import UsageError
from orchestrator.leaderboard import leaderboard
from orchestrator.notify import masked, notify, payload, webhook
from orchestrator.status import load_definition, load_records
from tests.orchestrator.fabricated import TWO_RATES, fabricate

SECRET = "T0SECRET"


class Receiver(BaseHTTPRequestHandler):
    """Answers /200, /500 and so on with that number; /silent never."""

    got: list[tuple[str, dict[str, Any]]]
    release = threading.Event()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "silent" in self.path:
            self.release.wait(10)
            return
        self.got.append((self.headers["Content-Type"], json.loads(body)))
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a receiver on loopback."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Receiver.got, Receiver.release = [], threading.Event()
    httpd = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    Receiver.release.set()
    httpd.shutdown()
    thread.join(5)
    httpd.server_close()


def content(**of: Any) -> dict[str, object]:
    files = fabricate(**of)
    study, records = load_definition(files), load_records(files)
    standings = leaderboard(records, *study.objectives)
    return payload(study.name, records, standings, study.objective.metric)


def test_the_end_of_a_study_arrives_as_json(server: str) -> None:
    sent = content(trials=[*TWO_RATES, ({"lr": 1e-5}, ["failed", "diverged", 0.9])], ended="failed")
    assert notify(f"{server}/200/{SECRET}", sent) is None
    ((kind, got),) = Receiver.got
    assert kind == "application/json"
    assert got == sent
    assert (got["state"], got["done"], got["failed"], got["diverged"], got["trials"]) == (
        "failed",
        7,
        1,
        1,
        9,
    )
    assert (got["best_arm"], got["best"]) == ("lr=0.001", pytest.approx(0.3))
    assert got["text"] == (
        "study made: failed, 7 of 9 trials completed, 1 failed, 1 diverged, best eval/fd 0.3 (lr=0.001)"
    )


def test_a_study_without_results_has_no_best() -> None:
    sent = content(trials=[({"lr": 1e-3}, ["failed"])], ended="failed")
    assert (sent["best"], sent["best_arm"]) == (None, None)
    json.dumps(sent, allow_nan=False)


@pytest.mark.parametrize(("path", "words"), [("/500/", "answered 500"), ("/404/", "answered 404")])
def test_a_refusal_is_one_line_without_the_address(server: str, path: str, words: str) -> None:
    said = notify(server + path + SECRET, {"text": "x"})
    assert said is not None
    assert words in said
    assert len(said.splitlines()) == 1
    assert SECRET not in said


def test_nobody_waits_for_a_service_that_is_silent(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifying, "TIMEOUT_S", 0.2)
    said = notify(f"{server}/silent/{SECRET}", {"text": "x"})
    assert said is not None
    assert "the webhook at http://127.0.0.1:" in said
    assert SECRET not in said


@pytest.mark.parametrize(
    "url", [f"http://127.0.0.1:9/{SECRET}", f"http://[::1/{SECRET}", f"file:///{SECRET}"]
)  # fmt: skip
def test_a_service_that_is_not_there_is_one_line(url: str) -> None:
    said = notify(url, {"text": "x"})
    assert said is not None
    assert len(said.splitlines()) == 1
    assert SECRET not in said


def test_the_address_comes_from_the_option_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAN_SWEEP_WEBHOOK", raising=False)
    assert webhook(None) is None
    monkeypatch.setenv("GAN_SWEEP_WEBHOOK", "https://a.example/x")
    assert webhook(None) == "https://a.example/x"
    assert webhook("https://b.example/x") == "https://b.example/x"
    monkeypatch.setenv("GAN_SWEEP_WEBHOOK", "")
    assert webhook(None) is None


@pytest.mark.parametrize(
    "bad",
    [
        f"file:///{SECRET}",
        f"hooks.example/{SECRET}",
        f"https:///{SECRET}",
        f"http://[{SECRET}",
        f"https://a/{SECRET}\n",
    ],
)
def test_what_is_no_address_is_refused_without_being_shown(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for given_as, name in ((bad, "--webhook"), (None, "GAN_SWEEP_WEBHOOK")):
        monkeypatch.setenv("GAN_SWEEP_WEBHOOK", bad)
        with pytest.raises(UsageError, match=name) as refused:
            webhook(given_as)
        assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "url", [f"https://{SECRET}:x@h.example/a", f"https://h.example/{SECRET}?t={SECRET}#{SECRET}", f"http://[{SECRET}"]
)  # fmt: skip
def test_only_the_host_is_shown(url: str) -> None:
    assert SECRET not in masked(url)
