"""Progress lines of a start or a stop."""

import time

from rich.console import Console
from rich.text import Text


class Progress:
    """Lines on the terminal, each with the seconds since the start."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started = time.monotonic()

    def __call__(self, line: str) -> None:
        """Print one line."""
        stamp = f"{time.monotonic() - self._started:6.1f} s  "
        self.console.print(Text.assemble((stamp, "dim"), line), soft_wrap=True)
