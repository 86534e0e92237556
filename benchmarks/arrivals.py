"""The measured process of a shop's customers, who send orders to the door as they please.

The times between two orders are those of a Poisson process. None waits for the answer to another.
"""

import http.client
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.ground import an_order, answer

CLIENTS = 32
"""Connections of the front end; with fewer an order would wait for the answers to others."""


def main(port: int, token: str, rate: float, seconds: float) -> None:
    """Send orders for so long; those that are late are sent at once."""
    chance = random.Random(f"{rate}")  # noqa: S311  (reproducible, not secret)
    connections = threading.local()
    headers = {"Authorization": f"Bearer {token}"}

    def send(body: str) -> int:
        if not hasattr(connections, "one"):
            connections.one = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connections.one.request("POST", "/orders", body, headers)
        response = connections.one.getresponse()
        response.read()
        return int(response.status)

    count = int(rate * seconds)
    bodies = [an_order(number).model_dump_json(by_alias=True) for number in range(count)]
    began = due = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as clients:
        sent = []
        for body in bodies:
            due += chance.expovariate(rate)
            time.sleep(max(0.0, due - time.monotonic()))
            sent.append(clients.submit(send, body))
        statuses = [each.result() for each in sent]
    assert set(statuses) == {201}, f"the door answered {set(statuses)}"
    answer(orders=count, seconds=time.monotonic() - began)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
