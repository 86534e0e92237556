"""What every payment gateway promises: one key, one charge, one answer, at most one refund."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from store.errors import KeyReused
from store.payments import Charge
from tests.payments.parties import Deafness, Party, a_bad_charge, a_charge
from tests.shop import at_once

GROUP = 200


def captures(party: Party, *charges: Charge) -> list[str]:
    answers = party.gateway.capture(charges)
    return [answers[charge.key].status for charge in charges]


def refunds(party: Party, *charges: Charge) -> list[str]:
    answers = party.gateway.refund(charges)
    return [answers[charge.key].status for charge in charges]


def test_no_charges_get_no_answers(party: Party) -> None:
    assert party.gateway.capture([]) == party.gateway.refund([]) == {}


def test_the_same_key_gets_the_same_answer_and_one_charge(party: Party) -> None:
    first = party.gateway.capture([a_charge()])
    assert party.gateway.capture([a_charge()]) == first
    assert first["k"].status == "captured"
    assert party.captured() == {"k": 5_00}


def test_the_same_key_twice_in_one_call_is_one_charge(party: Party) -> None:
    assert captures(party, a_charge(), a_charge()) == ["captured", "captured"]
    assert party.captured() == {"k": 5_00}


@pytest.mark.parametrize(
    "other",
    [a_charge(cents=5_01), a_charge(currency="EUR"), a_charge(method="pm_card_chargeDeclined")],
    ids=["amount", "currency", "payment method"],
)
def test_a_key_with_other_data_is_refused_and_takes_nothing(party: Party, other: Charge) -> None:
    captures(party, a_charge())
    with pytest.raises(KeyReused, match="key k was used for"):
        captures(party, other)
    assert party.captured() == {"k": 5_00}


def test_a_declined_card_is_declined_each_time_and_says_why(party: Party) -> None:
    answers = [party.gateway.capture([a_bad_charge()])["k"] for _ in range(2)]
    assert answers[0] == answers[1]
    assert (answers[0].status, "card was declined" in answers[0].reason) == ("declined", True)
    assert party.captured() == {}


def test_each_charge_of_a_call_has_its_own_answer(party: Party) -> None:
    group = [
        a_charge("a"),
        a_bad_charge("b"),
        party.unanswered("before", "c"),
        party.unanswered("after", "d"),
    ]
    assert captures(party, *group) == ["captured", "declined", "unknown", "unknown"]
    assert captures(party, *group) == ["captured", "declined", "captured", "captured"]
    assert party.captured() == {"a": 5_00, "c": 5_00, "d": 5_00}


@pytest.mark.parametrize(
    ("when", "answers", "kept"),
    [
        ("before", ["unknown", "captured", "captured"], [0, 5_00, 5_00]),
        ("after", ["unknown", "captured", "captured"], [5_00, 5_00, 5_00]),
        ("twice before", ["unknown", "unknown", "captured"], [0, 0, 5_00]),
    ],
)
def test_a_gateway_that_does_not_answer_charges_once_in_the_end(
    party: Party, when: Deafness, answers: list[str], kept: list[int]
) -> None:
    charge = party.unanswered(when)
    seen = [(captures(party, charge)[0], party.captured()["k"]) for _ in answers]
    assert seen == list(zip(answers, kept, strict=True))


def test_a_refund_gives_back_once(party: Party) -> None:
    captures(party, a_charge())
    first = party.gateway.refund([a_charge()])
    assert party.gateway.refund([a_charge()]) == first
    assert first["k"].status == "refunded"
    assert party.refunded() == party.captured() == {"k": 5_00}


def test_a_refund_by_the_gateways_own_name_of_the_charge_gives_back_once(party: Party) -> None:
    answer = party.gateway.capture([a_charge()])["k"]
    known = replace(a_charge(), reference=answer.reference)
    assert refunds(party, known) + refunds(party, known) == ["refunded", "refunded"]
    assert party.refunded() == {"k": 5_00}


def test_a_charge_of_another_gateway_is_not_refunded_by_this_one(party: Party) -> None:
    elsewhere = replace(a_charge(), reference="elsewhere")
    answer = party.gateway.refund([elsewhere])["k"]
    assert answer.status == "refused"
    assert "elsewhere was charged by another gateway" in answer.reason
    assert "STORE_PAYMENTS" in answer.reason


def test_a_refund_that_comes_before_its_capture_leaves_nothing_to_take(party: Party) -> None:
    assert refunds(party, a_charge()) == ["void"]
    assert captures(party, a_charge()) == ["void"]
    assert refunds(party, a_charge()) == ["void"]
    assert party.captured() == {}


@pytest.mark.parametrize("when", ["before", "twice before"])
def test_a_charge_in_doubt_that_was_never_taken_is_voided(party: Party, when: Deafness) -> None:
    doubtful = party.unanswered(when)
    assert captures(party, doubtful) == ["unknown"]
    assert refunds(party, doubtful) == ["void"]
    assert party.captured() == {}


def test_a_charge_in_doubt_that_was_taken_is_refunded(party: Party) -> None:
    doubtful = party.unanswered("after")
    assert captures(party, doubtful) == ["unknown"]
    assert refunds(party, doubtful) == ["refunded"]
    assert party.refunded() == party.captured() == {"k": 5_00}


def test_a_declined_charge_is_refunded_with_nothing(party: Party) -> None:
    captures(party, a_bad_charge())
    assert refunds(party, a_bad_charge()) == ["void"]
    assert party.refunded() == {}


def test_a_refund_gives_back_what_was_captured_not_what_should_have_been(party: Party) -> None:
    captures(party, a_charge(cents=1_00))
    assert refunds(party, a_charge(cents=5_00)) == ["refunded"]
    assert party.refunded() == {"k": 1_00}


def test_captures_and_refunds_of_one_key_at_once_leave_nothing_kept(party: Party) -> None:
    for round_ in range(3):
        charge = a_charge(f"k-{round_}")
        calls = [lambda: captures(party, charge)[0] for _ in range(4)]  # noqa: B023
        answers = at_once(calls + [lambda: refunds(party, charge)[0] for _ in range(4)])  # noqa: B023
        assert set(answers[:4]) <= {"captured", "void", "unknown"}
        assert set(answers[4:]) <= {"refunded", "void", "unknown"}
        assert refunds(party, charge)[0] in ("refunded", "void")
    assert party.refunded() == party.captured()


def test_large_groups_at_once_in_opposite_order_take_and_give_back_once(party: Party) -> None:
    group = [a_charge(f"k-{n:04}") for n in range(GROUP)]

    def all_captured(charges: Sequence[Charge]) -> None:
        todo = list(charges)
        while todo:
            answers = party.gateway.capture(todo)
            todo = [charge for charge in todo if answers[charge.key].status == "unknown"]

    assert at_once([lambda: all_captured(group), lambda: all_captured(group[::-1])]) == [None] * 2
    assert party.captured() == {charge.key: 5_00 for charge in group}
    assert set(refunds(party, *group)) == {"refunded"}
    assert party.refunded() == party.captured()
