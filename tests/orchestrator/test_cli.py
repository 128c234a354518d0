"""The command line as a user meets it: output, JSON, errors and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import models
from orchestrator.home import StudyFiles
from orchestrator.status import load_records
from orchestrator.testing import tiny_study
from tests.orchestrator.invoking import Invoke, invoke

__all__ = ["invoke"]

TINY = """\
version: 1
name: tiny
model: obs_mlp
dataset: digits
seeds: [0, 1]
train: {steps: 12, batch_size: 8, log_every: 2}
fixed: {width: 8, latent_dim: 4}
space: {lr: {choices: [1e-3, 1e-4]}}
pictures: {count: 2, samples: 4, gallery: false}
evaluate: {samples: 16, features: random}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def everything_below(path: Path) -> set[Path]:
    return set(path.rglob("*"))


def test_a_valid_study_is_counted(invoke: Invoke, tiny: Path) -> None:
    assert invoke("validate", tiny) == (0, f"{tiny} is valid: 2 arms x 2 seeds\n", "")
    assert json.loads(invoke("validate", tiny, "--json")[1]) == {
        "valid": True, "study": "tiny", "arms": 2, "trials": 4,
    }  # fmt: skip


@pytest.mark.parametrize("command", ["validate", "plan", "submit"])
def test_an_invalid_study_names_every_problem_and_creates_nothing(
    command: str, invoke: Invoke, tiny: Path, private_home: Path
) -> None:
    tiny.write_text(TINY.replace("obs_mlp", "obs_mpl").replace("steps: 12", "epocs: 12"))
    code, stdout, stderr = invoke(command, tiny)
    assert (code, stdout) == (2, "")
    assert f"{tiny}:3:8: model: unknown model 'obs_mpl'; did you mean obs_mlp?" in stderr
    assert f"{tiny}:6:9: train.epocs: unknown key 'epocs', did you mean epochs?" in stderr
    assert "Traceback" not in stderr
    assert not private_home.exists()


def test_problems_are_json_for_those_who_ask_for_json(invoke: Invoke, tiny: Path) -> None:
    tiny.write_text(TINY.replace("steps: 12", "lr: 12"))
    code, stdout, _ = invoke("validate", tiny, "--json")
    (line,) = json.loads(stdout)["problems"]
    assert code == 2
    assert "lr is a hyperparameter; put it under fixed, or under space to compare values" in line


def test_the_version_is_printed(invoke: Invoke) -> None:
    assert invoke("--version") == (0, "gan-sweep 0.1.0\n", "")


def test_a_reader_that_goes_away_is_no_failed_trial(tiny: Path) -> None:
    script = "from orchestrator.cli import main; main()"
    piped = f"{sys.executable} -c '{script}' models --json | true; exit ${{PIPESTATUS[0]}}"
    assert subprocess.run(["bash", "-c", piped], check=False).returncode in (0, 141)


def test_a_file_that_does_not_exist_is_one_line(invoke: Invoke, tmp_path: Path) -> None:
    code, _, stderr = invoke("submit", tmp_path / "absent.yaml")
    assert code == 2
    assert len(stderr.strip().splitlines()) == 1
    assert "absent.yaml" in stderr


def test_a_webhook_that_is_no_address_creates_nothing_and_is_not_repeated(
    invoke: Invoke, tiny: Path, private_home: Path
) -> None:
    code, stdout, stderr = invoke("submit", tiny, "--webhook", "ftp://host/secret")
    assert code == 2
    assert "--webhook must be an address" in stderr
    assert "secret" not in stdout + stderr
    assert not private_home.exists()


# SQLAlchemy and MLflow 3.17 leave SQLite connections to the collector (seen 2026-11).
@pytest.mark.filterwarnings("ignore")
def test_a_submitted_study_is_copied_with_the_changes_that_made_it(
    invoke: Invoke, tiny: Path, private_home: Path
) -> None:
    assert invoke("submit", tiny, "--backend", "inline", "--set", "train.steps=8", "--no-wait")[0] == 0
    assert invoke("extend", "tiny", "--seeds", "0-2", "--no-wait")[0] == 0
    planned = json.loads(invoke("submit", "tiny", "--dry-run", "--set", "name=copy", "--json")[1])
    assert (planned["study"], planned["steps"], planned["seeds"]) == ("copy", [8], [0, 1, 2])
    code, _, stderr = invoke("submit", "tiny", "--dry-run", "--set", "train.steps=0")
    assert code == 2
    assert "train.steps" in stderr


def test_the_plan_says_what_would_run(invoke: Invoke, tiny: Path, private_home: Path) -> None:
    code, stdout, _ = invoke("plan", tiny)
    assert code == 0
    assert "lr=0.0001" in stdout
    plan = json.loads(invoke("submit", tiny, "--dry-run", "--json")[1])
    assert (plan["n_arms"], plan["seeds"], plan["n_trials"], plan["steps"]) == (2, [0, 1], 4, [12])
    assert plan["arms"] == ["lr=0.001", "lr=0.0001"]
    assert not private_home.exists()


@pytest.mark.parametrize(
    ("resources", "words"),
    [("gpu: 2", "a trial needs 2 GPUs, this machine has 0"), ("cpu: 1000", "a trial needs 1000 CPU cores")],
)
def test_resources_that_this_machine_lacks_are_named_before_anything_is_created(
    resources: str,
    words: str,
    invoke: Invoke,
    tiny: Path,
    private_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    tiny.write_text(TINY + f"resources: {{{resources}}}\n")
    for command in ("plan", "submit"):
        code, _, stderr = invoke(command, tiny)
        assert code == 2
        assert words in stderr
    assert not private_home.exists()


def test_an_unknown_study_lists_those_there_are(invoke: Invoke) -> None:
    assert invoke("status")[0] == 2
    assert "no study was submitted yet" in invoke("status")[2]


def test_models_and_datasets_are_listed(invoke: Invoke) -> None:
    rows = json.loads(invoke("models", "--json")[1])
    assert [row["model"] for row in rows] == list(models.names())
    described = json.loads(invoke("models", "obs_mlp", "--json")[1])
    params = {row["hyperparameter"]: row for row in described["hyperparameters"]}
    assert params["lr"]["default"] == 2e-4
    assert params["lr_d"]["default"] == "= lr"
    page = invoke("models", "obs_mlp", "--image", "1x8x8", "--set", "width=4")[1]
    assert "Linear 64 -> 8" in page
    assert "Refused" in page
    listed = invoke("datasets")[1]
    assert "mnist5k" in listed
    assert "{folder: PATH, size: 64, channels: 3}" in listed
    assert json.loads(invoke("datasets", "--json")[1])[0]["classes"] == 10
    code, _, stderr = invoke("models", "obs_mpl")
    assert (code, "did you mean obs_mlp?" in stderr) == (2, True)
    code, _, stderr = invoke("models", "--set", "width=4")
    assert (code, "need a model" in stderr) == (2, True)


def test_the_schema_is_json(invoke: Invoke) -> None:
    assert json.loads(invoke("schema")[1])["properties"]["name"]


def test_the_doctor_speaks_of_everything_a_study_needs(invoke: Invoke) -> None:
    findings = json.loads(invoke("doctor", "--json")[1])
    assert {"Python", "torch", "ray", "mlflow", "processor", "GPU", "home", "mnist"} <= {
        f["what"] for f in findings
    }
    assert "cores" in invoke("doctor")[1]


@pytest.mark.filterwarnings("ignore")  # MLflow's store leaves connections to the collector
class TestSubmit:
    """One real submit in this process, and what the other commands make of it."""

    def submit(self, invoke: Invoke, path: Path, *arguments: str) -> tuple[int, str, str]:
        return invoke("submit", path, "--backend", "inline", *arguments)

    def test_from_submit_to_best(self, invoke: Invoke, tiny: Path, private_home: Path) -> None:
        code, stdout, stderr = self.submit(invoke, tiny)
        assert code == 0
        for words in ("lr=0.001", "2/2", "filmstrip.png", "samples/step_0000000", "report tiny", "gan-sweep ui",
                      "viewStateShareKey=gansweep-overview"):  # fmt: skip
            assert words in stdout
        assert stderr.count("completed") == 4

        (row,) = json.loads(invoke("list", "--json")[1])
        assert (row["study"], row["state"], row["done"], row["trials"]) == ("tiny", "completed", 4, 4)
        status = json.loads(invoke("status", "ti", "--json")[1])
        assert [t["state"] for t in status["trials"]] == ["completed"] * 4
        assert "lr=0.0001" in invoke("status")[1]
        best: dict[str, Any] = json.loads(invoke("best", "tiny", "--json")[1])
        assert [s["completed"] for s in best["leaderboard"]] == [2, 2]
        for path in best["files"].values():
            assert Path(path).exists()
        assert Path(best["files"]["best_checkpoint"], "manifest.json").exists()

        journal = private_home / "studies" / "tiny" / "journal.jsonl"
        before = journal.read_bytes()
        code, again, _ = self.submit(invoke, tiny, "--json")
        assert code == 0
        assert journal.read_bytes() == before
        assert json.loads(again)["leaderboard"] == best["leaderboard"]

        code, stdout, stderr = self.submit(invoke, tiny, "--set", "fixed.width=16")
        assert code == 2
        assert "a study named tiny exists with another definition:\n  fixed.width: 8 -> 16" in stderr
        assert journal.read_bytes() == before

        code, _, stderr = invoke("status", "nothing")
        assert (code, "no study is called 'nothing'; there are: tiny" in stderr) == (2, True)

        for path in (p for p in everything_below(private_home / "studies") if p.is_file()):
            assert path.stat().st_mode & 0o077 == 0, f"{path} can be read by others"

    def test_a_diverged_seed_is_shown_and_does_not_fail_the_study(self, invoke: Invoke, tiny: Path) -> None:
        tiny.write_text(
            TINY.replace("steps: 12", "steps: 300").replace("latent_dim: 4", "latent_dim: 4, optimizer: sgd")
            .replace("1e-3", "10.0")
        )  # fmt: skip
        code, stdout, stderr = self.submit(invoke, tiny)
        assert code == 0
        assert "0/2, diverged 2" in stdout
        assert "not finite at step" in stderr

    def test_a_study_that_is_running_is_not_started_twice(
        self, invoke: Invoke, tiny: Path, private_home: Path
    ) -> None:
        from filelock import FileLock

        root = private_home / "studies" / "tiny"
        root.mkdir(parents=True)
        with FileLock(root / "lock"):
            code, _, stderr = self.submit(invoke, tiny)
        assert (code, "study tiny is running already" in stderr) == (2, True)
        assert not (root / "journal.jsonl").exists()

    def test_a_mistyped_data_directory_is_refused_and_not_made(
        self, invoke: Invoke, tiny: Path, tmp_path: Path
    ) -> None:
        code, _, stderr = self.submit(invoke, tiny, "--data-dir", str(tmp_path / "dta"))
        assert (code, "is not a directory" in stderr) == (2, True)
        assert not (tmp_path / "dta").exists()

    def test_missing_data_is_explained(
        self, invoke: Invoke, tiny: Path, private_home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torchvision.datasets

        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
        code, _, stderr = self.submit(invoke, tiny, "--set", "dataset=mnist")
        assert code == 2
        assert "mnist5k" in stderr
        assert not (private_home / "studies").exists()

    def test_named_arms_on_a_folder_and_a_named_dataset(
        self, invoke: Invoke, tmp_path: Path, private_home: Path
    ) -> None:
        """Two families, one on a folder with a broken file, which is named and left out."""
        folder = tmp_path / "photos (old)"
        folder.mkdir()
        for i in range(40):
            Image.new("RGB", (20 + i, 30), (6 * i, 100, 50)).save(folder / f"{i:02d}.png")
        (folder / "broken.jpg").write_bytes(b"not a picture")
        study = tmp_path / "armed.yaml"
        study.write_text(
            TINY.replace("name: tiny", "name: armed").replace("latent_dim: 4", "latent_dim: 4, augment: true")
            + "arms:\n  digits: {}\n"
            "  photos: {model: obs_dcgan, dataset: {folder: photos (old), size: 8, stored: 16}}\n"
        )
        plan = json.loads(invoke("plan", study, "--json")[1])
        assert (plan["datasets"], plan["models"]) == (
            ["digits, 1,797 images", "photos (old) 16x16x3, averaged down to 8x8, 41 image files"],
            ["obs_mlp", "obs_dcgan"],
        )  # fmt: skip
        assert plan["named"] == {
            "digits": {"changes": {}, "steps": [12]},
            "photos": {"changes": {"model": "obs_dcgan", "dataset": plan["datasets"][1]}, "steps": [12]},
        }
        code, stdout, stderr = self.submit(invoke, study, "--json")
        assert code == 0, stderr
        result = json.loads(stdout)
        assert sorted(" lr=".join(map(str, arm["values"].values())) for arm in result["leaderboard"]) == [
            f"{arm} lr={lr}" for arm in ("digits", "photos") for lr in ("0.0001", "0.001")
        ]
        assert "left out: broken.jpg" in stderr
        assert "photos (old) 16x16x3: 40 images" in stderr
        assert "nothing is left to run" in self.submit(invoke, study)[2]

    def test_the_plan_refuses_what_does_not_fit_the_images_of_a_folder(
        self, invoke: Invoke, tmp_path: Path, tiny: Path
    ) -> None:
        for i in range(20):
            (tmp_path / "few" / f"{i}.png").parent.mkdir(exist_ok=True)
            Image.new("L", (8, 8), i).save(tmp_path / "few" / f"{i}.png")
        few = TINY.replace("digits", "{folder: few, size: 8, channels: 1}").replace(
            "samples: 16", "samples: 8"
        )
        for text, words in (
            (
                few.replace("channels: 1", "channels: 1, limit: 21"),
                "dataset.limit: few 8x8x1 has 20 images (got 21)",
            ),
            (
                few.replace("batch_size: 8", "batch_size: 32"),
                "a batch of 32 is larger than the dataset (20 images)",
            ),
            (
                few.replace("obs_mlp", "rnn_timestep").replace(
                    "{width: 8, latent_dim: 4}", "{latent_dim: 4}"
                ),
                "few 8x8x1 has no classes",
            ),
        ):
            tiny.write_text(text)
            for command in ("plan", "submit"):
                code, _, stderr = invoke(command, tiny)
                assert code == 2
                assert words in stderr

    def test_what_images_are_compared_in_and_what_was_asked_for_are_recorded(
        self, invoke: Invoke, tiny: Path, private_home: Path
    ) -> None:
        options = (
            "--set",
            "evaluate.features=auto",
            "--set",
            "pictures.gallery=true",
            "--set",
            "name=judged",
        )
        code, _, stderr = self.submit(invoke, tiny, *options)
        assert code == 0
        assert "features of digits: classifier_" in stderr
        records = load_records(StudyFiles.of("judged"))
        facts = records.provenance
        assert json.loads(facts["gan_sweep.features"])["digits"].startswith("classifier_")
        assert (facts["gan_sweep.budget"], json.loads(facts["gan_sweep.set"])) == ("full", [*options[1::2]])
        trial = next(iter(records.trials.values()))
        assert {"eval/fd", "eval/fd_floor", "eval/class_tv", "classes/share_9"} <= trial.latest.keys()
        assert {
            "latent/slerp",
            "classes/histogram",
            "samples/curated",
            "animation/training",
        } <= trial.pictures.keys()
        code, stdout, _ = invoke("best", "judged")
        assert code == 0
        assert "eval/fd (min) at the best evaluation" in stdout

    def test_packs_change_no_result_and_are_recorded(
        self, invoke: Invoke, tiny: Path, private_home: Path
    ) -> None:
        results = {}
        for pack in ("off", "4"):
            code, stdout, stderr = self.submit(
                invoke, tiny, "--json", "--set", f"name=pack_{pack}", "--set", f"execution.pack={pack}"
            )
            assert code == 0, stderr
            board = json.loads(stdout)["leaderboard"]
            results[pack] = {arm["values"]["lr"]: arm["mean"] for arm in board}
            started = (
                (private_home / "studies" / f"pack_{pack}" / "journal.jsonl").read_text().splitlines()[0]
            )
            words = json.loads(started)["provenance"]["gan_sweep.pack"]
            assert words == (
                "alone, as execution.pack is off"
                if pack == "off"
                else "obs_mlp: packs of up to 4, as execution.pack says"
            )
        assert results["4"] == pytest.approx(results["off"], abs=1e-4)

    def test_the_checkpoint_kept_before_the_last_epochs_is_named(self, invoke: Invoke, tiny: Path) -> None:
        text = TINY.replace("space: {lr: {choices: [1e-3, 1e-4]}}\n", "").replace(
            "train: {steps: 12", "train: {epochs: 4"
        )
        tiny.write_text(
            text.replace("digits", "{name: digits, limit: 32}").replace(
                "latent_dim: 4", "latent_dim: 4, remove_last_epochs: 2"
            )
        )
        assert self.submit(invoke, tiny)[0] == 0
        files = json.loads(invoke("best", "tiny", "--json")[1])["files"]
        assert (Path(files["earlier_checkpoint"]).name, Path(files["best_checkpoint"]).name) == (
            "step_000000008", "step_000000016",
        )  # fmt: skip

    def test_a_folder_that_is_not_there_is_asked_for_before_anything_is_made(
        self, invoke: Invoke, tiny: Path, private_home: Path
    ) -> None:
        tiny.write_text(TINY.replace("dataset: digits", "dataset: {folder: fish, size: 8}"))
        plan = json.loads(invoke("plan", tiny, "--json")[1])
        assert plan["datasets"] == ["fish 8x8x3, images not counted yet"]
        assert str(tiny.parent / "fish") in plan["missing"][0]
        assert "not here yet: no folder fish" in invoke("plan", tiny)[1]
        code, _, stderr = self.submit(invoke, tiny)
        assert code == 2
        assert str(tiny.parent / "fish") in stderr
        assert not (private_home / "studies").exists()


def test_the_tiny_study_of_the_tests_is_the_one_in_yaml(tiny: Path) -> None:
    from orchestrator.loader import load_study

    spec = load_study(tiny)
    assert spec.space == tiny_study().space
    assert spec.seeds == tiny_study().seeds
