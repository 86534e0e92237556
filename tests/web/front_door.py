"""The served door as a front end sees it: a process of its own, and HTTP."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import httpx

from deployments.machine import free_port
from tests.polling import wait_until

TOKEN = "-".join(["a", "long", "one"] * 4)


class FrontDoor:
    """`checkout serve` in a process of its own, without any server of Prefect."""

    def __init__(self, store_url: str, log: Path) -> None:
        self.log = log
        self._environment = {
            **{name: value for name, value in os.environ.items() if "PREFECT_API" not in name},
            "STORE_DATABASE_URL": store_url,
            "STORE_FRONT_END_TOKENS": f"web:{TOKEN}, app:{TOKEN[::-1]}",
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()
        self.end(signal.SIGTERM)

    def start(self) -> None:
        port = free_port(0)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "console.main", "serve", "--port", str(port)],
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=60,
        )
        wait_until(self._answers, "answer of the door")

    def start_unless_up(self) -> None:
        """Start it again if a test has killed it."""
        if self._process.poll() is not None:
            self.client.close()
            self.start()

    def end(self, how: signal.Signals) -> None:
        self._process.send_signal(how)
        self._process.wait(timeout=60)

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        try:
            return self.client.get("/health").is_success
        except httpx.TransportError:
            return False
