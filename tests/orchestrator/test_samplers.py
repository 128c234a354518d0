"""The table of samplers, and what their options may be."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any, get_args

import optuna
import pytest

from orchestrator._fields import SamplerName, Search
from orchestrator.samplers import SAMPLERS, option_problems, options_of
from orchestrator.study import problems
from orchestrator.testing import tiny_study

OPTUNAS = {
    "qmc": optuna.samplers.QMCSampler,
    "tpe": optuna.samplers.TPESampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "gp": optuna.samplers.GPSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "nsga3": optuna.samplers.NSGAIIISampler,
}


def test_a_study_can_name_every_sampler_of_the_table_and_no_other() -> None:
    assert set(get_args(SamplerName)) == set(SAMPLERS)


@pytest.mark.parametrize("name", OPTUNAS)
def test_every_option_is_optunas_and_is_right_by_itself(name: str) -> None:
    known = inspect.signature(OPTUNAS[name]).parameters
    for option, param in SAMPLERS[name].options.items():
        assert option in known
        assert param.doc
        assert param.default is None or param.problem(param.default) is None


def test_the_table_is_read_without_optuna() -> None:
    code = "import sys, orchestrator.samplers; assert 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def of(sampler: str, **options: Any) -> dict[str, str]:
    return dict(option_problems(Search.model_validate({"sampler": sampler, "trials": 3, "options": options})))


@pytest.mark.parametrize(
    ("sampler", "options", "option", "words"),
    [
        ("tpe", {"n_startup_trial": 3}, "n_startup_trial", "did you mean n_startup_trials?"),
        ("tpe", {"n_startup_trials": 0}, "n_startup_trials", "must be a whole number >= 1"),
        ("tpe", {"n_startup_trials": 2.5}, "n_startup_trials", "must be a whole number"),
        ("tpe", {"multivariate": 1}, "multivariate", "must be true or false (got 1)"),
        ("tpe", {"group": True, "multivariate": False}, "group", "needs multivariate"),
        ("qmc", {"qmc_type": "sobl"}, "qmc_type", "must be one of sobol, halton (got 'sobl')"),
        ("random", {"scramble": True}, "scramble", "sampler random has no options; remove it"),
        ("nsga2", {"dividing_parameter": 3}, "dividing_parameter", "unknown option of nsga2"),
        ("nsga3", {"mutation_prob": 1.5}, "mutation_prob", "must be a number >= 0 and <= 1 (got 1.5)"),
        ("cmaes", {"popsize": 3}, "popsize", "must be a whole number >= 4"),
        ("cmaes", {"lr_adapt": True, "with_margin": True}, "lr_adapt", "cannot go together with with_margin"),
    ],
)
def test_a_wrong_option_is_named_with_what_would_be_right(
    sampler: str, options: dict[str, Any], option: str, words: str
) -> None:
    found = of(sampler, **options)
    assert list(found) == [option]
    assert words in found[option]


def test_options_that_are_given_win_over_the_defaults() -> None:
    search = Search(sampler="tpe", trials=3, options={"n_startup_trials": 4})
    assert options_of(search)["n_startup_trials"] == 4
    assert options_of(search)["multivariate"] is True
    assert "group" not in options_of(search)


RANGES = {"beta1": {"low": 0.0, "high": 0.9}, "beta2": {"low": 0.0, "high": 0.9}}
ONE_RANGE = {"beta1": RANGES["beta1"], "amsgrad": {"choices": [True, False]}}


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        (
            {"search": {"sampler": "cmaes"}, "space": ONE_RANGE},
            ("search", "sampler"),
            "needs two ranges or more that every arm has (got beta1)",
        ),
        (
            {"search": {"sampler": "cmaes"}, "objective": [{"metric": "eval/fd"}, {"metric": "eval/swd"}]},
            ("search", "sampler"),
            "cmaes takes one objective (got 2); use tpe, gp or nsga2",
        ),
        (
            {"search": {"sampler": "qmc", "warm_start": "other"}},
            ("search", "warm_start"),
            "qmc learns from nothing; use one of tpe, cmaes, gp, nsga2, nsga3, or remove it",
        ),
        ({"search": {"sampler": "tpe", "warm_start": "tiny"}}, ("search", "warm_start"), "is this study itself"),
        ({"search": {"sampler": "tpe", "options": {"x": 1}}}, ("search", "options", "x"), "unknown option of tpe"),
    ],
)  # fmt: skip
def test_what_a_sampler_cannot_do_is_refused_with_a_way_out(
    changes: dict[str, Any], path: tuple[str, ...], words: str
) -> None:
    search = {"trials": 3, **changes["search"]}
    (found,) = problems(tiny_study(**{"space": RANGES, **changes, "search": search}))
    assert found.path == path
    assert words in found.message
