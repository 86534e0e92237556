"""Stripe's stand-in over real HTTP: localstripe, and in front of it what it lacks.

localstripe keeps PaymentIntents, PaymentMethods and Refunds, charges and declines. Added here, by
Stripe's documentation, are idempotency keys, the search by metadata, the refusal of a second
refund, the parameter ``automatic_payment_methods`` and the card ``pm_card_chargeDeclined``; and
faults, which a test orders.
"""

import asyncio
import re
import threading
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl

from aiohttp import web
from localstripe import resources
from localstripe.errors import UserError

from store.payments import DECLINED_METHOD
from store.stripe_gateway import CHARGE
from tests.polling import wait_until

Handler = Callable[[web.Request], Awaitable[web.Response]]

CREATE = ("POST", "/v1/payment_intents")
CANCEL = ("POST", r"/v1/payment_intents/\w+/cancel")
REFUND = ("POST", "/v1/refunds")
CARD = ("GET", r"/v1/payment_methods/\w+")
SEARCH = ("GET", "/v1/payment_intents/search")

_DECLINED_BY_LOCALSTRIPE = "pm_card_chargeCustomerFail"


@dataclass
class Fault:
    """What goes wrong with a call; each goes wrong once.

    Args:
        call: Method and path, a pattern.
        about: Parameters that the call has.
        status: What is answered; none loses the connection.
        code: The error's code in the answer.
        is_done: The call takes effect nevertheless.
        is_repeated: Stripe gives this answer to the same key again.
        delay_seconds: How long the answer takes.
    """

    call: tuple[str, str]
    about: Mapping[str, str] = field(default_factory=dict)
    status: int | None = None
    code: str = ""
    is_done: bool = False
    is_repeated: bool = False
    delay_seconds: float = 0.0


@dataclass(frozen=True)
class Call:
    """A call that was made."""

    method: str
    path: str
    sent: dict[str, str]
    headers: dict[str, str]

    def is_a(self, call: tuple[str, str]) -> bool:
        return self.method == call[0] and re.fullmatch(call[1], self.path) is not None


@dataclass
class Kept:
    """The first request with an idempotency key, and its answer; none while it is worked on."""

    request: tuple[str, str]
    answer: tuple[int, bytes] | None = None


@dataclass
class StripeStandIn:
    """The server, while the `with` block lasts. One for each process: localstripe is a module."""

    url: str = ""
    calls: list[Call] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    keys: dict[str, Kept] = field(default_factory=dict)
    is_searchable: bool = True
    most_at_once: int = 0

    def __enter__(self) -> Self:
        _teach_localstripe()
        with warnings.catch_warnings():
            # Its handlers are plain functions, as aiohttp does not want them any more.
            warnings.simplefilter("ignore", DeprecationWarning)
            from localstripe.server import app
        app.middlewares.insert(0, self._in_front())
        self._at_once = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner = web.AppRunner(app, access_log=None)
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(timeout=30)
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def _serve(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(timeout=30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=30)
        self._loop.close()

    def reset(self) -> None:
        """Forget everything, and behave well, when the calls under way have ended."""
        wait_until(lambda: not self._at_once, "end of the calls to the stand-in")
        resources.store.clear()
        self.calls.clear()
        self.faults.clear()
        self.keys.clear()
        self.is_searchable = True
        self.most_at_once = 0

    def made(self, call: tuple[str, str]) -> list[Call]:
        """The calls of this kind that were made."""
        return [each for each in self.calls if each.is_a(call)]

    def all(self, kind: type[Any]) -> list[Any]:
        """Everything of a kind that localstripe has."""
        return [found for found in list(resources.store.values()) if isinstance(found, kind)]

    def intents(self) -> list[tuple[str, str]]:
        """Each PaymentIntent: the charge's key and its status."""
        return [(i.metadata[CHARGE], i.status) for i in self.all(resources.PaymentIntent)]

    def captured(self) -> Counter[str]:
        """The cents that each key has taken, however often it did."""
        taken: Counter[str] = Counter()
        for intent in self.all(resources.PaymentIntent):
            if intent.status == "succeeded":
                taken[intent.metadata[CHARGE]] += intent.amount
        return taken

    def refunded(self) -> Counter[str]:
        """The cents that each key has given back, however often it did."""
        given: Counter[str] = Counter()
        for refund in self.all(resources.Refund):
            if refund.status == "failed":
                continue
            given[refund.metadata.get(CHARGE, "by hand")] += refund.amount
        return given

    def _in_front(self) -> Any:
        @web.middleware
        async def in_front(request: web.Request, handler: Handler) -> web.Response:
            body = (await request.read()).decode()
            sent = dict(parse_qsl(body or request.query_string))
            call = Call(request.method, request.path, sent, dict(request.headers))
            self.calls.append(call)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            try:
                return await self._answer(request, call, body, handler)
            finally:
                self._at_once -= 1

        return in_front

    async def _answer(
        self, request: web.Request, call: Call, body: str, handler: Handler
    ) -> web.Response:
        fault = self._fault(call)
        if fault is None:
            return await self._keyed(request, call, body, handler)
        await asyncio.sleep(fault.delay_seconds)
        if fault.is_done:
            await self._keyed(request, call, body, handler)
        if fault.status is None:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        answer = _error(fault.status, fault.code)
        if fault.is_repeated:
            kept = Kept((call.path, body), (answer.status, _body(answer)))
            self.keys[call.headers["Idempotency-Key"]] = kept
        return answer

    def _fault(self, call: Call) -> Fault | None:
        for fault in self.faults:
            if call.is_a(fault.call) and fault.about.items() <= call.sent.items():
                self.faults.remove(fault)
                return fault
        return None

    async def _keyed(
        self, request: web.Request, call: Call, body: str, handler: Handler
    ) -> web.Response:
        if call.is_a(SEARCH):
            return self._search(call)
        key = call.headers.get("Idempotency-Key")
        if call.method != "POST" or key is None:
            return await handler(request)
        kept = self.keys.get(key)
        if kept is None:
            kept = self.keys[key] = Kept((call.path, body))
            response = await handler(request)
            kept.answer = (response.status, _body(response))
        elif kept.request != (call.path, body):
            return _error(400, "", "idempotency_error")
        elif kept.answer is None:
            return _error(409, "idempotency_key_in_use")
        status, answer = kept.answer
        return web.Response(status=status, body=answer, content_type="application/json")

    def _search(self, call: Call) -> web.Response:
        query = re.fullmatch(r"metadata\['(\w+)'\]:'([^'\\]*)'", call.sent["query"])
        if query is None:
            return _error(400, "invalid_search")
        found = [
            intent._export()
            for intent in self.all(resources.PaymentIntent)
            if self.is_searchable and intent.metadata.get(query[1]) == query[2]
        ]
        return web.json_response({"object": "search_result", "data": found, "has_more": False})


def _body(response: web.Response) -> bytes:
    assert isinstance(response.body, bytes)
    return response.body


def _error(status: int, code: str, kind: str = "api_error") -> web.Response:
    error = {"type": kind, "code": code, "message": f"answered {status} by order of the test"}
    return web.json_response({"error": error}, status=status)


def _teach_localstripe() -> None:
    """Add what localstripe does not know of the objects that it has."""
    # It would write all that it has into one file of the machine, with every change.
    resources.Store.dump_to_disk = lambda _store: None
    resources.schedule_webhook = lambda _event: None
    intent, refund, card = resources.PaymentIntent, resources.Refund, resources.PaymentMethod
    create_intent, create_refund = intent._api_create, refund._api_create
    test_card = card._try_get_canonical_test_article

    def create(_: type[Any], /, automatic_payment_methods: object = None, **data: Any) -> Any:
        return create_intent(**data)

    def refund_once(_: type[Any], /, payment_intent: str, **data: Any) -> Any:
        refunds = [r for r in list(resources.store.values()) if isinstance(r, refund)]
        given = [r for r in refunds if r.payment_intent == payment_intent and r.status != "failed"]
        left = intent._api_retrieve(payment_intent).amount - sum(r.amount for r in given)
        if left <= 0:
            raise UserError(400, "It was refunded.", {"code": "charge_already_refunded"})
        return create_refund(payment_intent=payment_intent, **{"amount": left, **data})

    def known_card(card_id: str) -> Any:
        return test_card(_DECLINED_BY_LOCALSTRIPE if card_id == DECLINED_METHOD else card_id)

    intent._api_create = classmethod(create)
    refund._api_create = classmethod(refund_once)
    card._try_get_canonical_test_article = staticmethod(known_card)
