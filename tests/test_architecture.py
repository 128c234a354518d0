"""Rules between packages: layers point down, and each heavy library lives in its one edge module."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("models", "trials", "orchestrator")
EDGES = {
    "ray": {"orchestrator/backends/ray.py"},
    "optuna": {"orchestrator/search.py", "orchestrator/charts.py"},
    "mlflow": {"orchestrator/tracking.py"},
    "ruamel": {"orchestrator/_yaml.py"},
    "rich": {"orchestrator/cli.py", "orchestrator/commands.py", "orchestrator/model_page.py", "orchestrator/plan.py",
             "orchestrator/progress.py", "orchestrator/submit.py", "orchestrator/ui.py", "orchestrator/turns.py",
             "orchestrator/watch.py"},
    "typer": {"orchestrator/cli.py"},
    "pydantic": {"orchestrator/_fields.py", "orchestrator/_words.py", "orchestrator/loader.py",
                 "orchestrator/schema.py"},
    "matplotlib": {"trials/plots.py"},
    "torchvision": {"trials/data.py"},
    "jinja2": {"orchestrator/pages.py"},
    "pandas": {"orchestrator/export.py"},
    "scipy": {"trials/images.py"},
}  # fmt: skip
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down_and_stay_in_their_edge_modules(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    layer = LAYERS.index(name.split("/")[0])
    used = imported(path)
    assert not used & set(LAYERS[layer + 1 :]), f"{name} imports a layer above its own"
    for library, homes in EDGES.items():
        assert library not in used or name in homes, (
            f"{name} imports {library}, which belongs to {sorted(homes)}"
        )


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "studies/lr_optimizer.yaml"],
                                       ["plan", "studies/lr_optimizer.yaml"], ["models"], ["datasets"], ["list"],
                                       ["schema"]])  # fmt: skip
def test_quick_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from orchestrator.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'torchvision', 'matplotlib', 'pandas'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=ROOT, capture_output=True)


def test_no_code_lives_where_a_library_would_import_it_by_accident() -> None:
    assert not (ROOT / "docker" / "__init__.py").exists()
    assert not (ROOT / "tests" / "__init__.py").exists()
