"""`config show` names every setting and shows no secret."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.settings import SETTINGS, settings, without_credentials
from tests.orchestrator.invoking import Invoke, invoke

__all__ = ["invoke"]
ROOT = Path(__file__).parents[2]
SECRETS = {
    "MLFLOW_TRACKING_URI": "https://me:hunter2@mlflow.example/x?token=hunter2",
    "GAN_SWEEP_WEBHOOK": "https://hooks.example/hunter2",
    "MLFLOW_TRACKING_USERNAME": "hunter2",
    "MLFLOW_TRACKING_PASSWORD": "hunter2",
    "MLFLOW_TRACKING_TOKEN": "hunter2",
}


def test_secrets_are_masked_and_their_places_named(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for arguments in (("config", "show"), ("config", "show", "--json")):
        code, stdout, stderr = invoke(*arguments)
        assert code == 0
        assert "hunter2" not in stdout + stderr
    assert "mlflow.example" in stdout  # of the last one: a table may be folded
    assert "hooks.example" in stdout


def test_values_say_where_they_come_from(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, private_home: Path
) -> None:
    monkeypatch.delenv("GAN_SWEEP_WEBHOOK", raising=False)
    rows = {row["setting"]: row for row in json.loads(invoke("config", "show", "--json")[1])}
    assert (rows["GAN_SWEEP_HOME"]["value"], rows["GAN_SWEEP_HOME"]["from"]) == (
        str(private_home),
        "environment",
    )
    assert rows["MLFLOW_TRACKING_URI"]["value"] == f"sqlite:///{private_home}/mlflow/mlflow.db"
    assert rows["MLFLOW_TRACKING_URI"]["from"] == "default"
    assert rows["GAN_SWEEP_WEBHOOK"]["value"] == "none"


def test_every_variable_of_ours_that_the_code_reads_is_a_setting() -> None:
    named = {setting.name for setting in SETTINGS}
    for path in (ROOT / "orchestrator").rglob("*.py"):
        for name in re.findall(r'"((?:GAN_SWEEP|MLFLOW_TRACKING)_[A-Z_]+)"', path.read_text()):
            assert name in named, f"{path.name} reads {name}"


def test_an_address_without_secrets_is_shown_as_it_is() -> None:
    for uri in (
        "sqlite:///x.db",
        "sqlite:////a/b.db",
        "http://127.0.0.1:5000",
        "https://h/a?b=c",
        "databricks",
    ):
        assert without_credentials(uri) == uri


@given(
    user=st.from_regex(r"[a-z0-9%]{1,8}", fullmatch=True),
    word=st.from_regex(r"Q[A-Z0-9%:@]{4,12}Q", fullmatch=True),
)
def test_no_password_is_shown(user: str, word: str) -> None:
    shown = without_credentials(
        f"postgresql://{user}:{word}@db.example:5432/x?password={word.replace('%', '')}"
    )
    assert word not in shown
    assert "db.example:5432/x" in shown
    assert word.replace("%", "") not in shown


def test_settings_are_read_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert {s.name: s.value for s in settings()}["CUDA_VISIBLE_DEVICES"] == "3"
