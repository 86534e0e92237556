"""What is taken as an order and what is refused, by Prefect's own check and by pydantic.

Prefect's check runs on the flow's parameter schema before a run exists; pydantic's runs when the
run starts. Each row says which of the two is the first to refuse.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError as RefusedByPrefect
from prefect.utilities.schema_tools.validation import (
    build_error_obj,
    is_valid_schema,
    validate,
)
from pydantic import ValidationError
from pydantic.alias_generators import to_snake

from flows.checkout import store_checkout
from seed.catalogue import EDUARDO_SANTANA, STRIPED_PAJAMAS, TEN_X_RULE
from store.messages import CheckoutOrder, CourierAnswer, OrderMessage, money
from store.wrong_input import problems

ORIGINAL = """{"userId": "01G4E1AZW2Q1X3QQEYBACQXMFH", "bookId": "01G4E1A9GF5CZWET09RSBR04PV",
"quantity": 50, "redeem": true}"""
"""The original's execution input, verbatim."""
ONE_TITLE: dict[str, Any] = json.loads(ORIGINAL)
ITEM = {"bookId": TEN_X_RULE, "quantity": 1}
CART = {"userId": EDUARDO_SANTANA, "items": [ITEM, {"bookId": STRIPED_PAJAMAS, "quantity": 2}]}

PREFECT = "Prefect"
PYDANTIC = "pydantic"


@pytest.fixture(scope="module")
def prefects_check() -> Callable[[Any], None]:
    """Prefect's check of a deployment's parameters, as its server makes it."""
    schema = parameter_schema(store_checkout).model_dump_for_openapi()
    is_valid_schema(schema)
    # The server's own check of the schema does not see the rules.
    for definition in schema["definitions"].values():
        is_valid_schema({"definitions": schema["definitions"], **definition["rules"]})

    def check(order: Any) -> None:
        validate({"order": order}, schema, raise_on_error=True)

    return check


def without(order: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in order.items() if name not in names}


def cart_of(*items: Any) -> dict[str, Any]:
    return {**CART, "items": list(items)}


BAD_INPUTS = [
    # What it is, the order, who refuses it first, and two texts: Prefect's (where it refuses)
    # and pydantic's, each naming the field.
    ("null", None, PREFECT, "'order'.*None is not of type", "valid dictionary"),
    ("a list", [ONE_TITLE], PREFECT, "'order'.*not of type 'object'", "valid dictionary"),
    ("JSON in a string", ORIGINAL, PREFECT, "'order'.*not of type 'object'", "valid dictionary"),
    ("nothing", {}, PREFECT, "bookId is missing: give", "userId\n  Field required"),
    ("no userId", without(ONE_TITLE, "userId"), PREFECT, "'userId' is a required", "userId\n"),
    ("userId null", {**ONE_TITLE, "userId": None}, PREFECT, "userId must be", "userId\n"),
    (
        "user_id null",
        {**without(ONE_TITLE, "userId"), "user_id": None},
        PREFECT,
        "userId is the name to use, not user_id",
        "user_id\n",
    ),
    ("userId a number", {**ONE_TITLE, "userId": 7}, PREFECT, "userId must be", "userId\n"),
    ("userId empty", {**ONE_TITLE, "userId": ""}, PREFECT, "userId must be", "userId\n"),
    (
        "userId with a line end",
        {**ONE_TITLE, "userId": f"{EDUARDO_SANTANA}\n"},
        PREFECT,
        "userId must be",
        "userId\n  Value error, must be",
    ),
    (
        "userId too long",
        {**ONE_TITLE, "userId": "u" * 65},
        PREFECT,
        "userId must be",
        "userId\n  Value error, must be",
    ),
    (
        "userId in both spellings",
        {**ONE_TITLE, "user_id": EDUARDO_SANTANA},
        PREFECT,
        "userId is the name to use, not user_id",
        "user_id\n  Extra inputs",
    ),
    (
        "unknown field",
        {**ONE_TITLE, "coupon": "X"},
        PREFECT,
        "'coupon' is not one of",
        "coupon\n  Extra",
    ),
    (
        "wrong case",
        {**ONE_TITLE, "Redeem": True},
        PREFECT,
        "'Redeem' is not one of",
        "Redeem\n  Extra",
    ),
    ("negative", {**ONE_TITLE, "quantity": -1}, PREFECT, "quantity must be", "quantity"),
    ("zero", {**ONE_TITLE, "quantity": 0}, PREFECT, "quantity must be", "quantity"),
    ("fraction", {**ONE_TITLE, "quantity": 1.5}, PREFECT, "quantity must be", "quantity"),
    ("whole float", {**ONE_TITLE, "quantity": 1.0}, PYDANTIC, "", "quantity.*\n  .*valid integer"),
    ("boolean", {**ONE_TITLE, "quantity": True}, PREFECT, "quantity must be", "quantity"),
    ("digits", {**ONE_TITLE, "quantity": "50"}, PREFECT, "quantity must be", "quantity"),
    ("1e21", {**ONE_TITLE, "quantity": 1e21}, PREFECT, "quantity must be", "quantity"),
    ("10 ** 21", {**ONE_TITLE, "quantity": 10**21}, PREFECT, "quantity must be", "quantity"),
    ("one too many", {**ONE_TITLE, "quantity": 100_001}, PREFECT, "quantity must be", "quantity"),
    ("quantity a list", {**ONE_TITLE, "quantity": [50]}, PREFECT, "quantity must be", "quantity"),
    (
        "quantity null",
        {**ONE_TITLE, "quantity": None},
        PREFECT,
        "quantity is missing: give",
        "quantity missing: give",
    ),
    (
        "no quantity",
        without(ONE_TITLE, "quantity"),
        PREFECT,
        "quantity is missing: give",
        "quantity missing: give",
    ),
    (
        "no bookId",
        without(ONE_TITLE, "bookId"),
        PREFECT,
        "bookId is missing: give",
        "bookId missing: give",
    ),
    (
        "bookId a path",
        {**ONE_TITLE, "bookId": "../x"},
        PREFECT,
        "bookId must be",
        "bookId\n  Value error, must be",
    ),
    ("redeem as text", {**ONE_TITLE, "redeem": "true"}, PREFECT, "redeem must be", "redeem\n"),
    ("redeem as 1", {**ONE_TITLE, "redeem": 1}, PREFECT, "redeem must be", "redeem\n"),
    ("redeem null", {**ONE_TITLE, "redeem": None}, PREFECT, "redeem must be", "redeem\n"),
    (
        "no item, no book",
        {"userId": "u"},
        PREFECT,
        "bookId is missing",
        "bookId and quantity missing: give",
    ),
    ("empty cart", cart_of(), PREFECT, "items must be", "items"),
    (
        "cart null",
        {**CART, "items": None},
        PREFECT,
        "bookId is missing",
        "bookId and quantity missing: give",
    ),
    ("cart without list", {**CART, "items": ITEM}, PREFECT, "items must be", "items"),
    ("cart of null", cart_of(None), PREFECT, r"order\.items\[0\]'.*None", "items"),
    ("cart of ids", cart_of(TEN_X_RULE), PREFECT, r"order\.items\[0\]'", "items"),
    (
        "cart and book",
        {**ONE_TITLE, "items": [ITEM]},
        PREFECT,
        "items come instead",
        "either items, or bookId",
    ),
    (
        "same book twice",
        cart_of(ITEM, ITEM),
        PREFECT,
        "items list a book",
        f"book {TEN_X_RULE} is listed",
    ),
    (
        "same book twice, otherwise",
        cart_of(ITEM, {**ITEM, "quantity": 2}),
        PYDANTIC,
        "",
        f"items: book {TEN_X_RULE} is listed",
    ),
    (
        "no bookId in a cart",
        cart_of({"quantity": 1}),
        PREFECT,
        r"order\.items\[0\]'.*'bookId' is a required",
        r"items.*0\.bookId",
    ),
    (
        "book null in a cart",
        cart_of({"bookId": None, "quantity": 1}),
        PREFECT,
        r"items\[0\]\'.*bookId must be",
        r"items.*0\.bookId",
    ),
    (
        "no quantity in a cart",
        cart_of({"bookId": TEN_X_RULE}),
        PREFECT,
        r"order\.items\[0\]'.*'quantity' is a required",
        r"items.*0\.quantity",
    ),
    (
        "zero in a cart",
        cart_of(ITEM, {"bookId": STRIPED_PAJAMAS, "quantity": 0}),
        PREFECT,
        r"items\[1\]\'.*quantity must be",
        r"items.*1\.quantity",
    ),
    (
        "price in a cart",
        cart_of({**ITEM, "price": 1}),
        PREFECT,
        r"order\.items\[0\]'.*'price' is not one of",
        r"items.*0\.price",
    ),
    (
        "cart of 101 titles",
        cart_of(*({"bookId": f"b{n}", "quantity": 1} for n in range(101))),
        PREFECT,
        "items must be",
        "items",
    ),
    ("orderId empty", {**ONE_TITLE, "orderId": ""}, PREFECT, "orderId must be", "orderId"),
    (
        "orderId with a space",
        {**ONE_TITLE, "orderId": "a b"},
        PREFECT,
        "orderId must be",
        "orderId",
    ),
    ("orderId a number", {**ONE_TITLE, "orderId": 12}, PREFECT, "orderId must be", "orderId"),
    (
        "payment method a card",
        {**ONE_TITLE, "paymentMethod": {"card": "4242"}},
        PREFECT,
        "paymentMethod must be",
        "paymentMethod",
    ),
]


@pytest.mark.parametrize(
    ("order", "refused_by", "prefects_text", "pydantics_text"),
    [row[1:] for row in BAD_INPUTS],
    ids=[row[0] for row in BAD_INPUTS],
)
def test_a_bad_input_is_refused_with_a_text_that_names_the_field(
    prefects_check: Callable[[Any], None],
    order: Any,
    refused_by: str,
    prefects_text: str,
    pydantics_text: str,
) -> None:
    if refused_by == PREFECT:
        with pytest.raises(RefusedByPrefect, match=prefects_text):
            prefects_check(order)
    else:
        prefects_check(order)
    with pytest.raises(ValidationError, match=pydantics_text):
        CheckoutOrder.model_validate(order)


CARD = "4242424242424242"


@pytest.mark.parametrize(
    "order",
    [
        {**ONE_TITLE, "paymentMethod": CARD},
        {**ONE_TITLE, "payment_method": CARD},
        {**ONE_TITLE, "paymentMethod": int(CARD)},
        {**ONE_TITLE, "paymentMethod": {"card": CARD}},
        {**ONE_TITLE, "quantity": CARD},
        {**ONE_TITLE, "quantity": int(CARD)},
        {**ONE_TITLE, "orderId": f"{CARD} 12/30"},
        {**ONE_TITLE, "user_id": [CARD]},
        {**ONE_TITLE, "redeem": CARD},
        {**ONE_TITLE, "items": CARD},
        {**ONE_TITLE, "colour": CARD},
        cart_of({**ITEM, "quantity": CARD}),
    ],
)
def test_a_refusal_quotes_neither_a_value_nor_a_regular_expression(
    prefects_check: Callable[[Any], None], order: dict[str, Any]
) -> None:
    with pytest.raises(RefusedByPrefect) as by_prefect:
        prefects_check(order)
    with pytest.raises(ValidationError) as by_pydantic:
        CheckoutOrder.model_validate(order)
    with pytest.raises(ParameterTypeError) as by_flow:
        store_checkout.validate_parameters({"order": order})
    for refusal in (by_prefect.value, by_pydantic.value, by_flow.value):
        assert CARD not in str(refusal)
        assert "A-Z" not in str(refusal)


@pytest.mark.parametrize("name", ["quantity", "orderId", "bookId", "paymentMethod", "items"])
def test_a_wrong_optional_field_is_one_problem_with_one_remedy(name: str) -> None:
    with pytest.raises(ValidationError) as refused:
        CheckoutOrder.model_validate({**ONE_TITLE, name: 0.5})
    (problem,) = problems(refused.value)
    assert problem.field == name
    assert "null" not in problem.reason


def test_an_unknown_field_is_answered_with_the_names_that_are_taken(
    prefects_check: Callable[[Any], None],
) -> None:
    with pytest.raises(RefusedByPrefect, match=r"'quantitty' is not one of .*'quantity'"):
        prefects_check({**ONE_TITLE, "quantitty": 1})


def test_the_form_is_told_of_each_broken_rule_at_its_field() -> None:
    schema = parameter_schema(store_checkout).model_dump_for_openapi()
    wrong = {"userId": "", "quantity": "5", "paymentMethod": CARD}
    (of_order,) = build_error_obj(validate({"order": wrong}, schema))["errors"]
    told = {each["property"] for each in of_order["errors"]}
    assert told == {"userId", "bookId", "quantity", "paymentMethod"}


CART_OF_ONE = {
    **without(ONE_TITLE, "bookId", "quantity"),
    "items": [{**ITEM, "quantity": 50}],
}
NULLS = {"orderId": None, "items": None, "paymentMethod": None}


@pytest.mark.parametrize(
    "order",
    [ONE_TITLE, CART_OF_ONE, {**ONE_TITLE, "orderId": "web-2024.10_7"}, {**ONE_TITLE, **NULLS}],
    ids=["the original's JSON", "a cart of one", "an orderId", "null for what may be absent"],
)
def test_each_way_to_write_the_originals_order_is_taken_and_means_the_same(
    prefects_check: Callable[[Any], None], order: dict[str, Any]
) -> None:
    prefects_check(order)
    for spelled in (order, in_snake_case(order)):
        assert CheckoutOrder.model_validate(spelled).content() == {
            "userId": EDUARDO_SANTANA,
            "items": [{"bookId": TEN_X_RULE, "quantity": 50}],
            "redeem": True,
            "paymentMethod": None,
        }


def in_snake_case(given: Any) -> Any:
    if isinstance(given, list):
        return [in_snake_case(each) for each in given]
    if isinstance(given, dict):
        return {to_snake(name): in_snake_case(value) for name, value in given.items()}
    return given


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (in_snake_case(ONE_TITLE), "userId is the name to use, not user_id"),
        ({**without(ONE_TITLE, "bookId"), "book_id": TEN_X_RULE}, "bookId is .*, not book_id"),
        (cart_of({"book_id": TEN_X_RULE, "quantity": 1}), r"items\[0\].*bookId is .*, not book_id"),
    ],
)
def test_prefects_check_names_the_field_that_is_written_in_snake_case(
    prefects_check: Callable[[Any], None], order: dict[str, Any], told: str
) -> None:
    with pytest.raises(RefusedByPrefect, match=told):
        prefects_check(order)


def test_prefects_server_does_not_check_the_rules_themselves_for_each_run() -> None:
    definitions = parameter_schema(store_checkout).model_dump_for_openapi()["definitions"]
    for definition in definitions.values():
        assert len(definition.pop("rules")["allOf"]) >= 3
    assert '"if"' not in json.dumps(definitions)


def test_the_form_marks_what_is_always_needed() -> None:
    definitions = parameter_schema(store_checkout).model_dump_for_openapi()["definitions"]
    assert definitions["CheckoutOrder"]["required"] == ["userId"]
    assert definitions["OrderItem"]["required"] == ["bookId", "quantity"]


def test_a_cart_of_several_titles_is_taken_whatever_its_order(
    prefects_check: Callable[[Any], None],
) -> None:
    turned = {**CART, "items": list(reversed(CART["items"]))}
    prefects_check(CART)
    prefects_check(turned)
    order = CheckoutOrder.model_validate(CART)
    assert [(line.book_id, line.quantity) for line in order.lines()] == [
        (TEN_X_RULE, 1),
        (STRIPED_PAJAMAS, 2),
    ]
    assert order.content() == CheckoutOrder.model_validate(turned).content()


def test_redeem_left_out_means_false(prefects_check: Callable[[Any], None]) -> None:
    order = without(ONE_TITLE, "redeem")
    prefects_check(order)
    assert CheckoutOrder.model_validate(order).redeem is False


@pytest.mark.parametrize("quantity", [1, 100_000])
def test_the_least_and_the_most_copies_are_taken(
    prefects_check: Callable[[Any], None], quantity: int
) -> None:
    order = {**ONE_TITLE, "quantity": quantity}
    prefects_check(order)
    assert CheckoutOrder.model_validate(order).quantity == quantity


def test_the_flow_takes_and_refuses_what_the_order_does() -> None:
    taken = store_checkout.validate_parameters({"order": ONE_TITLE})["order"]
    assert taken == CheckoutOrder.model_validate(ONE_TITLE)
    with pytest.raises(Exception, match=r"order\.redeem: Input should be a valid boolean"):
        store_checkout.validate_parameters({"order": {**ONE_TITLE, "redeem": 1}})


def test_the_run_form_shows_each_field_once_and_explains_it() -> None:
    definitions = parameter_schema(store_checkout).model_dump_for_openapi()["definitions"]
    shown = definitions["CheckoutOrder"]["properties"]
    assert list(shown) == [
        "userId",
        "bookId",
        "quantity",
        "items",
        "redeem",
        "orderId",
        "paymentMethod",
    ]
    assert all(field["description"] for field in shown.values())
    assert all("anyOf" not in field for field in shown.values())


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "not JSON",
        '{"order_id": "a", "attempt": 1}',
        '{"order_id": "a", "attempt": 0, "copies": 1}',
        '{"order_id": "a", "attempt": 1, "copies": 0}',
        '{"order_id": "a b", "attempt": 1, "copies": 1}',
        '{"order_id": "a", "attempt": 1, "copies": 1, "card": "4242"}',
        '{"version": 2, "order_id": "a", "attempt": 1, "copies": 1}',
    ],
)
def test_a_queue_message_that_says_too_little_or_too_much_cannot_be_read(body: str) -> None:
    with pytest.raises(ValidationError):
        OrderMessage.model_validate_json(body)


def test_a_queue_message_is_read_as_it_was_written() -> None:
    message = OrderMessage(order_id="a", attempt=2, copies=3)
    assert OrderMessage.model_validate_json(message.model_dump_json()) == message


def test_an_answer_without_an_outcome_is_not_one() -> None:
    with pytest.raises(ValidationError, match="outcome\n  Field required"):
        CourierAnswer.model_validate({})


@pytest.mark.parametrize(
    ("cents", "text"),
    [(0, "0.00 USD"), (5, "0.05 USD"), (70_000, "700.00 USD"), (-123_456, "-1234.56 USD")],
)
def test_money_is_written_as_people_read_it(cents: int, text: str) -> None:
    assert money(cents, "USD") == text


def test_the_form_has_its_fields_in_the_order_in_which_a_person_thinks() -> None:
    fields = CheckoutOrder.model_json_schema()["properties"]
    # As PostgreSQL keeps them: by length, then by bytes.
    kept = dict(sorted(fields.items(), key=lambda field: (len(field[0]), field[0])))
    shown = sorted(kept.values(), key=lambda field: int(field["position"]))
    assert [field["title"] for field in shown] == [
        *("Customer id", "Book id", "Copies", "Cart", "Redeem points", "Order id"),
        "Payment method",
    ]
