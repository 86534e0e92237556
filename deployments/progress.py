"""Progress lines of a start or a stop."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

SILENCE_SECONDS = 4.0
"""Long enough not to chatter, short enough that nobody thinks it hangs."""


class Progress:
    """Lines on the terminal, each with the seconds since the start."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started = self._last = time.monotonic()
        self._under_way = ""

    def __call__(self, line: str) -> None:
        """Print one line."""
        self._last = time.monotonic()
        self._under_way = line
        self._print(line)

    @contextmanager
    def unbroken(self) -> Iterator[None]:
        """Print what is under way after each few seconds of silence."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(SILENCE_SECONDS / 4):
                if time.monotonic() - self._last >= SILENCE_SECONDS:
                    self._last = time.monotonic()
                    self._print(f"  still: {self._under_way}")

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()

    def _print(self, line: str) -> None:
        stamp = f"{time.monotonic() - self._started:6.1f} s  "
        self.console.print(Text.assemble((stamp, "dim"), line), soft_wrap=True)
