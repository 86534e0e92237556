"""A proxy before Prefect's server that notes what is asked of it."""

import re
import select
import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit

REQUEST = re.compile(rb"^(GET|POST|PATCH|PUT|DELETE) (\S+) HTTP/1\.1\r\n", re.MULTILINE)


class CountingProxy:
    """Passes every byte on, and notes each request's method and path.

    It ends with the process, and holds one listening socket until then.

    Args:
        target: The address of the server, as `http://host:port/api`.
    """

    def __init__(self, target: str) -> None:
        address = urlsplit(target)
        self._target = (address.hostname or "127.0.0.1", address.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}{address.path}"
        self.requests: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Pass on what either side sends, until one of them ends the connection."""
        with client, suppress(OSError), socket.create_connection(self._target) as server:
            sides = {client: server, server: client}
            while True:
                for source in select.select(list(sides), [], [])[0]:
                    received = source.recv(65_536)
                    if not received:
                        return
                    if source is client:
                        self._note(received)
                    sides[source].sendall(received)

    def _note(self, received: bytes) -> None:
        for method, path in REQUEST.findall(received):
            self.requests.append(f"{method.decode()} {path.decode().partition('?')[0]}")
