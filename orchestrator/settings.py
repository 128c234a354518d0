"""What gan-sweep reads from the environment: every setting, its value, and where that comes from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from orchestrator._words import is_secret
from orchestrator.home import home
from orchestrator.notify import VARIABLE as WEBHOOK
from orchestrator.notify import masked as masked_webhook

HIDDEN = "***"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """An environment variable. `default`: what holds without it. `show`: its value without secrets."""

    name: str
    default: Callable[[], str]
    what: str
    show: Callable[[str], str] = str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A setting as it holds now. `source`: environment or default."""

    name: str
    value: str
    source: str
    what: str


def without_credentials(uri: str) -> str:
    """An address with name, password and what looks like a token replaced.

    >>> without_credentials("postgresql://me:word@db/mlflow?sslpassword=x&sslmode=require")
    'postgresql://***@db/mlflow?sslpassword=***&sslmode=require'
    """
    try:
        parts = urlsplit(uri)
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return HIDDEN
    login, at, host = parts.netloc.rpartition("@")
    shown = [(name, HIDDEN if is_secret(name) else value) for name, value in query]
    replaced = parts._replace(netloc=f"{HIDDEN}@{host}" if at else parts.netloc)
    if shown != query:
        replaced = replaced._replace(query=urlencode(shown, safe="*"))
    # urlunsplit drops the empty authority of sqlite:///x.db
    return urlunsplit(replaced) if login or shown != query else uri


def _hide(_: str) -> str:
    return HIDDEN


SETTINGS = (
    Setting(
        name="GAN_SWEEP_HOME", default=lambda: str(home()),
        what="where studies, datasets and MLflow's store are kept",
    ),
    Setting(
        name="MLFLOW_TRACKING_URI", default=lambda: f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}",
        what="the MLflow store or server that studies are written to", show=without_credentials,
    ),
    Setting(
        name=WEBHOOK, default=lambda: "none", what="an address that is told when a study ends",
        show=masked_webhook,
    ),
    Setting(
        name="CUDA_VISIBLE_DEVICES", default=lambda: "all", what="the GPUs that trials may use",
    ),
    Setting(
        name="MLFLOW_TRACKING_USERNAME", default=lambda: "none", what="the name at MLflow's server", show=_hide,
    ),
    Setting(
        name="MLFLOW_TRACKING_PASSWORD", default=lambda: "none", what="the password at MLflow's server",
        show=_hide,
    ),
    Setting(
        name="MLFLOW_TRACKING_TOKEN", default=lambda: "none", what="the token at MLflow's server", show=_hide,
    ),
    Setting(
        name="MLFLOW_HTTP_REQUEST_TIMEOUT", default=lambda: "10",
        what="seconds to wait for MLflow's server to answer",
    ),
    Setting(
        name="MLFLOW_HTTP_REQUEST_MAX_RETRIES", default=lambda: "0",
        what="retries of MLflow's own; gan-sweep sends again itself",
    ),
    Setting(
        name="RAY_AUTH_TOKEN_PATH", default=lambda: str(home() / "ray" / "auth_token"),
        what="the file with the token of Ray's own processes",
    ),
    Setting(name="NO_COLOR", default=lambda: "not set", what="anything: no colours and no other escapes"),
)  # fmt: skip


def settings() -> list[Found]:
    """Every setting as it holds now; secrets are masked."""
    return [_found(setting) for setting in SETTINGS]


def _found(setting: Setting) -> Found:
    value = os.environ.get(setting.name)
    if value:
        return Found(name=setting.name, value=setting.show(value), source="environment", what=setting.what)
    return Found(name=setting.name, value=setting.default(), source="default", what=setting.what)
