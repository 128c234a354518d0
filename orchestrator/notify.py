"""Webhooks: a study's end as JSON, posted to an address that is written nowhere.

Services give such addresses out like passwords: no message of ours holds more of one than its host.
"""

from __future__ import annotations

import json
import os
import threading
import urllib.request
from collections.abc import Mapping, Sequence
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from orchestrator.errors import UsageError
from orchestrator.leaderboard import Standing
from orchestrator.records import Records
from trials.reports import State

VARIABLE = "GAN_SWEEP_WEBHOOK"
TIMEOUT_S = 5.0


def webhook(chosen: str | None) -> str | None:
    """The address to notify: `chosen`, or that of GAN_SWEEP_WEBHOOK, or None.

    Raises UsageError, without the address, when it is none.
    """
    url = chosen or os.environ.get(VARIABLE) or None
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()
    except ValueError:
        good = False
    if not good:
        name = "--webhook" if chosen else VARIABLE
        raise UsageError(f"{name} must be an address such as https://hooks.example.org/abc")
    return url


def payload(study: str, records: Records, standings: Sequence[Standing], metric: str) -> dict[str, object]:
    """What is told of a study that ended: plain values, and `text`, the same in words, which chat services show."""
    best = standings[0] if standings and standings[0].mean is not None else None
    done = records.count(State.COMPLETED)
    lost = {state.value: records.count(state) for state in (State.FAILED, State.DIVERGED, State.PRUNED)}
    words = [f"study {study}: {records.state}, {done} of {len(records.trials)} trials completed"]
    words += [f"{n} {state}" for state, n in lost.items() if n]
    if best is not None:
        words.append(f"best {metric} {best.mean:.4g} ({best.arm.label})")
    if records.reason:
        words.append(records.reason)
    return {
        "study": study,
        "state": records.state,
        "reason": records.reason,
        "trials": len(records.trials),
        "done": done,
        **lost,
        "metric": metric,
        "best": best.mean if best else None,
        "best_arm": best.arm.label if best else None,
        "text": ", ".join(words),
    }


def notify(url: str, content: Mapping[str, object]) -> str | None:
    """Post `content` as JSON; returns what went wrong, in one line without the address's secret part, or None.

    Waits at most TIMEOUT_S, and never raises.
    """
    problem: list[str | None] = []
    sender = threading.Thread(target=lambda: problem.append(_post(url, content)), name="webhook", daemon=True)
    sender.start()
    sender.join(TIMEOUT_S)  # a timeout of a socket is one of each of its calls, not of all together
    said = problem[0] if problem else f"no answer within {TIMEOUT_S:g} s"
    return None if said is None else f"the webhook at {masked(url)} was not told: {said}"


def _post(url: str, content: Mapping[str, object]) -> str | None:
    try:
        request = urllib.request.Request(
            url,
            data=json.dumps(content).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "gan-sweep"},
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            return None
    except HTTPError as error:
        error.close()
        return f"it answered {error.code}"
    except URLError as error:
        return f"{type(error.reason).__name__}" if isinstance(error.reason, Exception) else "no connection"
    except Exception as error:  # whatever the network raises: its text may hold the address
        return type(error).__name__


def masked(url: str) -> str:
    """An address as it may be shown: `https://hooks.example.org/***`.

    >>> masked("https://me:word@hooks.example.org:8443/T0/B1?token=x")
    'https://hooks.example.org:8443/***'
    """
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}/***" if host else "***"
    except ValueError:
        return "***"
