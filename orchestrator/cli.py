"""The command line. Data goes to stdout, talk to stderr; `--json` wherever something is printed.

torch, ray and mlflow are imported inside the commands that need them: `--help` and `validate` answer at once.
Exit codes: 0 done, 1 the study or a check failed, 2 bad usage or invalid study, 3 Ray or the home is out of reach, 4
stopped with trials left, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.errors import GanSweepError, UsageError

if TYPE_CHECKING:
    from orchestrator.commands import Answer
    from orchestrator.home import StudyFiles
    from orchestrator.leaderboard import Standing
    from orchestrator.study import Objective, StudySpec
    from orchestrator.submit import Options, Submitted

app = typer.Typer(
    name="gan-sweep",
    help="GAN studies: every model, every hyperparameter, several seeds, compared honestly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config = typer.Typer(help="What gan-sweep is set to.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config, name="config")
# A pipe has no width: tables must not be folded for it.
COLOURS: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"  # None: no bold text either
out = Console(
    highlight=False,
    color_system=COLOURS,
    width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160,
)
err = Console(stderr=True, highlight=False, color_system=COLOURS)
UI_PORT = 5000
MOST_PROBLEMS = 8
"""That verify shows of each check."""
SHOWN_PICTURES = ("losses", "objective", "samples", "filmstrip", "best_samples")
"""Files that submit names; there are more beside them."""
LONG = ("submit", "resume", "retry", "extend", "ui", "gc", "delete", "sync", "replay")
"""Commands that are not ended half-way because whoever reads their output has gone."""
STATUS_HIDES = ("number", "arm", "seed", "steps", "attempts", "key")
"""Columns of `status --json` that the table leaves to the trial's name or out."""


class Budget(StrEnum):
    full = "full"
    short = "short"
    smoke = "smoke"


class TableFormat(StrEnum):
    csv = "csv"
    parquet = "parquet"


class BackendName(StrEnum):
    ray = "ray"
    inline = "inline"


StudyFile = Annotated[Path, typer.Argument(help="The study, a YAML file.", metavar="STUDY.yaml")]
BudgetOption = Annotated[
    Budget, typer.Option(help="How long to train: the study's own length, or a budget of it.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change the study: train.steps=100, dataset=mnist5k, ..."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option(help="Where datasets lie or will lie (DIR/MNIST/raw/..., folders of images)."),
]


def _complete_study(incomplete: str) -> list[str]:
    from orchestrator.home import all_studies

    return [files.name for files in all_studies() if files.name.startswith(incomplete)]


def _complete_trial(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Numbers of the trials of the study that stands on the command line, with their names."""
    from orchestrator.home import all_studies
    from orchestrator.status import load_records

    # After `--trial` without its value the other arguments are not parsed yet.
    name = context.params.get("study") or next((word for word in context.args if word[:1] != "-"), "")
    files = next((files for files in all_studies() if files.name.startswith(name)), None)
    trials = load_records(files).trials.values() if files else ()
    return [(str(t.number), t.name) for t in trials if str(t.number).startswith(incomplete)]


STUDY_HELP = "A submitted study: its name or a unique prefix; the newest by default."
StudyName = Annotated[str | None, typer.Argument(help=STUDY_HELP, autocompletion=_complete_study)]
TrialName = Annotated[
    str | None,
    typer.Option(
        "--trial",
        "-t",
        help="Only this trial: its number, its key or the beginning of it, or a part of its name.",
        autocompletion=_complete_trial,
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


BackendOption = Annotated[
    BackendName | None, typer.Option(help="ray or inline; by default as the study was submitted.")
]
WebhookOption = Annotated[
    str | None,
    typer.Option(
        help="Post the end of the study to this address; GAN_SWEEP_WEBHOOK by default.", metavar="URL"
    ),
]
NoWaitOption = Annotated[
    bool, typer.Option("--no-wait", help="Begin at once, even where other studies use all cores.")
]
DetachOption = Annotated[bool, typer.Option("--detach", help="Run in the background.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"gan-sweep {version('gan-sweep')}\n")
        raise typer.Exit()


@app.callback()
def before(
    context: typer.Context,
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """GAN studies: every model, every hyperparameter, several seeds, compared honestly."""
    if hasattr(signal, "SIGPIPE") and context.invoked_subcommand not in LONG:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `gan-sweep status | head` ends like any other tool


@app.command()
def submit(
    study: Annotated[
        Path,
        typer.Argument(help="The study, a YAML file, or the name of a submitted one.", metavar="STUDY.yaml"),
    ],
    budget: BudgetOption = Budget.full,
    set_: SetOption = None,
    data_dir: DataDirOption = None,
    backend: Annotated[
        BackendName, typer.Option(help="ray: an embedded Ray; inline: this process, for debugging.")
    ] = BackendName.ray,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, and run nothing.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="First run a tiny version of every arm, and stop if one fails.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background.")] = False,
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Run in the background and follow its log; Ctrl-C leaves it running."),
    ] = False,
    webhook: WebhookOption = None,
    no_wait: NoWaitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a study to its end, or go on where it stopped."""
    source, copied, set_ = _study_file(study, set_ or [])
    budget = Budget(copied) if copied and budget is Budget.full else budget
    if dry_run:
        plan(source, budget, set_, data_dir, as_json=as_json)
        return
    spec = _load(source, budget, set_)
    if detach or follow:
        _run_detached(spec.name, follow=follow, as_json=as_json)
        return
    from orchestrator.notify import webhook as told
    from orchestrator.submit import Options
    from orchestrator.submit import submit as run

    options = Options(
        backend=backend.value, data_dir=data_dir, webhook=told(webhook), wait=not no_wait, smoke=smoke
    )
    facts = {"gan_sweep.budget": budget.value, "gan_sweep.set": json.dumps(set_ or [])}
    _run_attached(lambda: run(spec, source, options=options, console=err, chosen=facts), as_json)


@app.command()
def resume(
    study: StudyName = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change what does not decide results: limits.hours=8, ..."
        ),
    ] = None,
    backend: BackendOption = None,
    data_dir: DataDirOption = None,
    webhook: WebhookOption = None,
    no_wait: NoWaitOption = False,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Go on with a submitted study where it stopped, by the definition that it was submitted with."""
    files = _find(study)
    if detach:
        _run_detached(files.name, follow=False, as_json=as_json)
        return
    from orchestrator.submit import go_on

    options = _options(files, backend, data_dir, webhook, no_wait)
    _run_attached(lambda: go_on(files, options=options, console=err, changes=set_ or ()), as_json)


@app.command()
def retry(
    study: StudyName = None,
    failed: Annotated[bool, typer.Option("--failed", help="Run failed trials again; the default.")] = False,
    diverged: Annotated[
        bool, typer.Option("--diverged", help="Diverged ones too: of use where their code has changed.")
    ] = False,
    trial: Annotated[list[str] | None, typer.Option(help="This trial, by number, key or name.")] = None,
    backend: BackendOption = None,
    data_dir: DataDirOption = None,
    webhook: WebhookOption = None,
    no_wait: NoWaitOption = False,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run trials that failed again, from their newest checkpoints, and whatever else is left."""
    files = _find(study)
    from orchestrator.going_on import to_reopen
    from orchestrator.status import find_trial, load_records
    from trials.reports import State

    records = load_records(files)
    named = [find_trial(records, wanted, files.name) for wanted in trial or ()]
    states = {State.FAILED} if failed or not diverged else set()
    keys = to_reopen(records, states | ({State.DIVERGED} if diverged else set()), named)
    if detach:
        _run_detached(files.name, follow=False, as_json=as_json)
        return
    from orchestrator.submit import go_on

    options = _options(files, backend, data_dir, webhook, no_wait)
    _run_attached(
        lambda: go_on(
            files, options=options, console=err, change=lambda sweep: sweep.reopen(keys, "retried on request")
        ),
        as_json,
    )


@app.command()
def extend(
    study: StudyName = None,
    seeds: Annotated[
        str | None, typer.Option(help="All seeds that there are to be: 0,1,2,3,4, or 0-4.", metavar="SEEDS")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="The length of training that is to be.", min=1)] = None,
    steps: Annotated[int | None, typer.Option(help="The same in steps.", min=1)] = None,
    trials: Annotated[
        int | None, typer.Option(help="How many arms a search is to try, those it has tried included.", min=1)
    ] = None,
    backend: BackendOption = None,
    data_dir: DataDirOption = None,
    webhook: WebhookOption = None,
    no_wait: NoWaitOption = False,
    detach: DetachOption = False,
    as_json: JsonOption = False,
) -> None:
    """Give a study more seeds, longer trials or more arms, and run what that adds; nothing is run twice."""
    files = _find(study)
    from orchestrator.going_on import Extension, extended, parse_seeds
    from orchestrator.status import load_definition, load_records

    asked = Extension(
        seeds=parse_seeds(seeds) if seeds is not None else (), epochs=epochs, steps=steps, trials=trials
    )
    extended(load_definition(files), load_records(files), asked)  # refused before anything is begun
    if detach:
        _run_detached(files.name, follow=False, as_json=as_json)
        return
    from orchestrator.submit import extend as run

    options = _options(files, backend, data_dir, webhook, no_wait)
    _run_attached(lambda: run(files, asked, options=options, console=err), as_json)


@app.command()
def stop(
    study: StudyName = None,
    trial: Annotated[
        list[str] | None, typer.Option(help="Only this trial, by number, key or name; the study goes on.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a running study, or a trial of it, with a checkpoint; resume goes on from there."""
    files = _find(study)
    from orchestrator import commands

    _print_answer(commands.stop(files, trial or ()), as_json)


@app.command()
def validate(study: StudyFile, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Check a study and all of its budgets: problems with line, column and what would be right."""
    spec = _load(study, Budget.full, set_)
    from orchestrator.arms import arm_count

    n = arm_count(spec)
    if as_json:
        _print_json({"valid": True, "study": spec.name, "arms": n, "trials": n * len(spec.seeds)})
    else:
        out.print(f"{study} is valid: {_count(n, 'arm')} x {_count(len(spec.seeds), 'seed')}", soft_wrap=True)


@app.command()
def plan(
    study: StudyFile,
    budget: BudgetOption = Budget.full,
    set_: SetOption = None,
    data_dir: DataDirOption = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Train a few steps: how long it takes, and what packs gain.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a study would run: arms, seeds, trials, steps, and how many at once."""
    spec = _load(study, budget, set_)
    from orchestrator.plan import look_at_datasets, make_plan, plan_table

    looked_at, missing = look_at_datasets(spec, study, data_dir)
    with err.status("measuring how fast trials step on this machine" if measure else "planning"):
        made = make_plan(looked_at, missing, measure=measure)
    if as_json:
        _print_json(made.to_json())
    else:
        out.print(plan_table(made))
    if made.problem:
        raise UsageError(made.problem)


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """The studies that were submitted, the newest first."""
    from orchestrator.home import all_studies, home
    from orchestrator.status import load_records, study_row

    rows = [study_row(files, load_records(files)) for files in all_studies()]
    if as_json:
        _print_json(rows)
    elif not rows:
        err.print(
            f"no study was submitted yet (home: {home()}); try: gan-sweep submit studies/quickstart.yaml"
        )
    else:
        _print_table(
            [{**row, "updated": _local_time(str(row["updated"]))} for row in rows], hide=("objective",)
        )


app.command("ls", hidden=True)(list_)


@app.command()
def status(
    study: StudyName = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it anew each second until the study ends.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Every trial of a study: its state, how far it is, its losses, its flags, and why it ended."""
    files = _find(study)
    if watch:
        _watch(files, as_json)
        return
    from orchestrator.status import load_records, prediction_rows, study_row, trial_rows
    from orchestrator.ui import study_url, study_words

    records = load_records(files)
    row, rows, predicted = (
        study_row(files, records),
        trial_rows(files, records),
        prediction_rows(files, records),
    )
    if as_json:
        told = [dict(zip(("what", "predicted", "fact"), words, strict=True)) for words in predicted]
        _print_json({**row, "mlflow": study_url(files, UI_PORT), "predicted": told, "trials": rows})
    else:
        state = f"{row['state']}, {row['done']} of {row['trials']} trials done"
        reason = f" ({row['reason']})" if row["reason"] else ""
        out.print(Text(str(row["study"]), style="bold") + Text(f": {state}{reason}"), soft_wrap=True)
        for what, expected, fact in predicted:
            out.print(f"  {what}: predicted {expected}, is {fact}", soft_wrap=True)
        if rows:
            _print_table([{**r, "step": f"{r['step']}/{r['steps']}"} for r in rows], hide=STATUS_HIDES)
        if words := study_words(files, UI_PORT):
            out.print(words, soft_wrap=True)


@app.command()
def logs(
    study: StudyName = None,
    trial: TrialName = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the study ends; Ctrl-C leaves it running.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
) -> None:
    """What happened in a study, one line an event; of one trial with every report and tracebacks in full."""
    files = _find(study)
    from orchestrator.journal import read
    from orchestrator.logs import Teller
    from orchestrator.logs import follow as coming
    from orchestrator.status import find_trial, is_running, load_definition, load_records

    number = find_trial(load_records(files), trial, files.name).number if trial is not None else None
    teller = Teller(files.name, number, [o.metric for o in load_definition(files).objectives])
    last = None
    try:
        for event in coming(files) if follow else (event for event, _ in read(files.journal)):
            last = event.kind
            if as_json:
                told = teller.to_json(event)
                if told is not None:
                    sys.stdout.write(json.dumps(told, allow_nan=False) + "\n")
                    sys.stdout.flush()
                continue
            for line in teller.tell(event):
                out.print(line.text, markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if last != "study_ended" and not is_running(files):
        words = f"the study did not end, and nobody works on it; go on with: gan-sweep resume {files.name}"
        err.print(words, style="yellow", markup=False, soft_wrap=True)


@app.command()
def best(study: StudyName = None, as_json: JsonOption = False) -> None:
    """The leaderboard of a study, and where the best arm's pictures and checkpoint lie."""
    files = _find(study)
    from orchestrator.leaderboard import leaderboard, to_json
    from orchestrator.status import best_files, load_definition, load_records

    spec = load_definition(files)
    standings = leaderboard(load_records(files), *spec.objectives)
    paths = best_files(files, standings)
    if as_json:
        _print_json(
            {
                "study": spec.name,
                "leaderboard": to_json(standings, spec.objective),
                "files": {name: str(path) for name, path in paths.items()},
            }
        )
        return
    out.print(_leaderboard_table(standings, spec))
    _print_paths(paths)


@app.command()
def report(
    study: StudyName = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Where to write it; the study's own directory by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a study's report: one page that opens anywhere, and the same as Markdown."""
    from orchestrator import commands

    with err.status("writing the report"):
        answer = commands.report(study, out_dir)
    _print_answer(answer, as_json)


@app.command()
def compare(
    names: Annotated[
        list[str], typer.Argument(help="Studies, or trials as STUDY:NUMBER.", metavar="STUDY_OR_TRIAL...")
    ],
    html: Annotated[Path | None, typer.Option(help="Write a page with curves and pictures too.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Studies or trials side by side: values, intervals, and the hyperparameters that differ."""
    from orchestrator import commands

    _print_answer(commands.compare(names, html), as_json)


@app.command()
def export(
    study: StudyName = None,
    table_format: Annotated[TableFormat, typer.Option("--format", help="csv or parquet.")] = TableFormat.csv,
    out_dir: Annotated[Path, typer.Option("--out", help="The directory to write to.")] = Path("export"),
    as_json: JsonOption = False,
) -> None:
    """Write a study's trials, metrics, leaderboard and claims as tables."""
    from orchestrator import commands

    _print_answer(commands.export(study, out_dir, table_format.value), as_json)


@app.command()
def sample(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A checkpoint's directory or a study; the newest study by default.",
            metavar="[CHECKPOINT|STUDY]",
        ),
    ] = None,
    trial: Annotated[
        str | None, typer.Option(help="A trial of the study, by number or key; the best one by default.")
    ] = None,
    n: Annotated[int, typer.Option(help="How many images.", min=1, max=100_000)] = 64,
    seed: Annotated[int, typer.Option(help="Of the latents.", min=0)] = 0,
    label: Annotated[int | None, typer.Option("--class", help="Of a conditional model: the class.")] = None,
    out_path: Annotated[
        Path, typer.Option("--out", help="FILE.png (one grid), FILE.npy, or a directory for a PNG an image.")
    ] = Path("samples.png"),
    raw: Annotated[
        bool, typer.Option("--raw", help="The generator itself, where there is an averaged one too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Draw images from a checkpoint, or from a study's best trial."""
    from orchestrator import commands

    answer = commands.sample(target, trial=trial, n=n, seed=seed, label=label, out=out_path, raw=raw)
    _print_answer(answer, as_json)


@app.command()
def verify(study: StudyName = None, as_json: JsonOption = False) -> None:
    """Check a study from outside: journal, trials, checkpoints, MLflow and the search agree; 1 where they do not."""
    files = _find(study)
    from orchestrator.verify import verify as checks

    found = []
    with err.status("checking") as shown:
        for check in checks(files):
            found.append(check)
            if as_json:
                continue
            mark, style = ("ok", "green") if check.good else ("NO", "red")
            out.print(Text(f"{mark:>3} ", style=style) + Text(f"{check.what}: {check.seen}"), soft_wrap=True)
            for problem in check.problems[:MOST_PROBLEMS]:
                out.print(f"      {problem}", markup=False, soft_wrap=True)
            if len(check.problems) > MOST_PROBLEMS:
                out.print(f"      and {len(check.problems) - MOST_PROBLEMS} more: --json shows all")
            shown.update(f"checking, {check.what} is done")
    if as_json:
        _print_json({"study": files.name, "checks": [check.to_json() for check in found]})
    if not all(check.good for check in found):
        raise typer.Exit(1)


@app.command()
def replay(
    study: Annotated[str, typer.Argument(help=STUDY_HELP, autocompletion=_complete_study)],
    trial: Annotated[
        str, typer.Argument(help="Its number, key or a part of its name.", autocompletion=_complete_trial)
    ],
    steps: Annotated[
        int | None, typer.Option(help="How far; as far as it came by default.", min=1, metavar="N")
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a trial again and compare every recorded metric; 1 when they differ by more than rounding."""
    from orchestrator import commands

    try:
        answer = commands.replay(study, trial, steps, data_dir, err)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    _print_answer(answer, as_json)


@app.command()
def sync(study: StudyName = None, as_json: JsonOption = False) -> None:
    """Send MLflow what it has not got yet; of all studies when none is named. Nothing is run."""
    from orchestrator import commands

    with err.status("sending to MLflow"):
        answer = commands.sync(study)
    _print_answer(answer, as_json)


@app.command()
def gc(
    study: Annotated[
        str | None,
        typer.Argument(help="A submitted study; all of them by default.", autocompletion=_complete_study),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")
    ] = False,
    keep: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Checkpoints of finished trials that stay: study-best (of the study's best trial), trial-best "
            "(of every trial), latest (of every trial: what extend goes on from), earlier (of remove_last_epochs).",
        ),
    ] = "study-best,trial-best,latest,earlier",
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove checkpoints that nobody needs, what killed runs left half-written, and what is deleted in MLflow.

    Nothing of a running study is touched, and nothing of a trial that is not finished.
    """
    from orchestrator import commands

    _print_answer(commands.gc(study, keep, dry_run=dry_run, confirm=_confirm(yes)), as_json)


@app.command()
def delete(
    study: Annotated[str, typer.Argument(help="A submitted study.", autocompletion=_complete_study)],
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Delete a study: its directory, and its experiment in MLflow with all runs. Prepared data stays."""
    from orchestrator import commands

    _print_answer(commands.delete(study, confirm=_confirm(yes)), as_json)


@app.command()
def models(
    model: Annotated[str | None, typer.Argument(help="One model: its hyperparameters and layers.")] = None,
    image: Annotated[
        str | None, typer.Option(metavar="CxHxW", help="Show the layers for other images, as 3x64x64.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Show the layers with another parameter: width=64."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The models; or one model's hyperparameters with ranges and defaults, and its layers."""
    from orchestrator import catalogue

    if model is None:
        if image or set_:
            raise UsageError("--image and --set need a model: gan-sweep models NAME --image 1x28x28")
        rows = catalogue.model_rows()
        _print_json(rows) if as_json else _print_table(rows, hide=("recipe",))
        return
    described = catalogue.describe(model, image, set_ or ())
    if as_json:
        _print_json(described.to_json())
        return
    from orchestrator.model_page import WIDTH, page

    out.print(page(described), width=min(out.width, WIDTH))


@app.command()
def datasets(as_json: JsonOption = False) -> None:
    """The datasets: shape, classes, whether they ship or where their files belong, licences; and folders."""
    from orchestrator.catalogue import dataset_rows
    from orchestrator.model_page import dataset_page

    rows = dataset_rows()
    if as_json:
        _print_json(rows)
        return
    out.print(dataset_page(rows))


@app.command()
def schema() -> None:
    """The JSON Schema of study files, for editors: gan-sweep schema > studies/study.schema.json."""
    from orchestrator.schema import json_schema

    _print_json(json_schema())


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """What this machine has and lacks for running studies, in words."""
    from orchestrator.doctor import examine

    findings = examine()
    if as_json:
        _print_json([finding.to_json() for finding in findings])
    else:
        for finding in findings:
            mark, style = {"good": ("ok", "green"), "note": ("--", "yellow"), "bad": ("NO", "red")}[
                finding.level
            ]
            out.print(
                Text(f"{mark:>3} ", style=style) + Text(f"{finding.what}: {finding.words}"), soft_wrap=True
            )
    if any(finding.level == "bad" for finding in findings):
        raise typer.Exit(1)


@config.command("show")
def config_show(as_json: JsonOption = False) -> None:
    """Every setting that is read from the environment: its value, where that comes from, and what it is for."""
    from orchestrator import commands

    _print_answer(commands.config_show(), as_json)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="On 127.0.0.1.", min=1024, max=65535)] = UI_PORT,
) -> None:
    """Open MLflow on gan-sweep's store, on this machine only. Ends with Ctrl-C."""
    from orchestrator.ui import serve

    serve(port, err)


def _study_file(given: Path, set_: list[str]) -> tuple[Path, str | None, list[str]]:
    """The study file, its budget, and the changes to it: `set_`, or of a submitted study that is named those with which
    it came to what it is, and then `set_`. Without a named study no budget."""
    if given.exists() or len(given.parts) != 1 or given.suffix in (".yaml", ".yml"):
        return given, None, set_
    from orchestrator.home import StudyFiles
    from orchestrator.status import load_records
    from orchestrator.submit import origin, submitted_as

    files = StudyFiles.of(given.name)
    if not files.source.exists():
        return given, None, set_
    lay, _ = origin(files, None)  # folders of pictures are looked for beside it
    same = lay.is_file() and lay.read_bytes() == files.source.read_bytes()
    budget, before = submitted_as(files, load_records(files))
    return lay if same else files.source, budget, [*before, *set_]


def _options(
    files: StudyFiles, backend: BackendName | None, data_dir: Path | None, webhook: str | None, no_wait: bool
) -> Options:
    """As the study was submitted, but for what is given now."""
    from dataclasses import replace

    from orchestrator.notify import webhook as told
    from orchestrator.submit import origin

    _, before = origin(files, None)
    return replace(
        before,
        backend=backend.value if backend else before.backend,
        data_dir=data_dir or before.data_dir,
        webhook=told(webhook),
        wait=not no_wait,
    )


def _run_attached(run: Callable[[], Submitted], as_json: bool) -> NoReturn:
    """Run a study, show what came of it, and leave with its exit code."""
    try:
        done = run()
    except KeyboardInterrupt:  # before the first trial or after the last one
        err.print(f"interrupted; go on with the same command: {_command_line()}", soft_wrap=True)
        raise typer.Exit(130) from None
    try:
        _show_results(done, as_json)
    except BrokenPipeError:  # whoever read our output has gone; the study is done all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if done.interrupted and done.state == "stopped":
        err.print(f"stopped; go on with the same command: {_command_line()}", soft_wrap=True)
        raise typer.Exit(130)
    if done.state == "stopped":
        more = f" --set {done.reason.split(':')[0]}=MORE" if done.reason.startswith("limits.") else ""
        words = f"{done.reason or 'trials are left'}; go on with: gan-sweep resume {done.study.name}{more}"
        err.print(words, style="yellow", markup=False, soft_wrap=True)
    raise typer.Exit({"completed": 0, "failed": 1}.get(done.state, 4))


def _run_detached(name: str, *, follow: bool, as_json: bool) -> None:
    """Run this very command in the background."""
    from orchestrator.detach import detach

    with err.status("starting in the background"):
        started = detach(name, sys.argv[1:])
    if started.code is not None:
        sys.stderr.write(started.log.read_text(errors="replace"))
        raise typer.Exit(started.code)
    if follow:
        logs(name, follow=True)
        return
    if as_json:
        _print_json({"study": name, "pid": started.pid, "log": str(started.log)})
        return
    words = f"study {name} runs in the background (process {started.pid}; it writes to {started.log})"
    out.print(words, soft_wrap=True)
    for verb in ("status --watch", "logs -f", "stop"):
        out.print(f"  gan-sweep {verb} {name}")


def _load(path: Path, budget: Budget, set_: Sequence[str] | None) -> StudySpec:
    from orchestrator.loader import load_study

    return load_study(path, budget=budget.value, overrides=tuple(set_ or ()))


def _watch(files: StudyFiles, as_json: bool) -> None:
    if as_json or not out.is_terminal:
        raise UsageError(f"--watch needs a terminal; elsewhere use: gan-sweep status {files.name} --json")
    from orchestrator.watch import watch

    try:
        watch(files, out)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _confirm(yes: bool) -> Callable[[str], bool]:
    """Asks on a terminal; elsewhere `--yes` is needed."""

    def ask(question: str) -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise UsageError(f"{question} Say --yes to do it where nobody can be asked")
        return typer.confirm(question, err=True)

    return ask


def _find(name: str | None) -> StudyFiles:
    from orchestrator.status import find_study

    return find_study(name)


def _show_results(done: Submitted, as_json: bool) -> None:
    spec = done.study
    from orchestrator.leaderboard import to_json
    from orchestrator.ui import open_words, program, results_url

    url = results_url(done.experiment_id, UI_PORT) if done.experiment_id else None
    if done.pending:
        err.print(
            f"{_count(done.pending, 'event')} not in MLflow yet ({done.pending_reason}); they are kept, and sent "
            "when the study is submitted again",
            style="yellow",
        )
    if as_json:
        _print_json(
            {
                "study": spec.name,
                "state": done.state,
                "reason": done.reason,
                "saved": done.saved,
                "leaderboard": to_json(done.standings, spec.objective),
                "files": {name: str(path) for name, path in done.pictures.items()},
                "mlflow": {"experiment_id": done.experiment_id, "url": url, "pending_events": done.pending},
            }
        )
        return
    if any(standing.mean is not None for standing in done.standings):
        out.print(_leaderboard_table(done.standings, spec))
    if done.saved:
        out.print(done.saved)
    _print_paths({name: path for name, path in done.pictures.items() if name in SHOWN_PICTURES})
    if done.standings:
        out.print(f"         report  {program()} report {spec.name}", soft_wrap=True)
    if url:
        out.print(open_words(url, UI_PORT), soft_wrap=True)


def _leaderboard_table(standings: Sequence[Standing], study: StudySpec) -> Table:
    from orchestrator.reading import judged_on_different_images

    objectives, objective = study.objectives, study.objective
    several = judged_on_different_images(study, (s.values for s in standings))
    shown = {"final/g_loss": "G loss", "final/d_loss_mean": "D loss", "final/d_acc": "D acc"}
    if any("final/w_dist" in s.finals for s in standings):  # a critic's accuracy says nothing
        shown = {"final/g_loss": "G loss", "final/d_loss_mean": "D loss", "final/w_dist": "W dist"}
    floors = [s.finals.get(f"{objective.metric}_floor") for s in standings]
    of_floors = {f"{floor:.4g}" for floor in floors if floor is not None}
    table = Table(title=f"{_objective_words(objective)}, mean over seeds", title_justify="left")
    table.add_column("", justify="right")
    table.add_column("arm", overflow="fold")
    table.add_column(objective.metric, justify="right", overflow="fold")
    for other in objectives[1:]:
        table.add_column(f"{other.metric} ({other.mode})", justify="right")
    table.add_column("seeds", overflow="fold")
    for title in (*shown.values(), *(["floor"] if several else [])):
        table.add_column(title, justify="right")
    for rank, s in enumerate(standings, 1):
        mean = "-" if s.mean is None else f"{s.mean:.4g}{_spread_words(s.sd)}"
        seeds = f"{s.completed}/{s.seeds}" + "".join(f", {state} {n}" for state, n in s.losses.items())
        if s.pruned_at is not None:
            seeds += f" at step {s.pruned_at}" + ("" if s.pruned_value is None else f": {s.pruned_value:.4g}")
        if s.never_begun:
            seeds += f", {s.never_begun} not run"
        cells = [mean, *(_cell(s.means.get(other.metric)) for other in objectives[1:]), seeds]
        cells += [_loss(s.finals.get(name)) for name in shown] + (
            [_cell(floors[rank - 1])] if several else []
        )
        table.add_row("" if s.mean is None else str(rank), _as_it_is(s.arm.label), *cells)
    table.caption, table.caption_justify = (
        _leaderboard_caption(standings, objectives, shown, of_floors, several),
        "left",
    )
    return table


def _spread_words(sd: float | None) -> str:
    return "" if sd is None else f" ± {sd:.0f}" if sd >= 100 else f" ± {sd:.2g}"


def _objective_words(objective: Objective) -> str:
    at = f" at the {objective.at} evaluation" if objective.metric.startswith("eval/") else ""
    return f"{objective.metric} ({objective.mode}){at}"


def _leaderboard_caption(
    standings: Sequence[Standing],
    objectives: Sequence[Objective],
    shown: Mapping[str, str],
    floors: set[str],
    several: bool,
) -> str:
    parts = ["± is the standard deviation over seeds"] if any(s.sd is not None for s in standings) else []
    parts.append(f"{', '.join(shown.values())}: last 10 % of training")
    lengths = sorted({trial.steps for s in standings for trial in s.arm.trials if trial.steps})
    if len(lengths) > 1:
        parts.append(f"arms trained for {lengths[0]:,} to {lengths[-1]:,} steps")
    if several:
        parts.append(
            "floor: real against held-out real images. Arms are judged on different images here: their distances do "
            "not compare, nor do their ranks"
        )
        return "; ".join(parts)
    if len(floors) == 1:
        parts.append(f"real against held-out real images: {next(iter(floors))}")
    if len(objectives) > 1:
        beaten = [s.arm.label for s in standings if s.front > 1]
        parts.append(
            "in all objectives together no arm is beaten"
            if not beaten
            else f"beaten in all objectives: {', '.join(beaten)}"
        )
    elif tied := _tied_words(standings, objectives[0]):
        parts.append(tied)
    return "; ".join(parts)


def _tied_words(standings: Sequence[Standing], objective: Objective) -> str:
    """Which arms cannot be told from the best one; nothing for one arm or one seed."""
    from orchestrator.stats import compare as told_apart
    from orchestrator.stats import groups

    scored = {s.arm.label: s.by_seed for s in standings if s.mean is not None}
    if len(scored) < 2 or max(len(seeds) for seeds in scored.values()) < 2:
        return ""
    found = groups(told_apart(scored, objective.mode, best=next(iter(scored))))
    tied = [arm for arm in found.tied if arm != next(iter(scored))]
    if not tied:
        return "the first is apart from all others" if not found.undecided else ""
    return f"cannot be told from the first with these seeds: {', '.join(tied)}"


def _print_answer(answer: Answer, as_json: bool) -> None:
    for note in answer.notes:
        err.print(note, style="yellow", markup=False, soft_wrap=True)
    if as_json:
        _print_json(answer.json)
        if answer.failed:
            raise typer.Exit(1)
        return
    for line in answer.lines:
        out.print(line, markup=False, soft_wrap=True)
    for rows in answer.tables:
        _print_table(rows)
    _print_paths(answer.files)
    if answer.failed:
        raise typer.Exit(1)


def _print_paths(paths: Mapping[str, Path]) -> None:
    for name, path in paths.items():
        out.print(f"{name.replace('_', ' '):>15}  {path}", soft_wrap=True)


def _print_table(rows: Sequence[Mapping[str, object]], hide: Sequence[str] = ()) -> None:
    table = Table()
    dull = (
        [name for name in rows[0] if all(row[name] in ("", 0, None) for row in rows)]
        if len(rows[0]) > 6
        else []
    )
    names = [name for name in rows[0] if name not in (*hide, *dull)]
    for name in names:
        numeric = all(isinstance(row[name], int | float | None) for row in rows)
        table.add_column(
            name.replace("_", " "),
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=numeric or name in ("study", "state", "step"),
        )
    for row in rows:
        table.add_row(*(_as_it_is(_cell(row[name])) for name in names))
    out.print(table)


def _as_it_is(text: str) -> Text:
    """Text of a study: neither markup nor what a terminal would obey."""
    from orchestrator._words import one_line

    return Text(one_line(text))


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _local_time(iso: str) -> str:
    from datetime import datetime

    return f"{datetime.fromisoformat(iso).astimezone():%b %d %H:%M}"


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _command_line() -> str:
    import shlex

    from orchestrator.ui import program

    return shlex.join([program(), *sys.argv[1:]])


def _make_paths_absolute() -> None:
    """Settings that are relative mean this directory, also where the current directory changes meanwhile."""
    from orchestrator.home import absolute_uri, home

    if os.environ.get("GAN_SWEEP_HOME"):
        os.environ["GAN_SWEEP_HOME"] = str(home())
    if os.environ.get("MLFLOW_TRACKING_URI"):
        os.environ["MLFLOW_TRACKING_URI"] = absolute_uri(os.environ["MLFLOW_TRACKING_URI"])


def main() -> NoReturn:
    """The console script: every error of ours is one message and its exit code, without a traceback."""
    os.umask(0o077)  # a store, journals and checkpoints are nobody else's business
    _make_paths_absolute()
    try:
        app()
    except GanSweepError as error:
        if "--json" in sys.argv:
            _print_json({"error": str(error), "problems": getattr(error, "lines", [])})
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(0)
