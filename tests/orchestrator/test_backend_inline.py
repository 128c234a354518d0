"""The in-process backend against the contract."""

from __future__ import annotations

from orchestrator.backends.inline import InlineBackend
from orchestrator.testing import BackendContract


class TestInlineBackend(BackendContract):
    def make_backend(self) -> InlineBackend:
        return InlineBackend()
