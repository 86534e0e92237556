"""The whole system on this machine, until Ctrl-C.

    python -m deployments.up

`PREFECT_SERVER_API_AUTH_STRING`, a `user:password`, has its server answer nobody without it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import httpx
from rich.console import Console
from rich.text import Text

from deployments.example_order import FIRST_ORDER
from deployments.local import CHECKOUT_DEPLOYMENT, DISPATCH_DEPLOYMENT, PROJECT_DIR, LocalSystem
from deployments.machine import SetupError, exit_on_signals
from deployments.progress import Progress
from terminal.command_line import command

# How soon somebody who watches is told that a part has ended by itself.
_LOOK_SECONDS = 2.0


def environment_file(settings: dict[str, str]) -> str:
    """Return the settings and the PATH as a file to source."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(settings.items())]
    tools = shlex.quote(str(Path(sys.executable).parent))
    return "\n".join([*lines, f'export PATH={tools}:"$PATH"', ""])


def write_environment_file(path: Path, settings: dict[str, str]) -> None:
    """Write a file to source, readable by its owner only."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(environment_file(settings))


def up(data_dir: Path, progress: Progress, auth: str | None, *, by_hand: bool = False) -> None:
    """Start the system, print its usage, and wait for a signal.

    Args:
        data_dir: The folder with its data.
        progress: Where it prints how far it is.
        auth: The `user:password` that its server asks for; None for none.
        by_hand: Whether a person answers each order: the dispatcher is switched off.

    Raises:
        SetupError: it cannot be started, or a part of it has ended by itself.
    """
    env_file = data_dir / "env"
    with ExitStack() as stack:
        with progress.unbroken():
            system = stack.enter_context(LocalSystem(data_dir, report=progress, auth=auth))
        write_environment_file(env_file, system.settings())
        try:
            is_off = _switch_dispatcher(system, by_hand=by_hand)
            _print_invitation(progress.console, system, env_file, is_off=is_off)
            # A signal is the regular end of a system that is up, and no failure.
            with contextlib.suppress(SystemExit):
                while True:
                    system.require_running()
                    time.sleep(_LOOK_SECONDS)
        finally:
            # It would lead to a server that is gone.
            env_file.unlink(missing_ok=True)


def _switch_dispatcher(system: LocalSystem, *, by_hand: bool) -> bool:
    """Start the dispatcher unless it is off, and return whether it is.

    Raises:
        SetupError: the server does not answer any more.
    """
    try:
        with system.api() as api:
            if by_hand:
                api.pause(DISPATCH_DEPLOYMENT)
            is_off = bool(api.is_paused(DISPATCH_DEPLOYMENT))
            if not is_off:
                # Now, not at the schedule's next time: a waiting order is answered at once.
                api.start_run(DISPATCH_DEPLOYMENT, {})
            return is_off
    except httpx.HTTPError as error:
        # Its end explains it better.
        system.require_running()
        raise SetupError(
            f"The Prefect server has stopped answering ({error!r}; {system.logs_dir}/server.log). "
            "Start again; orders and runs are kept."
        ) from error


def auth_string(environment: Mapping[str, str]) -> str | None:
    """Return the `user:password` that the environment sets for the server.

    Raises:
        SetupError: it is none.
    """
    found = environment.get("PREFECT_SERVER_API_AUTH_STRING", "")
    user, colon, password = found.partition(":")
    if found and not (user and colon and password):
        raise SetupError("PREFECT_SERVER_API_AUTH_STRING (`make up AUTH=…`) must be user:password.")
    return found or None


def _print_invitation(
    console: Console, system: LocalSystem, env_file: Path, *, is_off: bool
) -> None:
    checkout = f"prefect deployment run '{CHECKOUT_DEPLOYMENT}' --param order='{FIRST_ORDER}'"
    console.print(f"\nThe store is up. Prefect UI: [link]{system.ui_url}[/link]\n")
    console.print("In another terminal:")
    for line in (
        f"  . {shlex.quote(str(env_file))}",
        f"  {checkout}",
        "  checkout show first",
        "  checkout list",
    ):
        console.print(Text(line, style="bold"), soft_wrap=True)
    if is_off:
        console.print(
            "\nThe dispatcher is off: answer each order on its run's page (Resume), or call"
        )
        console.print(Text("  checkout dispatcher on", style="bold"))
    console.print("\nCtrl-C here ends all of it; orders and runs are kept for the next time.")


@command("python -m deployments.up", __doc__)
def main(*, data: Path = PROJECT_DIR / ".local", answer: Literal["by-hand"] | None = None) -> int:
    """Keep the system up until Ctrl-C.

    Args:
        data: Its data folder.
        answer: by-hand switches the dispatcher off, so that you answer each waiting order.
    """
    progress = Progress(Console())
    with exit_on_signals():
        progress("Starting takes half a minute on a quiet machine, two on a busy one.")
        up(data.resolve(), progress, auth_string(os.environ), by_hand=answer == "by-hand")
    return 0


if __name__ == "__main__":
    sys.exit(main())
