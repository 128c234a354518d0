"""A study in the background is run by our own code, from any directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.detach import detach


def test_a_foreign_package_in_the_current_directory_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("models", "trials", "orchestrator"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('foreign')")
    monkeypatch.chdir(tmp_path)
    started = detach("any", ["models", "--json", "--detach"])
    assert started.code == 0, started.log.read_text()
    assert '"obs_mlp"' in started.log.read_text()


def test_a_command_that_ends_before_its_study_begins_gives_its_code_and_its_words() -> None:
    started = detach("any", ["status", "nosuch"])
    assert started.code == 2
    assert "no study was submitted yet" in started.log.read_text()
