"""The client that represents a forked flow run to its worker.

The command of a process work pool:

    python -I -S fork_server/client.py FOLDER PROJECT ENGINE MODULE …

FOLDER is where the fork server has its socket, with environment variables as ``$NAME``; PROJECT the
folder from which the flows are imported, ENGINE the module that a run executes
(``prefect.engine``), and each MODULE is imported beforehand.

It hands its environment, working directory and standard streams to the fork server, asks it to
signal the child whenever it is signalled itself, and ends as the child ends. If it is killed, the
fork server kills the child. The first client of a worker starts its fork server. Where there is
none to be had it becomes the run itself, as without a fork server, and says so on standard error.

Only the standard library is imported, and little of it: each run waits for this file.
"""

from __future__ import annotations

import array
import fcntl
import hashlib
import json
import os
import signal
import socket
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    # It would be a fifth of what a client costs.
    from typing import NoReturn

SERVER_SECONDS = 60.0
"""How long a fork server may take to import its modules, on a busy machine."""
ANSWER_SECONDS = 30.0
"""How long it may take to be ready for a run, which takes it milliseconds."""
READY, GO, FORKED = "ready", "go", "forked"
"""A fork server forks only when the client, told that it is ready, has said that it still waits."""
POLL_SECONDS = 0.02
PREFECT_HOME = "~/.prefect"
"""What Prefect takes for its home where no variable of this name is set."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Unavailable(Exception):
    """No fork server is available, for the message's reason."""


def main(arguments: list[str]) -> int:
    """Run the engine in a fork and end as it ends."""
    folder, root, engine, *modules = arguments
    try:
        if not sys.platform.startswith("linux"):
            raise Unavailable(f"it needs Linux; this is {sys.platform}")
        connection = _ask(_private(folder), os.path.abspath(root), [engine, *modules])
    except (OSError, Unavailable) as error:
        _start_cold(engine, error)
    return _wait(connection)


def _private(folder: str) -> str:
    """Return the sockets' folder, which no other user may enter."""
    if "PREFECT_HOME" not in os.environ:
        folder = folder.replace("$PREFECT_HOME", PREFECT_HOME)
    folder = os.path.expanduser(os.path.expandvars(folder))
    if "$" in folder:
        raise Unavailable(f"{folder} names an environment variable that is not set")
    if not os.path.isabs(folder):
        # Each working directory would have a fork server of its own.
        raise Unavailable(f"{folder} is no absolute path")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise Unavailable(f"{folder} must be a folder of this user's with mode 700")
    return folder


def fingerprint(root: str, modules: list[str], environment: dict[str, str]) -> str:
    """Return the fingerprint of code, packages and Prefect's settings.

    Runs of one fingerprint share a fork server.

    Modules read Prefect's settings when they are imported, so a run with other ones gets another
    fork server. ``PREFECT__…`` belongs to a single run.
    """
    digest = hashlib.sha256(repr((sys.executable, sys.version, root, modules)).encode())
    for name in sorted(environment):
        if name.startswith(("PREFECT_", "PYTHON")) and not name.startswith("PREFECT__"):
            digest.update(os.fsencode(f"{name}={environment[name]}\0"))
    library = os.path.join(os.path.dirname(os.path.dirname(sys.executable)), "lib")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = os.path.join(library, version, "site-packages")
    if os.path.isdir(packages):
        # Each installed package has such a folder, made with it. That of all changes when a
        # module is compiled, too.
        for entry in sorted(os.scandir(packages), key=lambda entry: entry.name):
            if entry.name.endswith(".dist-info"):
                digest.update(os.fsencode(f"{entry.name} {entry.stat().st_mtime_ns}\0"))
    return f"{code_version(root)}-{digest.hexdigest()[:12]}"


def code_version(root: str) -> str:
    """Return twelve hexadecimal digits for a folder's present Python code."""
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f[0] not in "._" and f != "node_modules")
        for name in sorted(files):
            if name.endswith(".py"):
                found = os.stat(os.path.join(folder, name))
                file = f"{folder}/{name} {found.st_mtime_ns} {found.st_size}\0"
                digest.update(os.fsencode(file))
    return digest.hexdigest()[:12]


def _ask(folder: str, root: str, modules: list[str]) -> socket.socket:
    """Request a fork and return the connection that represents the child.

    Each worker, which is this process's parent, has a fork server of its own: what ends one
    worker's processes must not end the runs of another.

    Raises:
        Unavailable: it does not come in time, or refuses. It has not forked then, and will not.
    """
    found = fingerprint(root, modules, dict(os.environ))
    path = os.path.join(folder, f"{found}-{os.getppid()}.socket")
    deadline = time.monotonic() + SERVER_SECONDS
    # A fork server that ends for want of work may do so just now.
    for _ in range(2):
        connection = _connect(path) or _connect_to_new(path, root, modules, deadline)
        answer = _request(connection)
        if answer == READY:
            # From here on there may be a child, so this run starts cold only if the fork server
            # says that there is none: two processes of one run must never be.
            connection.settimeout(None)
            _say(connection, GO)
            answer = _line(connection)
            if answer in (FORKED, ""):
                return connection
        connection.close()
        if answer:
            raise Unavailable(answer)
    raise Unavailable("the fork server ended before it was ready")


def _say(connection: socket.socket, what: str) -> None:
    try:
        connection.sendall(f"{what}\n".encode())
    except OSError:
        return  # the fork server has ended, which is met where its next word is awaited


def _connect(path: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    # The name of a socket is at most 107 bytes long, which a folder's may exceed.
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    finally:
        os.close(folder)
    return connection


def _connect_to_new(path: str, root: str, modules: list[str], deadline: float) -> socket.socket:
    """Start a fork server, or wait for another client's."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Unavailable("another run has been starting it for too long") from None
                time.sleep(POLL_SECONDS)
        connection = _connect(path)
        if connection is not None:
            return connection
        server = _start_server(path, root, modules)
        while time.monotonic() < deadline:
            connection = _connect(path)
            if connection is not None:
                return connection
            if os.waitpid(server, os.WNOHANG) != (0, 0):
                raise Unavailable(f"it ended at its start; see {path}.log")
            time.sleep(POLL_SECONDS)
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
        raise Unavailable(f"it was not ready in {SERVER_SECONDS:.0f} s; see {path}.log")
    finally:
        os.close(lock)


def _start_server(path: str, root: str, modules: list[str]) -> int:
    """Start a fork server apart from this run and return its id."""
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "server.py")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT__")}
    log = os.open(f"{path}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        return os.posix_spawn(
            sys.executable,
            [sys.executable, program, path, str(os.getppid()), root, *modules],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(log)
        os.close(null)


def _request(connection: socket.socket) -> str:
    """Send a run's environment and return the answer, empty without a server."""
    given = {"environment": dict(os.environ), "folder": os.getcwd(), "umask": _umask()}
    streams = array.array("i", [0, 1, 2])
    message = json.dumps(given).encode() + b"\n"
    connection.settimeout(ANSWER_SECONDS)
    try:
        sent = connection.sendmsg(
            [message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams.tobytes())]
        )
        connection.sendall(message[sent:])
    except (BrokenPipeError, ConnectionResetError):
        pass  # a fork server that has refused already, and closed, has said why
    return _line(connection)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _line(connection: socket.socket) -> str:
    """Return the next line, empty if the fork server has ended."""
    received = b""
    while not received.endswith(b"\n"):
        try:
            byte = connection.recv(1)
        except ConnectionResetError:
            return ""
        if not byte:
            return ""
        received += byte
    return received.decode().strip()


def _wait(connection: socket.socket) -> int:
    """Forward signals until the child ends, and return its status."""

    def forward(number: int, _frame: object) -> None:
        # The fork server signals: it knows whether the process id still is the child's.
        _say(connection, str(number))

    for number in FORWARDED:
        signal.signal(number, forward)
    status = _line(connection)
    # Without a status the fork server was killed, and its children with it.
    code = int(status) if status else -signal.SIGKILL
    if code >= 0:
        return code
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    return 128 - code


def _start_cold(engine: str, error: Exception) -> NoReturn:
    """Become the run itself."""
    sys.stderr.write(f"This run starts cold, without the fork server: {error}\n")
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", engine])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
