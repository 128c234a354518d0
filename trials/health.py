"""Says when a training goes wrong: flags, from the rows that training logs and from checks of its samples.

    d_win      d_acc > 0.99 and d_loss_mean < 0.05
    d_lost     d_acc < 0.3
    collapse   the mean distance between 64 generated images is < 5 % of that between real ones, or > 90 % of an
               evaluation's images are of one class
    jump       g_loss, in means over a block of steps, is at most half or at least twice what it was one or two blocks
               before; a block is 1 % of training, and 100 steps at least. Not in the first tenth of training
    frozen     g_loss and d_loss_mean stay within 0.01 % of what they were

A flag is raised when its condition has held for `confirm` steps, and again only after it has ended. Windows are counted
in steps, whatever the logging interval. A critic's losses mean something else (Wasserstein), so that one has collapse
and frozen alone. Plain numbers in, flags out; the state goes into checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trials.reports import Flag
from trials.spec import TrialSpec

D_WIN_ACC, D_WIN_LOSS, D_LOST_ACC = 0.99, 0.05, 0.3
ALIKE, ONE_CLASS = 0.05, 0.9
UNLIKE_REAL, SURE = 0.5, 0.7
"""Images of one class are a collapse only where the data is not of one class (total variation), and where the
classifier takes them for that class: it puts noise somewhere, too (its mean largest probability)."""
BLOCK_SHARE, MIN_BLOCK, WARM_UP = 0.01, 100, 0.1
"""Of `jump`: a block's share of training, its least steps, and the share of training that is not looked at."""
FACTOR, LEAST_CHANGE = 2.0, 0.5
"""How far a block's g_loss must be off to be a jump: by this factor, and by so much at least, as half of nothing is
nothing."""
STILL, STILL_LEAST, STILL_ROWS = 1e-4, 1e-6, 3
"""Losses that differ by no more than this share, or than the second number, are the same. So many rows after the first
must be: means over long intervals may come as near to each other by chance."""
CHECK_SHARE, MIN_CHECK = 0.01, 100


def check_every(spec: TrialSpec) -> int:
    """Steps between checks of samples: about 1 % of training, 100 at least, and a multiple of the logging interval."""
    wanted = max(MIN_CHECK, round(CHECK_SHARE * spec.steps))
    return -(-wanted // spec.log_every) * spec.log_every


def reach(spec: TrialSpec) -> int:
    """No flag's condition began more than so many steps before the flag is raised."""
    judged = (0, *spec.eval_steps)
    gaps = [b - a for a, b in zip(judged, spec.eval_steps, strict=False)]
    two = 2 * max(check_every(spec), _block(spec.steps), *gaps)
    return spec.confirm + max(two, (STILL_ROWS + 1) * spec.log_every)


def _block(steps: int) -> int:
    return max(MIN_BLOCK, round(BLOCK_SHARE * steps))


@dataclass(slots=True)
class _Spell:
    """How long a condition has held. `since`: the last step at which it did not, -1 while it does not; `seen`: the
    first step from which it was seen to hold; `fine`: the last step at which it was seen not to; `raised`: whether
    that was said."""

    since: int = -1
    seen: int = -1
    fine: int = 0
    raised: bool = False

    def look(self, holds: bool, step: int, seen: int, confirm: int) -> bool:
        """Whether it is confirmed at `step`, for the first time; `seen`: from which step on it is seen to hold."""
        if not holds:
            self.since, self.seen, self.fine, self.raised = -1, -1, step, False
            return False
        if self.since < 0:
            self.since, self.seen = self.fine, seen
        if self.raised or step - self.seen < confirm:
            return False
        self.raised = True
        return True


@dataclass(slots=True)
class _Blocks:
    """Means of g_loss over blocks. `start`, `n`, `total`: of the block so far; `past`: means of the last blocks
    at the usual level, two at most; `left`: the level that the loss has jumped from, while it is away from it."""

    start: int = 0
    n: int = 0
    total: float = 0.0
    past: list[float] = field(default_factory=list)
    left: float = 0.0


@dataclass(slots=True)
class _Still:
    """The losses that later rows are compared with, and how many were the same."""

    g: float | None = None
    d: float | None = None
    rows: int = 0


class Watch:
    """Watches one trial. What it is told must be finite, and come in the order of steps."""

    def __init__(self, *, steps: int, confirm: int = 500, critic: bool = False) -> None:
        """`steps`: of the whole training; `confirm`: steps a condition must hold; `critic`: whether D is one."""
        self._steps, self._confirm, self._critic = steps, confirm, critic
        self._spells = {
            name: _Spell() for name in ("d_win", "d_lost", "alike", "one_class", "jump", "frozen")
        }
        self._blocks, self._still = _Blocks(), _Still()

    def row(self, step: int, n: int, metrics: Mapping[str, float]) -> list[Flag]:
        """What a row of train/ metrics says, means over the `n` steps that end with `step`."""
        g, d, acc = (metrics[f"train/{name}"] for name in ("g_loss", "d_loss_mean", "d_acc"))
        flags = self._frozen(step, n, g, d)
        if not self._critic:
            words = f"accuracy {acc:.2f}, loss {d:.3f}"
            flags += self._look("d_win", acc > D_WIN_ACC and d < D_WIN_LOSS, step, step - n, words)
            flags += self._look("d_lost", acc < D_LOST_ACC, step, step - n, words)
            flags += self._jump(step, n, g)
        return flags

    def diversity(self, step: int, value: float) -> list[Flag]:
        """What a check of samples says: their mean distance over that of real images."""
        words = f"generated images are {100 * value:.0f} % as far apart as real ones"
        return self._collapse("alike", value < ALIKE, step, words)

    def classes(self, step: int, share: float, tv: float, confidence: float) -> list[Flag]:
        """What an evaluation says of the classes of generated images: the largest share, total variation from the
        classes of real images, and how sure the classifier is."""
        words = f"{100 * share:.0f} % of generated images are of one class"
        holds = share > ONE_CLASS and tv > UNLIKE_REAL and confidence > SURE
        return self._collapse("one_class", holds, step, words)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        spells = {name: asdict(spell) for name, spell in self._spells.items()}
        return {"spells": spells, "blocks": asdict(self._blocks), "still": asdict(self._still)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on exactly where `saved` was taken."""
        self._spells = {name: _Spell(**spell) for name, spell in saved["spells"].items()}
        self._blocks, self._still = _Blocks(**saved["blocks"]), _Still(**saved["still"])
        self._blocks.past = [*self._blocks.past]

    def begin(self, step: int) -> None:
        """Begin in the middle of a training."""
        self._blocks.start = step
        for spell in self._spells.values():
            spell.fine = step

    def _look(
        self,
        kind: str,
        holds: bool,
        step: int,
        seen: int,
        words: str,
        *,
        name: str = "",
        confirm: int | None = None,
    ) -> list[Flag]:
        spell, name = self._spells[kind], name or kind
        if not spell.look(holds, step, seen, self._confirm if confirm is None else confirm):
            return []
        words = f"{name}: {words} since step {spell.since:,}"
        return [Flag(name=name, since=spell.since, step=step, words=words)]

    def _collapse(self, kind: str, holds: bool, step: int, words: str) -> list[Flag]:
        """Two conditions are one flag: it is raised when the first of them is confirmed."""
        other = self._spells["one_class" if kind == "alike" else "alike"]
        found = self._look(kind, holds, step, step, words, name="collapse")
        return [] if other.raised else found

    def _jump(self, step: int, n: int, g: float) -> list[Flag]:
        blocks, spell = self._blocks, self._spells["jump"]
        blocks.n, blocks.total = blocks.n + n, blocks.total + n * g
        if step - blocks.start < _block(self._steps):
            return []
        start, level = blocks.start, blocks.total / blocks.n
        blocks.start, blocks.n, blocks.total = step, 0, 0.0
        if start < WARM_UP * self._steps:
            return self._look("jump", False, step, start, "")
        if spell.since < 0:
            blocks.left = next((past for past in blocks.past if _is_off(level, past)), level)
        words = f"generator's loss from {blocks.left:.2f} to {level:.2f}"
        flags = self._look("jump", _is_off(level, blocks.left), step, start, words)
        if spell.since < 0:
            blocks.past = [*blocks.past[-1:], level]
        elif flags:  # from now on the new level is the usual one
            spell.look(False, step, step, self._confirm)
            blocks.past = [level]
        return flags

    def _frozen(self, step: int, n: int, g: float, d: float) -> list[Flag]:
        still, start = self._still, self._spells["frozen"].fine
        words = f"losses of generator and discriminator {g:.4g} and {d:.4g}"
        if not (_is_same(g, still.g) and _is_same(d, still.d)):
            still.g, still.d, still.rows = g, d, 0
            return self._look("frozen", False, step - n, start, words)
        still.rows += 1
        confirm = self._confirm if still.rows >= STILL_ROWS else self._steps + 1
        return self._look("frozen", True, step, start, words, confirm=confirm)


def _is_off(level: float, usual: float) -> bool:
    far = level >= FACTOR * usual or level <= usual / FACTOR
    return far and abs(level - usual) >= LEAST_CHANGE


def _is_same(a: float, b: float | None) -> bool:
    return b is not None and abs(a - b) <= max(STILL * abs(b), STILL_LEAST)
