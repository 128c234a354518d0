"""The page that `results_link` opens, in a real browser in front of a real MLflow server."""

from __future__ import annotations

import base64
import json
import math
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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from numpy.typing import NDArray

from orchestrator.views import results_link, saved_view_tags

pytestmark = pytest.mark.browser

STEPS = (100, 200, 300)
ARMS = ({"lr": "0.0002", "optimizer": "adam"}, {"lr": "0.002", "optimizer": "sgd"})
SEEDS = (0, 1)
NAMES = [f"trial-{arm:03d} seed {seed}" for arm in range(len(ARMS)) for seed in SEEDS]
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium or Chrome on the PATH")


@pytest.fixture(scope="module")
def page_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The link to a study of two arms with two seeds."""
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as base_url:
        yield results_link(base_url, log_study(MlflowClient(tracking_uri=base_url)))


def test_link_shows_pictures_losses_and_objective_of_all_trials(
    chromium: str, page_url: str, tmp_path: Path
) -> None:
    with browser(chromium, tmp_path / "profile", width=1600, height=1200) as page:
        page.open(page_url)
        wait_until(lambda: page.evaluate(N_PICTURES) == len(NAMES) and page.evaluate(N_PLOTS) >= 3, page)
        close_assistant(page)
        page.screenshot(tmp_path / "page.png")
        text = page.text()
        slider = page.evaluate("document.querySelector('[role=slider]').getAttribute('aria-valuenow')")

    for section in ("Pictures", "Losses and objective", "Discriminator", "Search", "perf"):
        assert f"{section} (" in text
    for chart in ("samples/fixed", "train/g_loss", "train/d_loss_mean", "eval/swd"):
        assert chart in text
    pictures = text.split("Pictures (")[1].split("Losses and objective (")[0]
    assert all(name in pictures for name in NAMES)
    assert "study lr_optimizer" not in text, "the parent run is in the way"
    assert "No image logged at this step" not in text
    assert slider == str(STEPS[-1]), "the last step comes first"
    assert "Group by" in text
    assert "Evaluation runs" not in text, "this is the page for language-model applications"


def test_scores_and_search_follow_below_and_the_rest_is_folded(
    chromium: str, page_url: str, tmp_path: Path
) -> None:
    with browser(chromium, tmp_path / "profile", width=1400, height=2400) as page:
        page.open(page_url)
        wait_until(lambda: page.evaluate(N_PLOTS) >= 7 and "Parallel Coordinates" in page.text(), page)
        close_assistant(page)
        page.screenshot(tmp_path / "page.png")
        text = page.text()

    for chart in ("train/d_acc", "train/real_score vs train/fake_score", "perf/images_per_s"):
        assert chart in text
    assert "train (" in text
    assert "train/grad_norm_g" not in text, "the section of the remaining metrics is not folded"


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


# The study


def log_study(client: MlflowClient) -> str:
    """Log a parent run and its trials as the tracker does; returns the experiment's id."""
    experiment = client.create_experiment("lr_optimizer")
    parent = client.create_run(
        experiment, run_name="study lr_optimizer", tags={"gan_sweep.kind": "study"}
    ).info.run_id
    names = iter(NAMES)
    for number, arm in enumerate(ARMS):
        for seed in SEEDS:
            tags = {
                "mlflow.parentRunId": parent,
                "gan_sweep.kind": "trial",
                "gan_sweep.state": "completed",
                "gan_sweep.arm": str(number),
            }
            run = client.create_run(experiment, run_name=next(names), tags=tags).info.run_id
            params = [Param(name, value) for name, value in {**arm, "seed": str(seed)}.items()]
            client.log_batch(run, metrics(number, seed), params)
            for step in STEPS:
                client.log_image(run, sample_grid(step, number, seed), key="samples/fixed", step=step)
            client.set_terminated(run)
    client.set_terminated(parent)
    tags = saved_view_tags(
        objective="eval/swd",
        mode="min",
        searched=["lr", "optimizer"],
        image_key="samples/fixed",
        image_steps=STEPS,
        created_at_ms=1_700_000_000_000,
        n_trials=len(NAMES),
    )
    for key, tag in tags.items():
        client.set_experiment_tag(experiment, key, tag)
    return experiment


def metrics(arm: int, seed: int) -> list[Metric]:
    """Curves with the shape of a training that settles, more slowly in arm 1."""
    rng = np.random.default_rng(seed)
    rows: list[Metric] = []
    for step in range(20, STEPS[-1] + 1, 20):
        early = math.exp(-step / (80 + 80 * arm))
        values = {
            "train/d_loss_mean": 0.69 - 0.4 * early,
            "train/g_loss": 0.8 + 0.3 * arm + 1.5 * early,
            "train/d_acc": 0.6 + 0.3 * early,
            "train/real_score": 0.55 + 0.3 * early,
            "train/fake_score": 0.45 - 0.3 * early,
            "train/grad_norm_g": 1.0,
            "train/epoch": step / 50,
            "perf/images_per_s": 5000.0,
        }
        if step in STEPS:
            values["eval/swd"] = 0.1 + 0.05 * arm + 0.3 * early
        rows += [Metric(key, value + 0.02 * rng.normal(), 0, step) for key, value in values.items()]
    return rows


def sample_grid(step: int, arm: int, seed: int) -> NDArray[np.uint8]:
    """Eight by eight rings with noise that fades during training, (482, 482, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:56, :56]
    sheet = np.full((482, 482, 3), 128, dtype=np.uint8)
    for i in range(64):
        ring = 255 * np.exp(-(((np.hypot(y - 28, x - 28) - 10 - 2 * (i % 5)) / 4) ** 2))
        noisy = ring + rng.normal(size=ring.shape) * 200 * math.exp(-step / (100 + 100 * arm))
        top, left = 2 + 60 * (i // 8), 2 + 60 * (i % 8)
        sheet[top : top + 56, left : left + 56] = noisy.clip(0, 255).astype(np.uint8)[..., None]
    return sheet


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
