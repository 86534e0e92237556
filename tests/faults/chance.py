"""Every decision of a simulation, drawn from one seed, recorded, and replayable without it.

A decision is a number below a bound. Zero always means the dull choice: no fault, go on with the
same process, the shortest time. So a failing run shrinks by turning its decisions to zero.
"""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

LARGEST_CHUNK = 4096
"""More decisions than a run usually takes, so that shrinking first tries to turn off everything."""


class Chance:
    """The source of decisions: a seed, or the decisions of an earlier run."""

    def __init__(self, seed: int, replayed: Sequence[int] | None = None) -> None:
        self.taken: list[int] = []
        self._random = random.Random(seed)  # noqa: S311  (reproducible, not secret)
        self._replayed = replayed

    def number(self, bound: int) -> int:
        """Return a number from 0 up to, and without, ``bound``."""
        return self._take(lambda: self._random.randrange(bound), bound)

    def happens(self, probability: float) -> bool:
        """Say whether something with this probability happens; nothing, if it is zero."""
        if probability <= 0:
            return False
        return bool(self._take(lambda: int(self._random.random() < probability), 2))

    def one_of(self, options: Sequence[T]) -> T:
        """Return one of the options; the first one is the dull one."""
        return options[self.number(len(options))]

    def weighted(self, options: Sequence[T], weights: Sequence[float]) -> T:
        """Return one of the options, by weight; the first one is the dull one."""
        numbers = range(len(options))
        drawn = self._take(lambda: self._random.choices(numbers, weights)[0], len(options))
        return options[drawn]

    def unrecorded_id(self) -> int:
        """Return 128 bits for an id: they decide nothing, so they are no decision."""
        return self._ids.getrandbits(128)

    def _take(self, draw: Callable[[], int], bound: int) -> int:
        if self._replayed is None:
            drawn = draw()
        else:
            place = len(self.taken)
            drawn = min(self._replayed[place], bound - 1) if place < len(self._replayed) else 0
        self.taken.append(drawn)
        return drawn

    @property
    def _ids(self) -> random.Random:
        # Apart from the decisions, so that an id more or less changes none of them.
        if not hasattr(self, "_id_source"):
            self._id_source = random.Random(0)  # noqa: S311  (reproducible, not secret)
        return self._id_source


def shrink(decisions: Sequence[int], still_fails: Callable[[list[int]], bool]) -> list[int]:
    """Return decisions that still fail, with as many of them as possible turned to zero.

    Args:
        decisions: The decisions of a failing run.
        still_fails: Runs a simulation on decisions; the ones it is given may be cut short.
    """
    best = _without_tail(decisions)
    size = min(LARGEST_CHUNK, max(1, len(best)))
    while size >= 1:
        start = 0
        while start < len(best):
            chunk = best[start : start + size]
            if any(chunk):
                tried = _without_tail([*best[:start], *[0] * len(chunk), *best[start + size :]])
                if still_fails(tried):
                    best = tried
            start += size
        size //= 2
    return best


def _without_tail(decisions: Sequence[int]) -> list[int]:
    """Cut the zeros at the end off: they are what comes anyway."""
    kept = len(decisions)
    while kept and not decisions[kept - 1]:
        kept -= 1
    return list(decisions[:kept])
