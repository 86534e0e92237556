"""The embedded gateway keeps its promises: one key, one charge, one answer, at most one refund."""

import pytest

from store.errors import KeyReused
from store.payments import Charge, Ledger, payment_gateway
from tests.shop import at_once, kept_cents, ledger

GOOD = "pm_card_visa"


def charge(key: str = "k", cents: int = 5_00, method: str = GOOD, currency: str = "USD") -> Charge:
    return Charge(
        key=key, order_id="o", amount_cents=cents, currency=currency, payment_method=method
    )


def captured(*charges: Charge) -> list[str]:
    answers = Ledger().capture(charges)
    return [answers[c.key].status for c in charges]


def refunded(*charges: Charge) -> list[str]:
    answers = Ledger().refund(charges)
    return [answers[c.key].status for c in charges]


def test_the_settings_choose_the_ledger(database: str) -> None:
    assert isinstance(payment_gateway(), Ledger)


def test_the_same_key_gets_the_same_answer_and_one_charge(database: str) -> None:
    first = Ledger().capture([charge()])
    assert Ledger().capture([charge()]) == first
    assert first["k"].status == "captured"
    assert ledger() == [("k", "captured", 5_00)]


def test_the_same_key_twice_in_one_call_is_one_charge(database: str) -> None:
    assert captured(charge(), charge()) == ["captured", "captured"]
    assert kept_cents() == 5_00


@pytest.mark.parametrize(
    "other",
    [charge(cents=5_01), charge(currency="EUR"), charge(method="pm_card_mastercard")],
    ids=["amount", "currency", "payment method"],
)
def test_a_key_with_other_data_is_refused_and_nothing_of_the_call_is_captured(
    database: str, other: Charge
) -> None:
    captured(charge())
    with pytest.raises(KeyReused, match=r"key k was used for 500 USD by pm_card_visa"):
        captured(charge("new"), other)
    assert ledger() == [("k", "captured", 5_00)]


def test_a_declined_card_is_declined_each_time(database: str) -> None:
    bad = charge(method="pm_card_chargeDeclined")
    answers = [Ledger().capture([bad])["k"] for _ in range(2)]
    assert [(a.status, a.reason) for a in answers] == [("declined", "the card was declined")] * 2
    assert kept_cents() == 0


def test_each_charge_of_a_call_has_its_own_answer(database: str) -> None:
    group = [
        charge("a"),
        charge("b", method="pm_card_chargeDeclined"),
        charge("c", method="pm_ledger_fail_1"),
        charge("d", method="pm_ledger_timeout_after"),
    ]
    assert captured(*group) == ["captured", "declined", "unknown", "unknown"]
    assert captured(*group) == ["captured", "declined", "captured", "captured"]
    assert kept_cents() == 15_00


@pytest.mark.parametrize(
    ("method", "answers", "kept"),
    [
        ("pm_ledger_fail_2", ["unknown", "unknown", "captured", "captured"], [0, 0, 500, 500]),
        ("pm_ledger_timeout_before", ["unknown", "captured", "captured"], [0, 500, 500]),
        ("pm_ledger_timeout_after", ["unknown", "captured", "captured"], [500, 500, 500]),
    ],
)
def test_a_gateway_that_does_not_answer_charges_once_in_the_end(
    database: str, method: str, answers: list[str], kept: list[int]
) -> None:
    seen = []
    for _ in answers:
        seen.append((captured(charge(method=method))[0], kept_cents()))
    assert seen == list(zip(answers, kept, strict=True))


def test_a_refund_gives_back_once(database: str) -> None:
    captured(charge())
    first = Ledger().refund([charge()])
    assert Ledger().refund([charge()]) == first
    assert first["k"].status == "refunded"
    assert ledger() == [("k", "captured", 5_00), ("k:refund", "refunded", 5_00)]


def test_a_refund_that_comes_before_its_capture_leaves_nothing_to_take(database: str) -> None:
    assert refunded(charge()) == ["void"]
    assert captured(charge()) == ["void"]
    assert refunded(charge()) == ["void"]
    assert ledger() == [("k", "void", 5_00)]


@pytest.mark.parametrize("method", ["pm_ledger_fail_2", "pm_ledger_timeout_before"])
def test_a_charge_in_doubt_that_was_never_taken_is_voided(database: str, method: str) -> None:
    doubtful = charge(method=method)
    assert captured(doubtful) == ["unknown"]
    assert refunded(doubtful) == ["void"]
    assert captured(doubtful) == ["void"]
    assert kept_cents() == 0


def test_a_charge_in_doubt_that_was_taken_is_refunded(database: str) -> None:
    doubtful = charge(method="pm_ledger_timeout_after")
    assert captured(doubtful) == ["unknown"]
    assert refunded(doubtful) == ["refunded"]
    assert kept_cents() == 0


def test_a_declined_charge_is_refunded_with_nothing(database: str) -> None:
    bad = charge(method="pm_card_chargeDeclined")
    captured(bad)
    assert refunded(bad) == ["void"]
    assert ledger() == [("k", "declined", 5_00)]


def test_captures_and_refunds_of_one_key_at_once_leave_nothing_kept(database: str) -> None:
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


def test_large_groups_in_opposite_order_do_not_deadlock(database: str) -> None:
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
