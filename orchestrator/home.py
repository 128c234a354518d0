"""Where gan-sweep keeps things, and what lies where inside a study.

HOME/studies/NAME/study.json       the frozen definition        HOME/datasets/   prepared arrays
HOME/studies/NAME/study.yaml       the file as submitted        HOME/data/       downloaded files
HOME/studies/NAME/journal.jsonl    everything that happened     HOME/mlflow/     SQLite store and artifacts
HOME/studies/NAME/trials/KEY/      checkpoints and pictures     HOME/features/   classifiers, features of real images
HOME/studies/NAME/pictures/        plots of the whole study     HOME/ray/        Ray's token
HOME/studies/NAME/submits/         records of how it was run    HOME/turns/      studies that run or wait for cores
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from orchestrator.errors import UsageError


def home() -> Path:
    """GAN_SWEEP_HOME, or the platform's directory for a user's data."""
    chosen = os.environ.get("GAN_SWEEP_HOME")
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_data_dir("gan-sweep"))


def absolute_uri(uri: str) -> str:
    """A store's address with its path made absolute: `sqlite:///x.db` lies in the current directory."""
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        return prefix + str(Path(uri.removeprefix(prefix)).absolute())
    return uri


@dataclass(frozen=True, slots=True)
class StudyFiles:
    """The paths of one study."""

    root: Path

    @classmethod
    def of(cls, name: str) -> StudyFiles:
        """The study `name` in gan-sweep's home; creates nothing."""
        return cls(home() / "studies" / name)

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def definition(self) -> Path:
        return self.root / "study.json"

    @property
    def source(self) -> Path:
        return self.root / "study.yaml"

    @property
    def journal(self) -> Path:
        return self.root / "journal.jsonl"

    @property
    def shipped(self) -> Path:
        return self.root / "shipped.json"

    @property
    def optuna(self) -> Path:
        return self.root / "optuna.journal"

    @property
    def origin(self) -> Path:
        """Where the study file lay and with which options it was submitted, to go on without them."""
        return self.root / "origin.json"

    @property
    def extending(self) -> Path:
        """Exists between the change of the definition and that of the journal when a study is extended."""
        return self.root / "extending"

    @property
    def submits(self) -> Path:
        """The record of each submit."""
        return self.root / "submits"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def stop(self) -> Path:
        """Exists while running trials are asked to save a checkpoint and end."""
        return self.root / "stop"

    @property
    def stop_request(self) -> Path:
        """Exists when another process asked the driver to stop."""
        return self.root / "stop_request"

    def stop_of(self, folder: str) -> Path:
        """Exists when one trial was asked to save a checkpoint and end."""
        return self.trial(folder) / "stop"

    @property
    def leaderboard(self) -> Path:
        return self.root / "leaderboard.csv"

    @property
    def pictures(self) -> Path:
        return self.root / "pictures"

    def trial(self, key: str) -> Path:
        return self.root / "trials" / key


def all_studies() -> list[StudyFiles]:
    """Every submitted study, the newest activity first."""
    found = [StudyFiles(path.parent) for path in (home() / "studies").glob("*/study.json")]
    return sorted(found, key=_last_activity, reverse=True)


def _last_activity(files: StudyFiles) -> float:
    return (files.journal if files.journal.exists() else files.definition).stat().st_mtime


def features_directory() -> Path:
    """Where classifiers and the features of real images are kept."""
    return home() / "features"


def data_directory(data_dir: Path | None) -> Path:
    """Where downloaded datasets and folders lie. Raises UsageError when the user names no directory."""
    if data_dir is not None and not data_dir.expanduser().is_dir():
        raise UsageError(f"--data-dir {data_dir} is not a directory; make it first, or correct its name")
    return data_dir.expanduser().absolute() if data_dir else home() / "data"
