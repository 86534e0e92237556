"""Run any number of simulations, or one again.

python -m tests.faults --number 10000          seeds from 0 on, until one fails
python -m tests.faults --seed 4711             this one again, told in full
python -m tests.faults --seed 4711 --shrink    with as few faults as still make it fail
"""

import os
import sys
import tempfile
import time
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from terminal.command_line import Flag, command
from terminal.numbers import WholeNumber

if TYPE_CHECKING:
    from tests.faults.simulation import Outcome

console = Console(soft_wrap=True)


@command("python -m tests.faults", __doc__)
def main(
    *,
    number: WholeNumber = 200,
    first: WholeNumber = 0,
    seed: WholeNumber | None = None,
    shrink: Flag = False,
) -> int:
    """Simulate the seeds; return 1 if one fails.

    Args:
        number: How many seeds.
        first: The first seed.
        seed: Run this seed alone and tell its story.
        shrink: With --seed: leave faults out.
    """
    # Prefect reads its settings when it is imported, and no server may be looked for.
    os.environ["PREFECT_SERVER_EPHEMERAL_ENABLED"] = "false"
    os.environ.pop("PREFECT_API_URL", None)
    with tempfile.TemporaryDirectory(prefix="store-faults-prefect-") as home:
        os.environ["PREFECT_HOME"] = home
        from tests.faults.databases import new_database, new_server

        with new_server() as server, new_database(server) as url:
            if seed is not None:
                return _one(seed, url, shrinks=shrink)
            return _many(_seeds(first, number), url)


def _seeds(first: int, number: int) -> list[int]:
    """Return so many seeds, each third one with batches that listen."""
    from tests.faults.world import LISTENING_SEEDS

    return [
        seed + LISTENING_SEEDS if seed % 3 == 2 else seed for seed in range(first, first + number)
    ]


def _many(seeds: list[int], url: str) -> int:
    from tests.faults.simulation import simulate

    endings: Counter[str] = Counter()
    turns = 0
    began = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("seeds", total=len(seeds))
        for seed in seeds:
            outcome = simulate(seed, url)
            endings.update(outcome.endings)
            turns += outcome.turns
            progress.advance(bar)
            if outcome.violation is not None:
                break
    seconds = time.monotonic() - began
    if outcome.violation is not None:
        tell(outcome)
        return 1
    attempts = ", ".join(f"{count} {status}" for status, count in sorted(endings.items()))
    console.print(
        f"{len(seeds)} seeds, {turns} turns in {seconds:.0f} s "
        f"({len(seeds) / seconds:.1f} seeds/s). Every invariant held. Attempts: {attempts}."
    )
    return 0


def _one(seed: int, url: str, *, shrinks: bool) -> int:
    from tests.faults.chance import shrink
    from tests.faults.simulation import simulate

    outcome = simulate(seed, url)
    violation = outcome.violation
    if violation is not None and shrinks:
        tried = 0

        def still_fails(decisions: list[int]) -> bool:
            nonlocal tried
            tried += 1
            status.update(f"shrinking, try {tried}")
            again = simulate(seed, url, decisions).violation
            return again is not None and again.invariant == violation.invariant

        with console.status("shrinking") as status:
            kept = shrink(outcome.decisions, still_fails)
        outcome = simulate(seed, url, kept)
        console.print(
            f"Shrunk to {sum(map(bool, kept))} decisions that are not the dull ones, "
            f"in {tried} tries."
        )
    tell(outcome)
    return 1 if violation is not None else 0


def tell(outcome: "Outcome") -> None:
    """Print what happened in a simulation, and what was wrong at its end."""
    for line in outcome.story:
        console.print(line, markup=False, highlight=False)
    if outcome.violation is None:
        console.print(f"Seed {outcome.seed}: every invariant held.")
        return
    console.print(
        f"Seed {outcome.seed} breaks {outcome.violation.invariant}: {outcome.violation.sentence}",
        style="bold red",
        markup=False,
    )
    console.print(f"Again: make faults SEED={outcome.seed}")


if __name__ == "__main__":
    sys.exit(main())
