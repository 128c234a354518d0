"""The page that `results_link` opens, in a real browser in front of a real MLflow server, on a store that the real
sink has written."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from models import Value
from orchestrator.home import StudyFiles
from orchestrator.testing import tiny_study
from orchestrator.tracking import open_client
from orchestrator.views import results_link
from tests.orchestrator.test_tracking import Painter, facts, paint, ship
from trials.reports import State

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore"),  # MLflow's client leaves connections to the collector
]

TRAIN = {"steps": 300, "batch_size": 8, "log_every": 10}
LAST_STEP = 300
FEW_ARMS: list[dict[str, Value]] = [
    {"lr": 2e-4, "beta1": 0.5},
    {"lr": 2e-3, "beta1": 0.0},
    {"lr": 1e-3, "beta1": 0.9},
]
HOSTILE = "Learning *rates* <img src=x onerror=alert(1)> | [here](javascript:alert(2)) & more_of_it"
TIMEOUT_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A server with two studies: `few` of 3 arms x 2 seeds, one of them pruned, and `many` of 24 arms."""

    few: str
    many: str
    base_url: str
    client: MlflowClient
    few_id: str
    study_run: str


@pytest.fixture(scope="module")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium or Chrome on the PATH")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    root = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAN_SWEEP_HOME", str(root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        few_id, many_id = log_few(root / "studies"), log_many(root / "studies")
        client = open_client()
    (study,) = client.search_runs([few_id], "tags.`gan_sweep.kind` = 'study'")
    with mlflow_server(root / "mlflow") as base_url:
        few, many = results_link(base_url, few_id), results_link(base_url, many_id)
        yield Store(
            few=few, many=many, base_url=base_url, client=client, few_id=few_id, study_run=study.info.run_id
        )


def log_few(root: Path) -> str:
    space = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "beta1": {"low": 0.0, "high": 0.9}}
    study = tiny_study(
        name="few", description=HOSTILE, space=space, search={"sampler": "random", "trials": len(FEW_ARMS)},
        train=TRAIN, pictures={"count": 5, "samples": 64},
    )  # fmt: skip
    painter = Painter(
        side=484, ends={5: State.PRUNED}, gallery=("latent/slerp", "walk/smooth", "samples/curated")
    )
    files = paint(study, root, FEW_ARMS, painter, facts(study))
    assert ship(files, study) == 0
    return experiment_id("few")


def log_many(root: Path) -> str:
    choices: list[Value] = [round(1e-4 * 1.3**i, 6) for i in range(24)]
    study = tiny_study(
        name="many", space={"lr": {"choices": choices}}, seeds=[0], train=TRAIN, pictures={"count": 3, "samples": 64}
    )  # fmt: skip
    files: StudyFiles = paint(study, root, [{"lr": lr} for lr in choices], Painter(side=242), facts(study))
    assert ship(files, study) == 0
    return experiment_id("many")


def experiment_id(name: str) -> str:
    found = open_client().get_experiment_by_name(name)
    assert found is not None
    return str(found.experiment_id)


def test_link_shows_the_best_and_last_pictures_of_all_trials_first(
    chromium: str, store: Store, tmp_path: Path
) -> None:
    with browser(chromium, tmp_path / "profile", width=1600, height=2600) as page:
        page.open(store.few)
        wait_until(lambda: page.evaluate(N_PICTURES) >= 3 * 6 - 1, page)
        close_assistant(page)
        page.screenshot(tmp_path / "page.png")
        text = page.text()
        slider = page.evaluate(
            "[...document.querySelectorAll('[role=slider]')].at(-1).getAttribute('aria-valuenow')"
        )

    head = text.split("Pictures: best and last (")[1]
    best_and_last, step_by_step = head.split("Pictures step by step (")
    for i in range(6):
        assert best_and_last.count(f"{i:03d} lr=") == 2, "a picture of every trial under best and under last"
    assert "No image logged at this step" not in best_and_last, "a trial that ended early lacks its pictures"
    assert "samples/fixed" in step_by_step
    assert slider == str(LAST_STEP)
    assert "study few" not in text, "the parent run is in the way"
    assert "Group by" in text
    assert "Evaluation runs" not in text, "this is the page for language-model applications"


def test_charts_follow_and_the_rest_is_folded(chromium: str, store: Store, tmp_path: Path) -> None:
    with browser(chromium, tmp_path / "profile", width=1600, height=4400) as page:
        page.open(store.few)
        wait_until(lambda: page.evaluate(N_PLOTS) >= 12 and "Parallel Coordinates" in page.text(), page)
        close_assistant(page)
        page.screenshot(tmp_path / "page.png")
        text = page.text()

    sections = ["Pictures: best and last (2)", "Pictures step by step (1)", "Objective and evaluations (5)",
                "Losses (2)", "Discriminator (2)", "Search (4)", "Differences (1)", "Gallery (3)"]  # fmt: skip
    places = [text.find(section) for section in sections]
    assert -1 not in places, [section for section, place in zip(sections, places, strict=True) if place < 0]
    assert places == sorted(places)
    for chart in ("best/fd", "eval/fd", "eval/kid", "eval/precision vs eval/recall", "eval/coverage", "train/g_loss",
                  "train/d_loss_mean", "train/d_acc", "train/real_score vs train/fake_score",
                  "hp/log10_lr"):  # fmt: skip
        assert chart in text
    assert "class_tv" not in text, "nothing was classified"
    assert "train/grad_norm_g" not in text, "the section of the remaining metrics is not folded"
    assert "latent/slerp" not in text, "the gallery is not folded"


def test_with_many_trials_the_page_shows_the_best_ones(chromium: str, store: Store, tmp_path: Path) -> None:
    with browser(chromium, tmp_path / "profile", width=1600, height=5200) as page:
        page.open(store.many)
        wait_until(lambda: page.evaluate(N_PICTURES) >= 30 and page.evaluate(N_PLOTS) >= 8, page)
        close_assistant(page)
        page.screenshot(tmp_path / "page.png")
        text = page.text()

    trials = store.client.search_runs([experiment_of(store, "many")], "tags.`gan_sweep.kind` = 'trial'")
    ranked = sorted(trials, key=lambda run: run.data.metrics["best/fd"])
    pictures = text.split("Pictures: best and last (")[1].split("Pictures step by step (")[0]
    shown = [run for run in ranked if str(run.info.run_name) in pictures]
    assert shown == ranked[:10], "MLflow draws the pictures of ten runs"


def test_notes_show_the_table_and_a_picture_and_nothing_in_them_acts(
    chromium: str, store: Store, tmp_path: Path
) -> None:
    address = (
        f"{store.base_url}/#/experiments/{store.few_id}/runs/{store.study_run}?workflowType=machine_learning"
    )
    with browser(chromium, tmp_path / "profile", width=1600, height=1400) as page:
        page.open(address)
        wait_until(lambda: "Floor of eval/fd" in page.text(), page)
        page.evaluate(
            "[...document.querySelectorAll('button')].find(b => b.innerText == 'Show more').click()"
        )
        wait_until(lambda: page.evaluate(N_NOTE_PICTURES) == 1, page)
        close_assistant(page)
        page.screenshot(tmp_path / "page.png")
        text = page.text()
        links = page.evaluate("[...document.querySelectorAll('td a')].map(a => a.getAttribute('href'))")
        acting = page.evaluate("document.querySelectorAll('img[src=x], a[href^=javascript]').length")

    assert HOSTILE in text
    assert acting == 0
    wanted = f"/experiments/{store.few_id}/runs/"
    assert len([link for link in links if link and wanted in link]) >= len(FEW_ARMS)


def test_models_tab_has_the_best_generator(chromium: str, store: Store, tmp_path: Path) -> None:
    with browser(chromium, tmp_path / "profile", width=1600, height=900) as page:
        page.open(f"{store.base_url}/#/experiments/{store.few_id}/models?workflowType=machine_learning")
        wait_until(lambda: "generator-" in page.text(), page)
        close_assistant(page)
        page.screenshot(tmp_path / "page.png")
        assert "eval/fd" in page.text()


def experiment_of(store: Store, name: str) -> str:
    found = store.client.get_experiment_by_name(name)
    assert found is not None
    return str(found.experiment_id)


N_NOTE_PICTURES = (
    "[...document.querySelectorAll('img')].filter(i => i.src.includes('best.png') && i.naturalWidth).length"
)
N_PICTURES = "[...document.querySelectorAll('img[src*=get-artifact]')].filter(i => i.naturalWidth).length"
N_PLOTS = "document.querySelectorAll('.js-plotly-plot').length"


def close_assistant(page: Page) -> None:
    """MLflow's assistant opens by itself in a new browser and takes a quarter of the page."""
    page.evaluate("document.querySelector('[aria-label=Close]')?.click()")
    time.sleep(1)  # the charts find their new sizes, for the screenshot


def wait_until(condition: Callable[[], bool], page: Page) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"the page never got there; it says: {page.text()}")
        time.sleep(0.25)


# The server and the browser


@contextmanager
def mlflow_server(directory: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hosts = [f"localhost:{port}", f"127.0.0.1:{port}"]
    command = [
        sys.executable, "-m", "mlflow", "server",
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{directory / 'mlflow.db'}",
        "--artifacts-destination", str(directory / "artifacts"),
        "--allowed-hosts", ",".join(hosts),
        "--cors-allowed-origins", ",".join(f"http://{host}" for host in hosts),
    ]  # fmt: skip
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = directory / "server.log"
    with own_process(command, log, env={**os.environ, **quiet}) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while not is_healthy(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail("the MLflow server did not start:\n" + log.read_text())
            time.sleep(0.25)
        yield f"http://127.0.0.1:{port}"


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


class Page:
    """One tab, driven by DevTools messages that end in a zero byte."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._unread = b""
        self._last_id = 0
        self._session: dict[str, str] = {}
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        result = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        return result["result"].get("value")

    def text(self) -> str:
        """What a reader sees, in one line."""
        return " ".join((self.evaluate("document.body?.innerText") or "").split())

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **params: object) -> Any:
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params, **self._session}
        self._pipe.sendall(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last_id:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> Any:
        while b"\0" not in self._unread:
            part = self._pipe.recv(1 << 16)
            assert part, "Chromium ended"
            self._unread += part
        message, self._unread = self._unread.split(b"\0", 1)
        return json.loads(message)


LAUNCH = """
import os, sys
for descriptor in (3, 4):
    os.dup2(int(sys.argv[1]), descriptor)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Chromium reads DevTools messages from file descriptor 3 and writes them to 4; both become our socket."""


@contextmanager
def browser(binary: str, profile: Path, *, width: int, height: int) -> Iterator[Page]:
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT_S)
    mouse = "primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"
    command = [
        sys.executable, "-c", LAUNCH, str(theirs.fileno()), binary,
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={profile}",
        f"--window-size={width},{height}", f"--blink-settings={mouse}",
    ]  # fmt: skip
    log = profile.with_suffix(".log")
    with ours, own_process(command, log, pass_fds=[theirs.fileno()]):
        theirs.close()
        yield Page(ours)


@contextmanager
def own_process(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process in its own group; the whole group ends with the context."""
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **options
        ) as process,
    ):
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
