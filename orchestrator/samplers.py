"""The samplers by name: what each one can do, and its options. Pure: search.py makes them.

Names, defaults and sources are Optuna's (https://optuna.readthedocs.io); what is named here is all that can be set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from models import Param, Value
from orchestrator._fields import Range, Search, unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """`adaptive`: proposes arms one after the other, as results come. `objectives`: how many it can take.

    `asked`: how often it is asked for one arm that is new and that constraints allow, before arms are drawn at random:
    a proposal that is not used teaches it nothing.
    """

    doc: str
    adaptive: bool = False
    objectives: int = 3
    asked: int = 30
    options: Mapping[str, Param] = field(default_factory=dict)


_STARTUP = Param(
    kind=int, default=10, low=1, high=100_000, doc="finished arms before it stops drawing at random"
)
_GENES: Mapping[str, Param] = {
    "population_size": Param(kind=int, default=50, low=2, high=10_000, doc="arms of a generation"),
    "mutation_prob": Param(
        kind=float, default=None, low=0, high=1, doc="of each hyperparameter; default: 1 / their number"
    ),
    "crossover_prob": Param(kind=float, default=0.9, low=0, high=1, doc="of a child having two parents"),
    "swapping_prob": Param(
        kind=float, default=0.5, low=0, high=1, doc="of each hyperparameter changing its parent"
    ),
}

SAMPLERS: Mapping[str, Sampler] = {
    "grid": Sampler(doc="every point once"),
    "random": Sampler(doc="draws every arm by itself", asked=100),
    "qmc": Sampler(
        doc="quasi-random: covers the space more evenly than chance",
        asked=100,
        options={
            "qmc_type": Param(kind=str, default="sobol", choices=("sobol", "halton"), doc="the sequence"),
            "scramble": Param(kind=bool, default=True, doc="randomise the sequence by the seed"),
        },
    ),
    "tpe": Sampler(
        doc="tree-structured Parzen estimator (Bergstra et al. 2011)",
        adaptive=True,
        options={
            "n_startup_trials": _STARTUP,
            "n_ei_candidates": Param(kind=int, default=24, low=1, high=10_000, doc="candidates of a proposal"),
            "multivariate": Param(kind=bool, default=True, doc="model hyperparameters together"),
            "group": Param(
                kind=bool, default=None, doc="those that occur together; default: when any has `when`"
            ),
            "constant_liar": Param(kind=bool, default=True, doc="keep away from arms that run"),
        },
    ),
    "cmaes": Sampler(
        doc="CMA-ES (Hansen 2016) on the numbers that every arm has; draws all else at random",
        adaptive=True,
        objectives=1,
        options={
            "n_startup_trials": Param(
                kind=int, default=1, low=1, high=100_000, doc="finished arms before it stops drawing at random"
            ),
            "popsize": Param(
                kind=int, default=None, low=4, high=10_000, doc="arms of a generation; default: 4 + 3 ln(numbers)"
            ),
            "use_separable_cma": Param(kind=bool, default=False, doc="without covariances"),
            "with_margin": Param(kind=bool, default=False, doc="for whole numbers and steps"),
            "lr_adapt": Param(kind=bool, default=False, doc="for noisy objectives"),
            "consider_pruned_trials": Param(kind=bool, default=False, doc="learn from pruned arms too"),
        },
    ),
    "gp": Sampler(
        doc="Gaussian process with expected improvement",
        adaptive=True,
        asked=5,  # of about half a second each
        options={
            "n_startup_trials": _STARTUP,
            "deterministic_objective": Param(kind=bool, default=False, doc="the objective has no noise"),
        },
    ),
    "nsga2": Sampler(
        doc="genetic, for several objectives (Deb et al. 2002)", adaptive=True, options=_GENES
    ),
    "nsga3": Sampler(
        doc="genetic, for several objectives (Deb and Jain 2014)",
        adaptive=True,
        options={
            **_GENES,
            "dividing_parameter": Param(
                kind=int, default=3, low=1, high=100, doc="reference points along an objective"
            ),
        },
    ),
}  # fmt: skip

_EXCLUSIVE = ("use_separable_cma", "with_margin", "lr_adapt")


def option_problems(search: Search) -> Iterator[tuple[str, str]]:
    """What is wrong with the options of a sampler: the option, and why."""
    options = SAMPLERS[search.sampler].options
    for name, value in search.options.items():
        if not options:
            yield name, f"sampler {search.sampler} has no options; remove it"
        elif name not in options:
            yield name, unknown(f"option of {search.sampler}", name, options)
        elif wrong := options[name].problem(value):
            yield name, wrong
    on = [name for name in _EXCLUSIVE if search.options.get(name) is True]
    if search.sampler == "cmaes" and len(on) > 1:
        yield on[1], f"cannot go together with {on[0]}; keep one"
    if search.options.get("group") is True and search.options.get("multivariate") is False:
        yield "group", "needs multivariate"
    if search.warm_start is not None and search.options.get("use_separable_cma") is True:
        yield "use_separable_cma", "cannot go together with warm_start; keep one"


def options_of(search: Search) -> dict[str, Value]:
    """All options that have a value, the given ones over the defaults."""
    options = SAMPLERS[search.sampler].options
    defaults = {name: param.default for name, param in options.items() if param.default is not None}
    return {**defaults, **search.options}


def numbers(space: Mapping[str, object]) -> list[str]:
    """The ranges that every arm has, which are what CMA-ES searches."""
    return [name for name, axis in space.items() if isinstance(axis, Range) and not axis.when]
