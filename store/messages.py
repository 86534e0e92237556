"""Orders, queue messages and receipts as they travel.

The input has no defaults that cost money and takes nothing that it does not know. JSON names are
those of the original (camelCase). Python names (snake_case) are taken as well, but not by Prefect's
check of a deployment's parameters.
"""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel, to_snake

from store.models import ID_LENGTH

MAX_COPIES = 100_000
MAX_TITLES = 100
NO_NUL = r"^[^\u0000]*$"
"""PostgreSQL keeps no NUL character in a text; a form may hold one."""

Outcome = Literal["courier assigned", "no courier available"]
ASSIGNED: Outcome = "courier assigned"
NO_COURIER: Outcome = "no courier available"

ID_RULE = (
    f"must be text of 1 to {ID_LENGTH} letters, digits, dots, dashes and underscores, and begin "
    "with a letter or digit"
)
PAYMENT_METHOD_RULE = (
    f"must be the name by which the gateway knows a payment method: 1 to {ID_LENGTH} letters, "
    "digits, dots, dashes and underscores, the first a letter. The number of a card is never taken"
)
QUANTITY_RULE = f"must be a whole number from 1 to {MAX_COPIES}"
REDEEM_RULE = "must be true or false"
ITEMS_RULE = f"must be a list of 1 to {MAX_TITLES} titles, each with bookId and quantity"


def _form(first: str) -> str:
    return rf"[{first}][A-Za-z0-9._-]{{0,{ID_LENGTH - 1}}}"


def _of_form(form: str, rule: str) -> AfterValidator:
    """Return a validator of a text's pattern that quotes no value."""

    def check(value: str) -> str:
        if not re.fullmatch(form, value):
            raise ValueError(rule)
        return value

    return AfterValidator(check)


def _stated(rule: str, **more: str) -> Any:
    """Return a field with its rule in the schema, for :func:`_restate`."""
    return Field(json_schema_extra={"rule": rule, **more})


_ID_FORM = _form("A-Za-z0-9")
_PAYMENT_METHOD_FORM = _form("A-Za-z")
Id = Annotated[str, _of_form(_ID_FORM, ID_RULE), _stated(ID_RULE, pattern=_ID_FORM)]
PaymentMethod = Annotated[
    str,
    _of_form(_PAYMENT_METHOD_FORM, PAYMENT_METHOD_RULE),
    _stated(PAYMENT_METHOD_RULE, pattern=_PAYMENT_METHOD_FORM),
]
"""The gateway's name of a means of payment. A card's number is none: nobody here may know it."""
Quantity = Annotated[int, Field(ge=1, le=MAX_COPIES), _stated(QUANTITY_RULE)]


def _restate(schema: dict[str, Any]) -> None:
    """State rules for Prefect's schema check, quoting no value.

    The check runs on this schema before pydantic sees the input, and its message quotes what a
    ``type`` or a ``pattern`` refuses. It names a missing property without a value, so a broken
    rule requires a property whose name is the rule. That message comes before those of the fields,
    which are deeper. It begins with the field's name and has no apostrophe, so that the UI's form
    shows it there.

    The form marks a field as needed only if ``required`` has its name, and the check refuses what
    ``required`` misses. So the check takes camelCase names alone.

    Before each check Prefect's server checks the schema itself, which would cost it as much as all
    else of a run's creation. That check leaves out what is under a name that JSON Schema does not
    know, such as ``rules``. The reference to it is dynamic because pydantic resolves plain ones.
    """
    properties: dict[str, Any] = schema["properties"]
    schema.pop("additionalProperties", None)
    # First: of several broken rules at one depth, the first is told.
    rules = [
        _rule({"not": {"required": [snake]}}, f"{name} is the name to use, not {snake}")
        for name in properties
        if (snake := to_snake(name)) != name
    ]
    for place, (name, definition) in enumerate(properties.items()):
        # PostgreSQL keeps a schema's keys in an order of its own; the form goes by this.
        definition["position"] = place
        is_nullable = definition.get("default", ...) is None
        if is_nullable:
            del definition["default"]
            definition.update(definition.pop("anyOf")[0])
        rule = definition.pop("rule")
        test = {key: definition[key] for key in _TESTED if key in definition}
        if "pattern" in definition:
            # Python's $ alone would take a line end after it.
            test["pattern"] = f"^{definition.pop('pattern')}$(?![\\s\\S])"
        if is_nullable:
            test = {"anyOf": [{"type": "null"}, test]}
        rules.append(_rule({"properties": {name: test}}, f"{name} {rule}"))
    schema["propertyNames"] = {"enum": list(properties)}
    schema["rules"] = {"allOf": rules}
    schema["allOf"] = [{"$dynamicRef": f"#/definitions/{schema['title']}/rules"}]


_TESTED = ("type", "minimum", "maximum", "minItems", "maxItems")


def _rule(test: dict[str, Any], text: str) -> dict[str, Any]:
    return {"if": {"not": test}, "then": {"required": [text]}}


def _given(name: str) -> dict[str, Any]:
    """Return the schema that requires a non-null field."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


def _restate_order(schema: dict[str, Any]) -> None:
    """State the rules between an order's fields as a schema allows.

    That one book is in two items with different quantities is left to pydantic.
    """
    _restate(schema)
    one_title = {"anyOf": [_given("bookId"), _given("quantity")]}
    schema["rules"]["allOf"] += [
        *(
            _rule({"anyOf": [_given("items"), _given(name)]}, f"{name} is missing: {_EITHER}")
            for name in ("bookId", "quantity")
        ),
        _rule(
            {"not": {"allOf": [_given("items"), one_title]}},
            "items come instead of bookId and quantity: give one of the two",
        ),
        _rule(
            {"properties": {"items": {"uniqueItems": True}}},
            "items list a book twice: add the quantities in one item",
        ),
    ]


_EITHER = "give bookId and quantity, or items"


class Input(BaseModel):
    """Base of what comes from outside: strict types, no unknown field, both spellings."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=True,
        json_schema_extra=_restate,
    )


class OrderItem(Input):
    """Copies of one title in a cart."""

    book_id: Id = Field(title="Book id", description="The book's id. Always needed.")
    quantity: Quantity = Field(
        title="Copies", description="How many copies of it, a whole number from 1. Always needed."
    )


Items = Annotated[list[OrderItem], Field(min_length=1, max_length=MAX_TITLES), _stated(ITEMS_RULE)]


class CheckoutOrder(Input):
    """An order: one title (bookId and quantity) or a cart of several (items)."""

    model_config = ConfigDict(json_schema_extra=_restate_order)

    user_id: Id = Field(
        title="Customer id",
        description="The customer's id, such as 01G4E1AZW2Q1X3QQEYBACQXMFH. Always needed.",
    )
    book_id: Id | None = Field(
        default=None,
        title="Book id",
        description="The book's id, such as 01G4E1A9GF5CZWET09RSBR04PV, for an order of one title.",
    )
    quantity: Quantity | None = Field(
        default=None, title="Copies", description="How many copies of it, a whole number from 1."
    )
    items: Items | None = Field(
        default=None,
        title="Cart",
        description="A cart of several titles, instead of one book id and its copies.",
    )
    redeem: Annotated[bool, _stated(REDEEM_RULE)] = Field(
        default=False,
        title="Redeem points",
        description="Pay with the customer's points as far as they go.",
    )
    order_id: Id | None = Field(
        default=None,
        title="Order id",
        description="Your own id of the order, such as web-1001, the idempotency key: the same "
        "order sent twice is carried out once. Left out, the flow run's id is taken.",
    )
    payment_method: PaymentMethod | None = Field(
        default=None,
        title="Payment method",
        description="The payment method to charge, such as pm_card_visa. Left out, the "
        "customer's own is taken.",
    )

    @model_validator(mode="after")
    def _one_title_or_a_cart(self) -> Self:
        if self.items is not None:
            if self.book_id is not None or self.quantity is not None:
                raise ValueError("give either items, or bookId and quantity, not both")
            titles = [item.book_id for item in self.items]
            twice = sorted({title for title in titles if titles.count(title) > 1})
            if twice:
                raise ValueError(
                    f"items: book {twice[0]} is listed twice; add the quantities in one item"
                )
        elif self.book_id is None or self.quantity is None:
            missing = [
                name
                for name, value in (("bookId", self.book_id), ("quantity", self.quantity))
                if value is None
            ]
            raise ValueError(f"{' and '.join(missing)} missing: {_EITHER}")
        return self

    def lines(self) -> list[OrderItem]:
        """Return the order's lines, one for each title.

        Both ways of writing an order are taken.
        """
        if self.book_id is not None and self.quantity is not None:
            return [OrderItem(book_id=self.book_id, quantity=self.quantity)]
        return list(self.items or [])

    def content(self) -> dict[str, Any]:
        """Return the order's content in one spelling, equal for equal orders."""
        return {
            "userId": self.user_id,
            "items": sorted(
                ({"bookId": line.book_id, "quantity": line.quantity} for line in self.lines()),
                key=lambda line: str(line["bookId"]),
            ),
            "redeem": self.redeem,
            "paymentMethod": self.payment_method,
        }


class OrderMessage(BaseModel):
    """The queue's message: an order seeks a courier. It carries ids and amounts, no names."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    version: Literal[1] = 1
    order_id: Id
    attempt: int = Field(ge=1)
    copies: int = Field(ge=1)


CourierId = Annotated[str, Field(max_length=ID_LENGTH, pattern=NO_NUL)]
Reason = Annotated[str, Field(max_length=500, pattern=NO_NUL)]
AnsweredBy = Annotated[
    str,
    Field(
        max_length=ID_LENGTH,
        pattern=NO_NUL,
        title="Answered by",
        description="Who answers: your name or initials.",
    ),
]


class CourierAnswer(BaseModel):
    """A courier's answer to an order, from the dispatcher or from a person's form."""

    model_config = ConfigDict(hide_input_in_errors=True)

    outcome: Outcome = Field(description="Is there a courier who takes the order?")
    courier: CourierId = Field(
        default="", description="Needed for “courier assigned”, left empty otherwise."
    )
    reason: Reason = Field(
        default="", description="Why no courier takes it. Shown with the order: no personal data."
    )
    answered_by: AnsweredBy = ""


BatchOutcome = Literal["go on as decided", "courier assigned", "no courier available"]
GO_ON: BatchOutcome = "go on as decided"


class BatchAnswer(BaseModel):
    """The answer to a batch that waits: go on, or decide on all of its orders that still wait."""

    model_config = ConfigDict(hide_input_in_errors=True)

    outcome: BatchOutcome = Field(
        description="Go on with what is decided, or decide on every order that still waits."
    )
    courier: CourierId = Field(
        default="",
        description="The id of the courier who takes the orders that still wait, if one does.",
    )
    reason: Reason = Field(
        default="",
        description="Why no courier takes them. Shown with each order: no personal data.",
    )
    answered_by: AnsweredBy = ""


class ReceiptLine(BaseModel):
    """One title of a receipt."""

    book_id: str
    title: str
    quantity: int
    unit_price_cents: int


class Receipt(BaseModel):
    """What a finished checkout returns."""

    order_id: str
    attempt: int
    status: str
    lines: list[ReceiptLine]
    currency: str
    total_cents: int
    points_redeemed: int
    billed_cents: int
    courier: str
    dispatched_at: datetime


def money(cents: int, currency: str) -> str:
    """Return an amount as text, as ``money(70000, "USD")`` returns ``"700.00 USD"``."""
    units, hundredths = divmod(abs(cents), 100)
    return f"{'-' if cents < 0 else ''}{units}.{hundredths:02d} {currency}"
