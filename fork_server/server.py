"""The fork server, which forks a child for each client's flow run.

    python server.py SOCKET WORKER PROJECT ENGINE MODULE …

It starts no thread and connects to nothing, and refuses to fork if it finds a thread in itself. A
child has the environment, working directory and streams of its client, its own session, and
nothing of the server but code. WORKER is the process whose runs it starts. The server ends when its
children have ended and it is told to end, its worker is gone, or no client has come for a while.
"""

import array
import contextlib
import gc
import json
import logging
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # Wherever this folder lies, the modules beside this one are found in it.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from fork_server.child import (
    Request,
    become,
    die_with,
    leave,
    refresh_settings,
    settings_sources,
    status_of,
)
from fork_server.imports import import_all

logger = logging.getLogger("fork_server")

IDLE_SECONDS = float(os.environ.get("FORK_SERVER_IDLE_SECONDS", "600"))
"""After so long without a child and without a client it ends; the next run starts another one."""
LONGEST_REQUEST = 4 * 1024 * 1024
"""Bytes of a request; an environment may have two megabytes."""
REQUEST_SECONDS = 10.0
"""How long a client may take to send its request; it sends it at once."""
REFUSED_SECONDS = 0.5
SPARE_FILES = 32
"""Files that the server may need beside one for each child."""
READY, GO, FORKED, STATUS = "ready", "go", "forked", "status"
"""The words of the talk with a client."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass
class Child:
    """A forked run, with the connection to its client."""

    pid: int
    connection: socket.socket
    orders: bytes = b""


def main(arguments: list[str]) -> int:
    """Serve until idle, or run the engine in a child.

    A child does not return.
    """
    path, worker, root, engine, *modules = arguments
    sys.path[0] = root
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # Without a collection there are no holes in the pages that the children share.
    gc.disable()
    sources = settings_sources(os.environ, str(Path.cwd()))
    import_all([engine, *modules])
    request = Server(path, int(worker)).serve()
    if request is not None:
        become(request)
        if "prefect" in sys.modules and settings_sources(os.environ, request.folder) != sources:
            # It takes a quarter of what a run costs, and a fork has them from its server.
            refresh_settings()
        leave(status_of(engine))
    return 0


class Server:
    """The socket, the children, and the loop over both."""

    def __init__(self, path: str, worker: int) -> None:
        self._path = Path(path)
        self._since = time.time()
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        # The name of a socket is at most 107 bytes long, which a folder's may exceed.
        folder = os.open(self._path.parent, os.O_PATH | os.O_CLOEXEC)
        before = os.umask(0o177)
        try:
            self._listener.bind(f"/proc/self/fd/{folder}/{self._path.name}")
            self._inode = self._path.stat().st_ino
        finally:
            os.umask(before)
            os.close(folder)
        self._listener.listen(128)
        self._children: dict[int, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._ends = False
        for number in ENDING:
            signal.signal(number, self._told_to_end)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._worker = _watched(worker)
        if self._worker is not None:
            self._selector.register(self._worker, selectors.EVENT_READ)
        # Each child takes one of them.
        self._files = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = self._files[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        unlimited = most == resource.RLIM_INFINITY
        self._most_children = sys.maxsize if unlimited else most - SPARE_FILES

    def serve(self) -> Request | None:
        """Fork for each client and return its request in the child.

        None is returned in the server, at its end.
        """
        last_busy = time.monotonic()
        while self._children or not self._is_done(last_busy):
            for key, _ in self._selector.select(timeout=IDLE_SECONDS / 10):
                last_busy = time.monotonic()
                if key.fileobj is self._listener:
                    request = self._accept()
                    if request is not None:
                        return request
                elif key.fileobj == self._woken:
                    os.read(self._woken, 4096)
                elif key.fileobj == self._worker:
                    self._selector.unregister(key.fileobj)
                    self._ends = True
                else:
                    self._hear(key.data)
            if self._reap():
                last_busy = time.monotonic()
            if self._ends:
                self._close_listener()
        self._close_listener()
        logger.info("ended, without a child")
        return None

    def _is_done(self, last_busy: float) -> bool:
        return self._ends or time.monotonic() - last_busy >= IDLE_SECONDS

    def _told_to_end(self, *_: object) -> None:
        # Its children are left alone: they have signals of their own, or have had this one too.
        self._ends = True

    def _close_listener(self) -> None:
        """Stop accepting clients, so that the next starts another server."""
        if self._listener.fileno() != -1:
            # A successor may have bound its own there: once this one is closed, or after a client
            # was killed while it started this one.
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_ino == self._inode:
                    self._path.unlink()
            self._selector.unregister(self._listener)
            self._listener.close()

    def _accept(self) -> Request | None:
        """Accept a client, fork, and return the request in the child."""
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            logger.error("no client could be accepted: %s", error)
            # It still waits, and what the machine lacks may come back.
            time.sleep(REFUSED_SECONDS)
            return None
        connection.settimeout(REQUEST_SECONDS)
        try:
            require_same_user(connection)
            request = receive(connection)
        except (OSError, ValueError, KeyError) as error:
            logger.warning("a client was refused: %s", error)
            connection.close()
            return None
        if request is None:
            self._report(connection)
            return None
        return self._fork(connection, request)

    def _report(self, connection: socket.socket) -> None:
        """Report the server's status to a client without a run."""
        status = {"pid": os.getpid(), "since": self._since, "children": len(self._children)}
        with contextlib.suppress(OSError):
            connection.sendall(json.dumps(status).encode() + b"\n")
        connection.close()

    def _fork(self, connection: socket.socket, request: Request) -> Request | None:
        # A signal for the child that comes before it is ready for it waits.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            self._require_room()
            # A client that has waited too long has become its run itself.
            connection.sendall(f"{READY}\n".encode())
            if connection.recv(16) != f"{GO}\n".encode():
                raise ValueError("the client waits no longer")
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                self._close_in_child(connection)
                die_with(parent)
                return request
            self._children[pid] = Child(pid, connection)
            self._selector.register(connection, selectors.EVENT_READ, self._children[pid])
            # A client that is gone by now is noticed by the end of its connection.
            with contextlib.suppress(OSError):
                connection.sendall(f"{FORKED}\n".encode())
        except (OSError, ValueError) as error:
            logger.error("no fork: %s", error)
            with contextlib.suppress(OSError):
                connection.sendall(f"{error}\n".encode())
            connection.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        request.close()
        return None

    def _require_room(self) -> None:
        """Refuse to fork where a fork would be unsafe.

        Raises:
            ValueError: it would; the message says why.
        """
        if problem := why_not_to_fork():
            raise ValueError(problem)
        if len(self._children) >= self._most_children:
            raise ValueError(f"the fork server has {len(self._children)} children, its most")

    def _close_in_child(self, connection: socket.socket) -> None:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *ENDING):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        resource.setrlimit(resource.RLIMIT_NOFILE, self._files)
        self._selector.close()
        self._listener.close()
        for child in self._children.values():
            child.connection.close()
        connection.close()
        os.close(self._woken)
        os.close(self._wake)
        if self._worker is not None:
            os.close(self._worker)

    def _hear(self, child: Child) -> None:
        """Signal a child for its client, or kill it without one."""
        try:
            received = child.connection.recv(4096)
        except OSError:
            received = b""
        if not received:
            self._signal(child, signal.SIGKILL)
            self._selector.unregister(child.connection)
            child.connection.close()
            return
        *orders, child.orders = (child.orders + received).split(b"\n")
        for number in orders:
            try:
                self._signal(child, int(number))
            except (ValueError, OSError) as error:
                logger.warning("%d was not signalled %r: %s", child.pid, number, error)

    def _signal(self, child: Child, number: int) -> None:
        if child.pid in self._children:
            os.kill(child.pid, number)

    def _reap(self) -> bool:
        """Report ended children to their clients and return whether any ended."""
        has_reaped = False
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            has_reaped = True
            child = self._children.pop(pid)
            if child.connection.fileno() == -1:
                continue
            try:
                child.connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            except OSError as error:
                logger.info("the client of %d is gone: %s", pid, error)
            self._selector.unregister(child.connection)
            child.connection.close()
        return has_reaped


def _watched(worker: int) -> int | None:
    """Return a descriptor that is readable when the worker has ended."""
    try:
        return os.pidfd_open(worker)
    except OSError as error:
        logger.info("the end of the worker %d will not be seen: %s", worker, error)
        return None


def require_same_user(connection: socket.socket) -> None:
    """Refuse a client of another user.

    The folder's mode keeps them out already.

    Raises:
        PermissionError: the client's user is another one.
    """
    given = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", given)
    if user != os.getuid():
        raise PermissionError(f"user {user} may not ask user {os.getuid()} for a run")


def receive(connection: socket.socket) -> Request | None:
    """Read a client's request and streams, None for a status request.

    Raises:
        OSError: it does not come in time.
        ValueError: it is none.
    """
    message, ancillary, _, _ = connection.recvmsg(65_536, socket.CMSG_SPACE(3 * 4))
    streams = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            streams.frombytes(data)
    try:
        while not message.endswith(b"\n"):
            more = connection.recv(65_536)
            if not more or len(message) > LONGEST_REQUEST:
                raise ValueError("its request is not whole")
            message += more
        given = json.loads(message)
        if given == STATUS and not streams:
            return None
        if len(streams) != 3:
            raise ValueError(f"it brought {len(streams)} streams instead of 3")
        return Request(given["environment"], given["folder"], given["umask"], list(streams))
    except (OSError, ValueError, KeyError):
        # Whoever reads an open stream would wait for this server's end.
        for stream in streams:
            os.close(stream)
        raise


def why_not_to_fork() -> str:
    """Return why this process must not be forked, if it must not.

    A thread is not there in the child, but the locks that it held are.
    """
    threads = len(list(Path("/proc/self/task").iterdir()))
    return "" if threads == 1 else f"the fork server has {threads} threads and forks no more"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
