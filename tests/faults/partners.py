"""The partners outside the database: gateway, queue and topic, each with its faults.

Each is the store's own embedded one, reached over a bad line: a call may not arrive, its answer
may be lost, it may arrive late, twice, or in another order.
"""

from collections.abc import Sequence

from store.embedded_gateway import EmbeddedGateway
from store.errors import QueueUnavailable, TopicUnavailable
from store.notifications import Notice
from store.payments import Answer, Charge
from store.queue import ReceivedMessage
from store.table_queue import TableQueue
from store.table_topic import TableTopic
from tests.faults.world import World

LATE_SECONDS = [5.0, 60.0, 900.0]


class BadLineGateway:
    """The ledger behind a bad line."""

    def __init__(self, world: World) -> None:
        self._world = world

    def capture(self, charges: Sequence[Charge]) -> dict[str, Answer]:
        world = self._world
        world.boundary("the charge")
        match world.fault(
            world.rates.gateway,
            [
                "the charge does not arrive",
                "the charge's answer is lost",
                "the charge arrives late",
                "the charge arrives twice, once late",
            ],
            lasting_in="charges",
        ):
            case "the charge does not arrive":
                return _unknown(charges)
            case "the charge arrives late":
                self._later(charges)
                return _unknown(charges)
            case "the charge's answer is lost":
                EmbeddedGateway().capture(charges)
                return _unknown(charges)
            case "the charge arrives twice, once late":
                self._later(charges)
        return EmbeddedGateway().capture(charges)

    def refund(self, charges: Sequence[Charge]) -> dict[str, Answer]:
        world = self._world
        world.boundary("the refund")
        match world.fault(
            world.rates.gateway,
            [
                "the refund does not arrive",
                "the refund's answer is lost",
                "the refund arrives twice, once late",
            ],
            lasting_in="refunds",
        ):
            case "the refund does not arrive":
                return _unknown(charges)
            case "the refund's answer is lost":
                EmbeddedGateway().refund(charges)
                return _unknown(charges)
            case "the refund arrives twice, once late":
                delay = world.chance.one_of(LATE_SECONDS)
                world.start("late refund", lambda: EmbeddedGateway().refund(charges), delay=delay)
        return EmbeddedGateway().refund(charges)

    def _later(self, charges: Sequence[Charge]) -> None:
        delay = self._world.chance.one_of(LATE_SECONDS)
        self._world.start("late charge", lambda: EmbeddedGateway().capture(charges), delay=delay)


def _unknown(charges: Sequence[Charge]) -> dict[str, Answer]:
    return {charge.key: Answer("unknown", charge.key, "no answer") for charge in charges}


class BadLineQueue(TableQueue):
    """The table queue behind a bad line."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def send(self, bodies: Sequence[str]) -> None:
        if not bodies:
            return
        world = self._world
        world.boundary("sending a message")
        match world.fault(
            world.rates.queue,
            [
                "the queue is away",
                "the queue's answer is lost",
                "the message is lost",
                "the message is sent twice",
                "the message comes late",
            ],
        ):
            case "the queue is away":
                raise QueueUnavailable("away")
            case "the queue's answer is lost":
                super().send(bodies)
                raise QueueUnavailable("no answer")
            case "the message is lost":
                return
            case "the message is sent twice":
                super().send(bodies)
            case "the message comes late":
                delay = world.chance.one_of(LATE_SECONDS)
                world.start("late message", lambda: TableQueue().send(bodies), delay=delay)
                return
        super().send(bodies)

    def receive(self, limit: int, wait_seconds: float) -> list[ReceivedMessage]:
        world = self._world
        kind = world.fault(
            world.rates.queue,
            ["the queue is away", "received messages are lost", "messages come in reverse"],
        )
        if kind == "the queue is away":
            raise QueueUnavailable("away")
        received = super().receive(limit, wait_seconds)
        if kind == "received messages are lost":
            return []
        return received[::-1] if kind else received

    def delete(self, messages: Sequence[ReceivedMessage]) -> None:
        world = self._world
        if messages and world.fault(world.rates.queue, ["the message is not deleted"]):
            raise QueueUnavailable("away")
        super().delete(messages)


class BadLineTopic(TableTopic):
    """The table topic behind a bad line."""

    def __init__(self, world: World) -> None:
        self._world = world

    def publish(self, notices: Sequence[Notice]) -> None:
        world = self._world
        world.boundary("publishing")
        kind = world.fault(world.rates.topic, ["the topic is away", "the topic's answer is lost"])
        if kind == "the topic is away":
            raise TopicUnavailable("away")
        super().publish(notices)
        if kind:
            raise TopicUnavailable("no answer")
