"""The pause of a run that asks a person or dispatcher.

Prefect holds an answer among the run's inputs, and nowhere else, until the run reads it. It accepts
one for a run whose process is dead, and may do so while the process takes the server for lost.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, NoReturn, TypeVar
from uuid import UUID, uuid4

import prefect.flow_runs
from prefect import get_client, pause_flow_run, runtime, suspend_flow_run
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from prefect.states import Paused, Running, Suspended
from pydantic import BaseModel, ValidationError

from flows.runs.work_pool import SERVER_AWAY, pool_is_closed
from store.database import release_connections
from store.errors import OrderCancelled, RunTakenAway
from store.models import utc_now
from store.settings import settings
from store.wrong_input import for_a_log

logger = logging.getLogger("store.pause")

Wait = Literal["pause", "suspend"]
"""``pause`` keeps the run's process while it waits and goes on within seconds of the answer;
``suspend`` keeps none, for waits of hours, and needs a deployment and a worker to go on."""
INPUTS_OF_A_PAGE = 150
"""Inputs of a run that are read at once; a pause has three: its schema, its text, its answer."""

Form = TypeVar("Form", bound=RunInput)
Answer = TypeVar("Answer", bound=BaseModel)
T = TypeVar("T")

_message: ContextVar[str | None] = ContextVar("message", default=None)


@dataclass(frozen=True, slots=True)
class Remark(Generic[Answer]):
    """A remark for the next form, such as an answer's refusal."""

    text: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Question(Generic[Answer]):
    """What a run asks in its pauses, and how answers are recorded.

    Attributes:
        run_id: The run.
        prefix: The beginning of the keys of its pauses.
        model: The answer's model.
        record: Records an answer; returns the remark for the next form, such as why the answer was
            refused, empty if there is none.
        counts_once: Whether an answer counts for what waits when it is read, and for nothing later.
    """

    run_id: str
    prefix: str
    model: type[Answer]
    record: Callable[[Answer], str]
    counts_once: bool = False

    def take(self, key: str, answer: Answer) -> Remark[Answer] | None:
        """Record an answer and return the next form's remark, or None.

        It is forgotten where it would be read again to no good: the person was told what was wrong
        with it and is asked again, or it was not about what waits later.
        """
        text = self.record(answer)
        if text or self.counts_once:
            with get_client(sync_client=True) as client:
                forget_answer(client, self.run_id, key)
        return Remark(text, answer) if text else None

    def take_left(self, client: SyncPrefectClient) -> Remark[Answer] | None:
        """Record unread answers and return the last one's remark."""
        remark = None
        for key, answer in answers_left(client, self.run_id, self.prefix, self.model).items():
            remark = self.take(key, answer)
        return remark


def pause_run(
    form: type[Form], prefix: str, until: datetime, wait: Wait, why: str
) -> tuple[str, Form] | None:
    """Pause this run once, until its resume or time-out.

    With ``suspend``, or while the run's work pool is paused, the process ends here, and the run
    starts over from its top when it is resumed; see :meth:`Question.take_left`.

    Args:
        form: The form, with what is asked.
        prefix: The beginning of the keys of all pauses that ask this.
        until: When the pause ends by itself.
        wait: How to wait.
        why: The message of the run's state while it waits.

    Returns:
        The answer that the run was resumed with, and its key. None when the time was over, the run
        was resumed without an answer, or the server was away: an answer may be left then.

    Raises:
        OrderCancelled: the run was cancelled.
        RunTakenAway: the run is not this process's any more.
    """
    # A key is used once: Prefect answers a known one with its old answer, unpaused.
    key = f"{prefix}{uuid4().hex[:12]}"
    timeout = _seconds_left(until)
    logger.info("%s", why)
    release_connections()
    try:
        with state_message(why):
            if wait == "suspend" or pool_is_closed():
                return f"suspended-{key}-response", suspend_flow_run(form, timeout=timeout, key=key)
            answer = pause_flow_run(
                form, timeout=timeout, poll_interval=settings().pause_poll_seconds, key=key
            )
    except RuntimeError as error:
        _tell_why_not_paused(error)
    except FlowPauseTimeout:
        # The server may have failed the run already, but a decision of the last moment counts.
        try:
            with get_client(sync_client=True) as client:
                _end_pause(client)
        except SERVER_AWAY as error:
            logger.warning("Prefect's server is away as the pause %s ends: %r", key, error)
        return None
    except ValidationError:
        # The run was set going without an answer: its pool closes, or it was started over while
        # this process still lived. Whoever of two sees the decision first goes on, the other
        # finds it done.
        logger.warning("the run was resumed from %s without an answer; it looks and waits on", key)
        return None
    except SERVER_AWAY as error:
        logger.warning("the run waits on at %s while Prefect's server is away: %r", key, error)
        _end_pause_after_outage(until)
        return None
    return f"paused-{key}-response", answer


@contextmanager
def state_message(message: str) -> Iterator[None]:
    """Set the message of the state that a pause proposes.

    Prefect's own functions take none, and a person reads it on the run's page.
    """
    token = _message.set(message)
    try:
        yield
    finally:
        _message.reset(token)


def _with_message(make: Callable[..., State[Any]]) -> Callable[..., State[Any]]:
    def made(**details: Any) -> State[Any]:
        return make(**details, message=_message.get())

    return made


prefect.flow_runs.Paused = _with_message(Paused)  # type: ignore[attr-defined]
prefect.flow_runs.Suspended = _with_message(Suspended)  # type: ignore[attr-defined]


def answers_left(
    client: SyncPrefectClient, run_id: str, prefix: str, answer: type[Answer]
) -> dict[str, Answer]:
    """Return the unread answers to a run's pauses.

    Args:
        client: Prefect's client.
        run_id: The run.
        prefix: The beginning of the keys of the pauses that are meant.
        answer: The answer's model.

    Returns:
        The answers by their keys, the oldest first; none of a run that Prefect has no more.
    """
    found = {}
    for begins in (f"paused-{prefix}", f"suspended-{prefix}"):
        seen: set[str] = set()
        while page := client.filter_flow_run_input(
            UUID(run_id), key_prefix=begins, limit=INPUTS_OF_A_PAGE, exclude_keys=seen
        ):
            seen.update(given.key for given in page)
            found.update({given.key: given for given in page if given.key.endswith("-response")})
    answers = {}
    for given in sorted(found.values(), key=lambda given: given.created or utc_now()):
        try:
            answers[given.key] = answer.model_validate_json(given.value)
        except ValidationError as error:
            logger.error(
                "the answer %s to run %s cannot be read (%s), and is none",
                given.key,
                run_id,
                for_a_log(error),
            )
    return answers


def forget_answer(client: SyncPrefectClient, run_id: str, key: str) -> None:
    """Delete a recorded answer from the run's inputs.

    While the server is away it stays, and may be read once more when the run starts over.
    """
    try:
        client.delete_flow_run_input(UUID(run_id), key)
    except SERVER_AWAY as error:
        logger.warning("the answer %s is recorded, and stays among the inputs: %r", key, error)


def once_the_server_answers(call: Callable[[SyncPrefectClient], T], waits_for: str) -> T:
    """Return the result of ``call``, retried while Prefect's server is away.

    Args:
        call: What is asked of the server.
        waits_for: What the run waits to know, for the log.
    """
    while True:
        try:
            with get_client(sync_client=True) as client:
                return call(client)
        except SERVER_AWAY as error:
            logger.warning(
                "Prefect's server is away, and the run waits for %s: %r", waits_for, error
            )
            time.sleep(settings().pause_poll_seconds)


def _end_pause_after_outage(until: datetime) -> None:
    """Wait for Prefect's server and end the interrupted pause.

    The pause is ended before the answers are looked at: a resume that the server accepted in
    between has then left its answer, and a later one finds the next pause.
    """
    while _seconds_left(until) > 1:
        try:
            with get_client(sync_client=True) as client:
                _end_pause(client)
                return
        except SERVER_AWAY as error:
            logger.warning("Prefect's server is still away: %r", error)
            time.sleep(settings().pause_poll_seconds)


def _tell_why_not_paused(error: RuntimeError) -> NoReturn:
    """Raise the reason for which Prefect refused a pause.

    A cancelled run raises OrderCancelled, any other RunTakenAway.
    """
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(runtime.flow_run.id).state
    if state is not None and (state.is_cancelled() or state.is_cancelling()):
        raise OrderCancelled("the run was cancelled in Prefect") from error
    raise RunTakenAway(str(error)) from error


def _end_pause(client: SyncPrefectClient) -> None:
    """Set a paused run, or one failed by the pause, to Running.

    A cancellation or a crash that was set since stays.
    """
    run_id = runtime.flow_run.id
    state = client.read_flow_run(run_id).state
    if state is not None and (state.is_paused() or state.is_failed()):
        client.set_flow_run_state(run_id, Running(), force=True)


def _seconds_left(until: datetime) -> int:
    return max(1, math.ceil((until - utc_now()).total_seconds()))
