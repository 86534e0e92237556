"""What is the embedded gateway's own; what every gateway promises is in tests/payments."""

from collections.abc import Callable

import pytest

from seed.catalogue import empty
from store.embedded_gateway import EmbeddedGateway
from store.errors import KeyReused
from store.partners import payment_gateway, wrong_method
from store.payments import Charge
from tests.shop import at_once, kept_cents, ledger


@pytest.fixture
def database(store_url: str, setting: Callable[[str, object], None]) -> None:
    """An empty database, in which charges without orders are no fault."""
    setting("database_url", store_url)
    empty()


def charge(key: str = "k", cents: int = 5_00, method: str = "pm_card_visa") -> Charge:
    return Charge(key=key, order_id="o", amount_cents=cents, currency="USD", payment_method=method)


def captured(*charges: Charge) -> list[str]:
    answers = EmbeddedGateway().capture(charges)
    return [answers[c.key].status for c in charges]


def refunded(*charges: Charge) -> list[str]:
    answers = EmbeddedGateway().refund(charges)
    return [answers[c.key].status for c in charges]


def test_the_settings_choose_the_embedded_gateway(database: None) -> None:
    assert isinstance(payment_gateway(), EmbeddedGateway)


def test_where_one_key_is_refused_nothing_of_the_call_is_captured(database: None) -> None:
    captured(charge())
    with pytest.raises(KeyReused, match=r"key k was used for 500 USD by pm_card_visa"):
        captured(charge("new"), charge(cents=5_01))
    assert ledger() == [("k", "captured", 5_00)]


@pytest.mark.parametrize("times", [1, 3])
def test_a_payment_method_says_how_often_the_gateway_does_not_answer(
    database: None, times: int
) -> None:
    answers = [captured(charge(method=f"pm_ledger_fail_{times}"))[0] for _ in range(times + 1)]
    assert answers == ["unknown"] * times + ["captured"]
    assert kept_cents() == 5_00


def test_a_refund_that_comes_first_takes_the_charges_place(database: None) -> None:
    assert refunded(charge()) == ["void"]
    assert captured(charge()) == ["void"]
    assert ledger() == [("k", "void", 5_00)]


def test_captures_and_refunds_of_one_key_at_once_all_get_an_answer(database: None) -> None:
    for round_ in range(5):
        key = charge(f"k-{round_}")
        answers = at_once(
            [lambda: captured(key)[0] for _ in range(4)]  # noqa: B023 - they end in this round
            + [lambda: refunded(key)[0] for _ in range(4)]  # noqa: B023
        )
        assert set(answers[:4]) <= {"captured", "void"}
        assert len(set(answers[4:])) == 1
        assert set(answers[4:]) <= {"refunded", "void"}
        assert kept_cents() == 0


def test_large_groups_in_opposite_order_do_not_deadlock(database: None) -> None:
    group = [charge(f"k-{n:04}") for n in range(1500)]
    answers = at_once(
        [
            lambda: captured(*group),
            lambda: captured(*group[::-1]),
            lambda: refunded(*group),
            lambda: refunded(*group[::-1]),
        ]
    )
    assert [answer for answer in answers if isinstance(answer, Exception)] == []
    assert kept_cents() == 0


UNKNOWN = ["pm_ledger_fail_x", "pm_ledger_fail_-1", "pm_ledger_fail_", "pm_ledger_fail_12345"]
UNKNOWN += ["pm_ledger_timeout", "pm_ledger_", "pm_ledger_fail_1.5", "pm_ledger_fail_1\n"]


@pytest.mark.parametrize("method", UNKNOWN)
def test_an_unknown_test_method_is_refused_and_takes_nothing(database: None, method: str) -> None:
    answers = EmbeddedGateway().capture([charge("bad", method=method), charge("good")])
    assert (answers["bad"].status, answers["good"].status) == ("refused", "captured")
    assert answers["bad"].reason.startswith(f"the embedded gateway has no test method {method}")
    assert refunded(charge("bad", method=method)) == ["void"]
    assert kept_cents() == 5_00


@pytest.mark.parametrize(
    "method", ["pm_ledger_fail_0", "pm_ledger_fail_9999", "pm_card_visa", "pm_ledgers"]
)
def test_a_known_method_is_not_wrong(database: None, method: str) -> None:
    assert wrong_method(method) is None


def test_the_test_methods_of_the_embedded_gateway_mean_nothing_to_another(
    database: None, setting: Callable[[str, object], None]
) -> None:
    assert wrong_method("pm_ledger_fail_x") is not None
    setting("stripe_secret_key", "sk_test_x")
    setting("payments", "stripe")
    assert wrong_method("pm_ledger_fail_x") is None
