"""Importing the flow `store_checkout` against importing what it uses of Prefect.

Each import is a process of its own, in turns; the processor time of the fastest, since whatever
else the machine does only adds to it. The third row says what the two libraries of the database
add by themselves.
"""

import os
import subprocess
import sys
from collections import defaultdict

from rich.console import Console
from rich.table import Table

from benchmarks.ground import Ground

ROUNDS = 9
GOAL = 1.15
PREFECT = "from prefect import flow, get_client, pause_flow_run, runtime, suspend_flow_run, task"
IMPORTS = {
    "Prefect": PREFECT,
    "Prefect, SQLAlchemy and SQLModel": f"{PREFECT}\nimport sqlalchemy, sqlmodel",
    "flows.checkout": "import flows.checkout",
    "flows.batch": "import flows.batch",
}


def run(ground: Ground, console: Console) -> None:
    """Measure and print."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for name, statement in IMPORTS.items():
            before = os.times()
            subprocess.run([sys.executable, "-c", statement], env=ground.environment(), check=True)
            after = os.times()
            seconds[name].append(
                after.children_user
                + after.children_system
                - before.children_user
                - before.children_system
            )
    prefect = min(seconds["Prefect"])
    table = Table("import", "s of processor", f"ratio to Prefect (goal {GOAL})")
    for name, measured in seconds.items():
        table.add_row(name, f"{min(measured):.2f}", f"{min(measured) / prefect:.2f}")
    console.print(table)
