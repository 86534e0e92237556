"""What is tried again, and what never is: an order's own error."""

import pytest
from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Failed
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from store.errors import (
    BillingError,
    BookOutOfStock,
    InvalidDecision,
    KeyReused,
    OrderError,
    OrderIdConflict,
    PaymentGatewayUnavailable,
    PaymentRefused,
    RetryableError,
    UserNotFound,
)
from tasks import billing, couriers, dispatch, inventory, points, pricing
from tasks.retries import (
    RETRIES,
    RETRY_DELAYS_SECONDS,
    RETRY_JITTER,
    if_transient,
    is_last_try,
    is_transient,
    retried,
)

TASKS: list[Task[..., object]] = [
    found
    for module in (billing, couriers, dispatch, inventory, points, pricing)
    for found in vars(module).values()
    if isinstance(found, Task)
]


def an_outage(kind: type[OperationalError] | type[IntegrityError]) -> Exception:
    return kind("SELECT 1", {}, Exception("the server closed the connection"))


@pytest.mark.parametrize(
    "error",
    [
        PaymentGatewayUnavailable("no answer"),
        an_outage(OperationalError),
        PoolTimeoutError("QueuePool limit of size 5 overflow 20 reached"),
    ],
)
def test_an_outage_is_tried_again(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        BookOutOfStock("sold out"),
        BillingError("declined"),
        PaymentRefused("the key is wrong"),
        UserNotFound("nobody"),
        OrderIdConflict("taken"),
        InvalidDecision("no"),
        KeyReused("k"),
        an_outage(IntegrityError),
        ZeroDivisionError(),
        KeyboardInterrupt(),
    ],
)
def test_what_would_fail_again_is_not_tried_again(error: BaseException) -> None:
    assert not is_transient(error)


def test_no_order_error_is_retryable() -> None:
    assert not any(issubclass(error, RetryableError) for error in OrderError.by_name.values())


@pytest.mark.parametrize(
    ("error", "again"), [(PaymentGatewayUnavailable("x"), True), (BillingError("x"), False)]
)
def test_prefect_asks_about_the_error_of_the_state(error: Exception, again: bool) -> None:
    state: State[object] = Failed(data=error)
    assert if_transient(TASKS[0], None, state) is again  # type: ignore[arg-type]


@pytest.mark.parametrize("each", TASKS, ids=lambda task: task.name)
def test_every_task_is_retried_alike_and_never_answers_from_a_cache(
    each: Task[..., object],
) -> None:
    assert each.retries == RETRIES == 3
    assert each.retry_delay_seconds == [1.0, 4.0, 10.0]
    assert each.retry_jitter_factor == 0.5
    assert each.retry_condition_fn is if_transient
    assert each.cache_policy == NO_CACHE
    assert not each.persist_result


def test_outside_of_prefect_there_is_one_try() -> None:
    assert is_last_try()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each wait, none of which is waited."""
    found: list[float] = []
    monkeypatch.setattr("tasks.retries.time.sleep", found.append)
    return found


def test_a_call_outside_of_a_task_is_retried_as_a_task_is(waits: list[float]) -> None:
    errors = [an_outage(OperationalError)] * RETRIES

    @retried
    def count(number: int) -> int:
        if errors:
            raise errors.pop()
        return number

    assert count(3) == 3
    for wait, delay in zip(waits, RETRY_DELAYS_SECONDS, strict=True):
        assert delay * (1 - RETRY_JITTER) <= wait <= delay * (1 + RETRY_JITTER)


def test_a_call_outside_of_a_task_knows_its_last_try(waits: list[float]) -> None:
    last = []

    @retried
    def fail() -> None:
        last.append(is_last_try())
        raise an_outage(OperationalError)

    with pytest.raises(OperationalError):
        fail()
    assert last == [*[False] * RETRIES, True]
    assert is_last_try()


@pytest.mark.parametrize(
    ("error", "calls"), [(an_outage(OperationalError), RETRIES + 1), (BookOutOfStock("gone"), 1)]
)
def test_such_a_call_raises_the_last_error_and_any_that_is_no_outage_at_once(
    waits: list[float], error: Exception, calls: int
) -> None:
    made = []

    @retried
    def fail() -> None:
        made.append(error)
        raise error

    with pytest.raises(type(error)):
        fail()
    assert (len(made), len(waits)) == (calls, calls - 1)
