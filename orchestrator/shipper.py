"""Ships the journal to a tracking store, off the driver's loop.

The journal is the truth and the store a copy of it: a thread reads events from the last acknowledged byte, sends
them, and only then moves the mark. After a crash or an outage it sends again, so a sink must make sending twice
the same as sending once.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Sequence
from itertools import islice
from typing import Protocol

from orchestrator.home import StudyFiles
from orchestrator.journal import Event, read
from orchestrator.records import Records

POLL_S = 0.5
CHUNK_EVENTS = 200
BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
LAST_PAUSE_S = 2.0
"""The longest pause while somebody waits for the end."""


class Sink(Protocol):
    """A tracking store. Its methods may raise anything: the shipper waits and sends again. One thread calls it."""

    name: str
    """Tells stores apart, once open: what another store acknowledged counts for nothing here."""

    def open(self) -> None:
        """Connect; called again after a failure, and must be cheap when connected."""

    def send(self, event: Event, records: Records) -> None:
        """Send or buffer an event that may have been sent before. `records` include it."""

    def flush(self) -> None:
        """Send what is buffered; on return everything sent so far has arrived."""

    def recover(self) -> None:
        """After a failure: drop what is buffered, and trust nothing about what arrived."""


class Shipper:
    """A thread that sends one study's journal until it is closed."""

    def __init__(self, files: StudyFiles, sink: Sink, *, backoff_s: Sequence[float] = BACKOFF_S) -> None:
        self._files, self._sink, self._backoff_s = files, sink, backoff_s
        self._records = Records()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="shipper", daemon=True)
        self._acknowledged = 0
        self._applied = 0
        self._marked = False
        self._chunk = CHUNK_EVENTS
        self.error: str | None = None
        """Why the last attempt to send failed; None while sending works."""

    def start(self) -> None:
        """Go on after what this store acknowledged to an earlier process."""
        self._thread.start()

    def close(self, patience_s: float = 30.0) -> int:
        """Send what is left, and stop. Gives up after `patience_s` of failures without progress.

        Returns how many events are still to be sent: the journal keeps them, and the next submit of the study
        sends them.
        """
        self._closing.set()
        progress, since = self._acknowledged, time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.2)
            if self._acknowledged != progress:
                progress, since = self._acknowledged, time.monotonic()
            elif self.error and time.monotonic() - since > patience_s:
                break
        return sum(1 for _ in read(self._files.journal, self._acknowledged))

    def _loop(self) -> None:
        failures = 0
        while True:
            closing = self._closing.is_set()  # before reading: what was written before close() is read
            try:
                sent = self._send_chunk()
            except Exception as error:  # whatever the store or the network raise
                self.error = f"{type(error).__name__}: {error}".splitlines()[0]
                self._sink.recover()
                self._chunk = max(
                    1, self._chunk // 4
                )  # a shaky connection gets less at a time, so that it gets on
                pause = self._backoff_s[min(failures, len(self._backoff_s) - 1)]
                failures += 1
                if closing:
                    time.sleep(min(pause, LAST_PAUSE_S))
                else:
                    self._closing.wait(pause)
                continue
            failures, self.error = 0, None
            self._chunk = min(CHUNK_EVENTS, 2 * self._chunk)
            if not sent:
                if closing:
                    return
                self._closing.wait(POLL_S)

    def _send_chunk(self) -> bool:
        """Send the next events; False when there are none. Moves the mark only when all of them arrived."""
        self._sink.open()
        if not self._marked:
            self._load_mark()
            self._marked = True
        chunk = list(islice(read(self._files.journal, self._acknowledged), self._chunk))
        for event, offset in chunk:
            if offset > self._applied:  # a chunk that failed half-way is read again but not counted twice
                self._records.apply(event)
                self._applied = offset
            self._sink.send(event, self._records)
        self._sink.flush()
        if chunk:
            self._acknowledged = chunk[-1][1]
            self._save_mark()
        return bool(chunk)

    def _load_mark(self) -> None:
        try:
            mark = json.loads(self._files.shipped.read_text())
        except (FileNotFoundError, ValueError):
            return
        if mark["store"] != self._sink.name:
            return
        for event, offset in read(self._files.journal):
            if offset > mark["offset"]:
                break
            self._records.apply(event)
            self._acknowledged = self._applied = offset

    def _save_mark(self) -> None:
        temporary = self._files.shipped.with_suffix(".tmp")
        temporary.write_text(json.dumps({"store": self._sink.name, "offset": self._acknowledged}))
        os.replace(temporary, self._files.shipped)
