"""How Stripe is asked, what its answers mean, and how a charge in doubt is settled."""

import logging
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from localstripe import resources
from pydantic import SecretStr

from console.diagnosis import Diagnosis, Verdict
from console.doctor import CHECKS
from reports.audit import audit, is_compared_with_gateway
from store import stripe_gateway as stripe_gateway_module
from store.database import snapshot
from store.errors import TEXT_AT_MOST, KeyReused, PaymentGatewayUnavailable
from store.models import utc_now
from store.partners import payment_gateway
from store.payments import Answer, Charge
from store.stripe_gateway import CHARGE, MADE_WITHIN, PARALLEL_CALLS, StripeGateway
from store.stripe_refusals import CHARGE_REMEDIES, REFUND_REMEDIES
from tests.payments.conftest import SECRET
from tests.payments.parties import a_charge
from tests.payments.stand_in import CANCEL, CARD, CREATE, REFUND, SEARCH, Fault, StripeStandIn
from tests.shop import at_once, end_run, placed, set_order

DOCUMENTS = Path(__file__).resolve().parents[2] / "docs"
PAYS = {"confirm": "true"}
"""What tells a charge from the call that only takes its key."""
EARLIER = utc_now() - MADE_WITHIN - timedelta(minutes=1)
LATE = replace(a_charge(), intended_at=EARLIER)


def captured(gateway: StripeGateway, charge: Charge | None = None) -> Answer:
    charge = charge or a_charge()
    return gateway.capture([charge])[charge.key]


def refunded(gateway: StripeGateway, charge: Charge | None = None) -> Answer:
    charge = charge or a_charge()
    return gateway.refund([charge])[charge.key]


def a_card(number: str = "4242424242424242") -> resources.PaymentMethod:
    card = {"number": number, "exp_month": 12, "exp_year": 2099, "cvc": "123"}
    return resources.PaymentMethod(type="card", card=card)


def charges_made(stand_in: StripeStandIn) -> int:
    return sum("confirm" in call.sent for call in stand_in.made(CREATE))


def test_the_settings_choose_stripe(paid_by_stripe: StripeStandIn) -> None:
    gateway = payment_gateway()
    assert gateway == StripeGateway(SecretStr(SECRET), paid_by_stripe.url)


def test_without_stripe_the_library_is_not_imported() -> None:
    loads = "import sys, flows.checkout, store.partners; sys.exit('stripe' in sys.modules)"
    subprocess.run([sys.executable, "-c", loads], check=True, timeout=60)


def test_a_charge_is_confirmed_in_one_call_under_its_key(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    captured(stripe_gateway, a_charge("o-1:1", cents=1_00, currency="JPY"))
    (call,) = stand_in.made(CREATE)
    assert call.sent == {
        "amount": "100",
        "currency": "jpy",
        "payment_method": "pm_card_visa",
        "confirm": "true",
        "off_session": "true",
        "automatic_payment_methods[enabled]": "true",
        "automatic_payment_methods[allow_redirects]": "never",
        f"metadata[{CHARGE}]": "o-1:1",
        "metadata[order]": "o",
    }
    assert call.headers["Idempotency-Key"] == "o-1:1"
    assert call.headers["Authorization"] == f"Bearer {SECRET}"


def test_a_refund_names_the_payment_and_has_a_key_of_its_own(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    payment = captured(stripe_gateway).reference
    refunded(stripe_gateway)
    (call,) = stand_in.made(REFUND)
    assert call.sent == {"payment_intent": payment, f"metadata[{CHARGE}]": "k"}
    assert call.headers["Idempotency-Key"] == "k:refund"


def test_a_saved_card_is_charged_in_its_customers_name(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    customer, card = resources.Customer(), a_card()
    card.customer = customer.id
    assert captured(stripe_gateway, a_charge(method=card.id)).status == "captured"
    (intent,) = stand_in.all(resources.PaymentIntent)
    assert intent.customer == customer.id


def test_what_is_no_card_is_refused(stripe_gateway: StripeGateway, stand_in: StripeStandIn) -> None:
    debit = resources.PaymentMethod(
        type="sepa_debit", sepa_debit={"iban": "DE89370400440532013000"}
    )
    answer = captured(stripe_gateway, a_charge(method=debit.id))
    assert (answer.status, answer.reason) == ("refused", f"{debit.id} is no card but a sepa_debit")
    assert stand_in.made(CREATE) == []


def test_a_card_whose_holder_has_to_act_is_declined_each_time_and_cannot_pay_later(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    charge = a_charge(method=a_card(number="4000002500003155").id)
    for _ in range(2):
        answer = captured(stripe_gateway, charge)
        assert (answer.status, "holder has to act" in answer.reason) == ("declined", True)
    assert stand_in.intents() == [("k", "canceled")]
    assert len(stand_in.made(CANCEL)) == 1


def test_a_charge_in_doubt_whose_holder_has_to_act_is_void_and_cannot_pay_later(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    charge = a_charge(method=a_card(number="4000002500003155").id)
    stand_in.faults.append(Fault(CREATE, is_done=True))
    assert captured(stripe_gateway, charge).status == "unknown"
    assert stand_in.intents() == [("k", "requires_action")]
    assert refunded(stripe_gateway, charge).status == "void"
    assert stand_in.intents() == [("k", "canceled")]


@pytest.mark.parametrize("call", [CARD, CREATE], ids=["card", "charge"])
@pytest.mark.parametrize(
    ("status", "code"),
    [
        (None, ""),
        (409, "idempotency_key_in_use"),
        (424, ""),
        (429, "rate_limit"),
        (429, "lock_timeout"),
        (500, ""),
        (503, ""),
    ],
)
def test_an_outage_or_overload_says_nothing_about_the_charge_and_is_not_tried_again_here(
    stripe_gateway: StripeGateway,
    stand_in: StripeStandIn,
    call: tuple[str, str],
    status: int | None,
    code: str,
) -> None:
    stand_in.faults.append(Fault(call, status=status, code=code))
    answer = captured(stripe_gateway)
    assert (answer.status, "\n" in answer.reason) == ("unknown", False)
    assert len(stand_in.made(call)) == 1
    assert captured(stripe_gateway).status == "captured"


def test_a_call_has_its_time(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stripe_gateway_module, "READ_SECONDS", 0.3)
    stand_in.faults.append(Fault(CREATE, delay_seconds=1.0))
    answer = captured(stripe_gateway)
    assert (answer.status, "Read timed out" in answer.reason) == ("unknown", True)


@pytest.mark.parametrize(("status", "code"), [(400, "amount_too_small"), (404, "resource_missing")])
def test_a_wrong_call_is_refused_with_its_reason_and_is_no_decline(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn, status: int, code: str
) -> None:
    stand_in.faults.append(Fault(CREATE, status=status, code=code))
    answer = captured(stripe_gateway)
    assert answer.status == "refused"
    assert f"Stripe does not take the call ({code})" in answer.reason
    assert "correct the order's payment method, amount or currency" in answer.reason


def test_an_unknown_card_is_refused_by_its_name(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    charge = a_charge(method="pm_nobodys")
    assert captured(stripe_gateway, charge).status == "refused"
    assert refunded(stripe_gateway, charge).status == "void"
    assert stand_in.captured() == {}


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("call", [captured, refunded])
def test_a_key_that_stripe_does_not_accept_is_refused_with_the_remedy(
    stripe_gateway: StripeGateway,
    stand_in: StripeStandIn,
    status: int,
    call: Callable[[StripeGateway], Answer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    stand_in.faults += [Fault(CARD, status=status), Fault(CREATE, status=status)]
    with caplog.at_level(logging.DEBUG):
        answer = call(stripe_gateway)
    assert answer.status == "refused"
    assert f"HTTP {status}" in answer.reason
    assert "set STORE_STRIPE_SECRET_KEY" in answer.reason
    for shown in (answer.reason, caplog.text, repr(stripe_gateway), str(stripe_gateway)):
        assert SECRET not in shown


def test_a_group_is_asked_for_several_at_a_time(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    group = [a_charge(f"k-{n}") for n in range(3 * PARALLEL_CALLS)]
    stand_in.faults += [Fault(CARD, status=503, delay_seconds=0.2) for _ in group]
    answers = stripe_gateway.capture(group)
    assert {answer.status for answer in answers.values()} == {"unknown"}
    assert PARALLEL_CALLS / 2 < stand_in.most_at_once <= PARALLEL_CALLS


def test_a_group_whose_time_is_over_is_left_to_the_next_try(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stripe_gateway_module, "GROUP_SECONDS", 0.0)
    assert captured(stripe_gateway).status == "unknown"
    assert stand_in.calls == []


def test_a_capture_that_arrives_after_its_refund_takes_nothing(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    on_its_way = Fault(CREATE, about=PAYS, delay_seconds=1.0, is_done=True)
    stand_in.faults.append(on_its_way)

    def refund_meanwhile() -> Answer:
        while on_its_way in stand_in.faults:
            pass
        return refunded(stripe_gateway)

    answers = at_once([lambda: captured(stripe_gateway), refund_meanwhile])
    assert [getattr(answer, "status", answer) for answer in answers] == ["unknown", "void"]
    assert stand_in.captured() == {}
    assert captured(stripe_gateway).status == "void"


def test_a_refund_while_the_charge_is_being_made_waits_for_its_answer(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    stand_in.faults.append(Fault(CREATE, status=409, code="idempotency_key_in_use"))
    assert refunded(stripe_gateway).status == "unknown"


def test_a_failure_of_stripes_that_it_repeats_is_looked_up_until_it_is_found(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    stand_in.faults.append(Fault(CREATE, status=500, is_done=True, is_repeated=True))
    assert [captured(stripe_gateway).status for _ in range(2)] == ["unknown", "unknown"]
    stand_in.is_searchable = False
    assert refunded(stripe_gateway).status == "unknown"
    stand_in.is_searchable = True
    assert [refunded(stripe_gateway).status for _ in range(2)] == ["refunded", "refunded"]
    assert stand_in.refunded() == stand_in.captured() == {"k": 5_00}


def test_a_failure_of_stripes_that_took_nothing_is_void_when_its_key_is_forgotten(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    stand_in.faults.append(Fault(CREATE, status=500, is_repeated=True))
    assert captured(stripe_gateway).status == "unknown"
    assert refunded(stripe_gateway).status == "unknown"
    assert refunded(stripe_gateway, LATE).status == "unknown"
    stand_in.keys.clear()
    assert refunded(stripe_gateway, LATE).status == "void"
    assert stand_in.captured() == {}


def test_a_charge_of_a_card_that_is_gone_meanwhile_is_found(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    card = a_card()
    charge = a_charge(method=card.id)
    stand_in.faults.append(Fault(CREATE, is_done=True))
    assert captured(stripe_gateway, charge).status == "unknown"
    del resources.store[f"payment_method:{card.id}"]
    assert captured(stripe_gateway, charge).status == "refused"
    assert refunded(stripe_gateway, charge).status == "refunded"
    assert stand_in.refunded() == stand_in.captured() == {"k": 5_00}


def test_a_wrong_call_that_stripe_repeats_is_void(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    fault = Fault(CREATE, status=400, code="amount_too_small", is_repeated=True)
    stand_in.faults.append(fault)
    assert captured(stripe_gateway).status == "refused"
    assert refunded(stripe_gateway).status == "void"


def test_an_amount_that_is_refused_without_a_card_is_void(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    fault = Fault(CREATE, status=400, code="amount_too_small")
    stand_in.faults += [fault, replace(fault)]
    assert captured(stripe_gateway).status == "refused"
    assert refunded(stripe_gateway).status == "void"


@pytest.mark.parametrize("has_forgotten", [True, False], ids=["keys forgotten", "keys known"])
def test_a_late_charge_is_looked_for_and_never_made(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn, has_forgotten: bool
) -> None:
    first = captured(stripe_gateway)
    if has_forgotten:
        stand_in.keys.clear()
    assert captured(stripe_gateway, LATE) == first
    assert refunded(stripe_gateway, LATE).status == "refunded"
    assert stand_in.refunded() == stand_in.captured() == {"k": 5_00}
    other = a_charge("other")
    answer = captured(stripe_gateway, replace(other, intended_at=EARLIER))
    assert (answer.status, answer.reason) == ("void", "it was not made in time")
    assert captured(stripe_gateway, other).status == "void"
    assert charges_made(stand_in) == 2


def test_a_late_charge_that_the_search_does_not_know_yet_is_told_by_its_key(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    captured(stripe_gateway)
    stand_in.is_searchable = False
    assert captured(stripe_gateway, LATE).status == "captured"
    assert refunded(stripe_gateway, LATE).status == "refunded"
    assert stand_in.refunded() == stand_in.captured() == {"k": 5_00}


@pytest.mark.parametrize("charge", [a_charge(), LATE], ids=["soon", "late"])
def test_a_declined_charge_is_void_whenever_it_is_refunded(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn, charge: Charge
) -> None:
    declined = replace(charge, payment_method="pm_card_chargeDeclined")
    captured(stripe_gateway, replace(declined, intended_at=None))
    assert refunded(stripe_gateway, declined).status == "void"
    assert refunded(stripe_gateway, declined).status == "void"


def test_a_refund_months_later_is_given_once_and_has_its_old_name(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    known = replace(a_charge(), reference=captured(stripe_gateway).reference)
    stand_in.keys.clear()
    first = refunded(stripe_gateway, known)
    stand_in.keys.clear()
    assert refunded(stripe_gateway, known) == first
    assert stand_in.refunded() == {"k": 5_00}
    assert stand_in.made(SEARCH) == []


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("expired_or_canceled_card", "give the money back by another way"),
        ("insufficient_funds", "top up the balance"),
        (None, "give the money back by another way"),
    ],
)
def test_a_refund_that_failed_at_the_bank_is_made_again_under_the_next_key(
    stripe_gateway: StripeGateway,
    stand_in: StripeStandIn,
    monkeypatch: pytest.MonkeyPatch,
    reason: str | None,
    remedy: str,
) -> None:
    known = replace(a_charge(), reference=captured(stripe_gateway).reference)
    create = resources.Refund._api_create

    def failing(**data: object) -> resources.Refund:
        refund = create(**data)
        refund.status, refund.failure_reason = "failed", reason
        return refund

    with monkeypatch.context() as patch:
        patch.setattr(resources.Refund, "_api_create", failing)
        answer = refunded(stripe_gateway, known)
    assert (answer.status, answer.key_is_spent) == ("refused", True)
    assert f"has failed ({reason or 'no reason is given'}); " in answer.reason
    assert remedy in answer.reason
    assert refunded(stripe_gateway, known).status == "refused"
    assert refunded(stripe_gateway, replace(known, refund_number=2)).status == "refunded"
    assert stand_in.refunded() == {"k": 5_00}


@pytest.mark.parametrize(
    ("code", "remedy"), [*REFUND_REMEDIES.items(), ("unheard_of", "see it in Stripe's dashboard")]
)
def test_a_refund_that_is_refused_is_made_under_the_next_key_and_says_what_to_do(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn, code: str, remedy: str
) -> None:
    captured(stripe_gateway)
    stand_in.faults.append(Fault(REFUND, status=400, code=code, is_repeated=True))
    for _ in range(2):
        answer = refunded(stripe_gateway)
        assert (answer.status, answer.key_is_spent) == ("refused", True)
        assert f"Stripe does not take the call ({code})" in answer.reason
        assert remedy in answer.reason
        assert len(answer.reason) < TEXT_AT_MOST
    assert refunded(stripe_gateway, replace(a_charge(), refund_number=2)).status == "refunded"
    assert [call.headers["Idempotency-Key"] for call in stand_in.made(REFUND)] == [
        "k:refund",
        "k:refund",
        "k:refund:2",
    ]
    assert stand_in.refunded() == {"k": 5_00}


@pytest.mark.parametrize("status", ["pending", "succeeded", "requires_action"])
def test_a_refund_that_is_there_already_counts_whatever_the_next_key_is(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn, status: str
) -> None:
    captured(stripe_gateway)
    first = refunded(stripe_gateway)
    stand_in.all(resources.Refund)[0].status = status
    assert refunded(stripe_gateway, replace(a_charge(), refund_number=3)) == first
    assert len(stand_in.made(REFUND)) == 1


def test_a_refund_under_the_next_key_gives_back_what_a_part_refund_has_left(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    reference = captured(stripe_gateway).reference
    by_hand = {"payment_intent": reference, "amount": "200", "metadata[by]": "hand"}
    httpx.post(f"{stand_in.url}/v1/refunds", data=by_hand, auth=(SECRET, "")).raise_for_status()
    assert refunded(stripe_gateway, replace(a_charge(), refund_number=2)).status == "refunded"
    assert stand_in.refunded() == {"k": 3_00, "by hand": 2_00}


@pytest.mark.parametrize("code", CHARGE_REMEDIES)
def test_a_charge_that_is_refused_says_what_to_do(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn, code: str
) -> None:
    stand_in.faults.append(Fault(CREATE, status=400, code=code))
    answer = captured(stripe_gateway)
    assert answer.status == "refused"
    assert answer.reason.endswith(CHARGE_REMEDIES[code])


def test_the_document_has_each_refusal_and_its_remedy() -> None:
    document = " ".join((DOCUMENTS / "payments.md").read_text().split())
    rows = re.findall(r"\| (`[^|]*`) \| [^|]* \| ([^|]*) \|", document)
    said = {code: remedy for codes, remedy in rows for code in re.findall(r"`(\w+)`", codes)}
    for remedies in (REFUND_REMEDIES, CHARGE_REMEDIES):
        assert [code for code in remedies if code not in said] == []


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [(None, "", "unknown"), (500, "", "unknown"), (400, "charge_disputed", "refused")],
)
def test_a_refund_without_an_answer_is_asked_for_again(
    stripe_gateway: StripeGateway,
    stand_in: StripeStandIn,
    status: int | None,
    code: str,
    expected: str,
) -> None:
    captured(stripe_gateway)
    stand_in.faults.append(Fault(REFUND, status=status, code=code, is_done=status is None))
    answer = refunded(stripe_gateway)
    assert (answer.status, answer.key_is_spent) == (expected, expected == "refused")
    assert refunded(stripe_gateway).status == "refunded"
    assert stand_in.refunded() == {"k": 5_00}


def test_two_charges_under_one_key_are_refused_before_any_is_made(
    stripe_gateway: StripeGateway, stand_in: StripeStandIn
) -> None:
    with pytest.raises(KeyReused):
        stripe_gateway.capture([a_charge(), a_charge(cents=5_01)])
    assert stand_in.calls == []


def looked_at_payments() -> list[Diagnosis]:
    return list(next(check for check in CHECKS if check.name == "payments").look())


def test_the_doctor_asks_stripe_and_knows_a_test_key(
    database: str, paid_by_stripe: StripeStandIn, setting: Callable[[str, object], None]
) -> None:
    assert [diagnosis.verdict for diagnosis in looked_at_payments()] == [Verdict.WARNING]
    setting("stripe_secret_key", "sk_live_not_to_be_seen_anywhere")
    assert [diagnosis.verdict for diagnosis in looked_at_payments()] == [Verdict.OK]
    assert {(call.method, call.path) for call in paid_by_stripe.calls} == {
        ("GET", "/v1/payment_intents")
    }


def test_the_doctor_tells_of_a_key_that_stripe_does_not_accept(
    database: str, paid_by_stripe: StripeStandIn
) -> None:
    paid_by_stripe.faults.append(Fault(("GET", "/v1/payment_intents"), status=401))
    [diagnosis] = looked_at_payments()
    assert (diagnosis.verdict, "HTTP 401" in diagnosis.says) == (Verdict.MEND, True)
    paid_by_stripe.faults.append(Fault(("GET", "/v1/payment_intents"), status=500))
    with pytest.raises(PaymentGatewayUnavailable):
        looked_at_payments()


@pytest.mark.usefixtures("database", "paid_by_stripe")
def test_the_audit_holds_orders_against_their_records_and_says_what_it_does_not_compare() -> None:
    placed("o-1", "prepare_order", 2)
    placed("o-2", "prepare_order", 2)
    end_run("o-2")
    assert not is_compared_with_gateway()
    with snapshot() as session:
        assert list(audit(session)) == []
    set_order("o-1", due_cents=7)
    with snapshot() as session:
        found = {finding.invariant for finding in audit(session)}
    set_order("o-1", due_cents=40_00)
    assert found == {"I3 due", "I3 recorded"}
