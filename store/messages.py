"""What travels: the order as it comes in, the queue's message, the receipt as it goes out.

The input has no defaults that cost money and takes nothing that it does not know. JSON names are
those of the original (camelCase); Python names (snake_case) are taken as well.
"""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel
from pydantic.json_schema import SkipJsonSchema

from store.models import ID_LENGTH

MAX_COPIES = 100_000
NO_NUL = r"^[^\u0000]*$"
"""PostgreSQL keeps no NUL character in a text; a form may hold one."""

Outcome = Literal["courier assigned", "no courier available"]
ASSIGNED: Outcome = "courier assigned"
NO_COURIER: Outcome = "no courier available"

Id = Annotated[str, Field(pattern=rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{ID_LENGTH - 1}}}$")]
PaymentMethod = Annotated[str, Field(pattern=rf"^[A-Za-z][A-Za-z0-9._-]{{0,{ID_LENGTH - 1}}}$")]
"""The gateway's name of a means of payment. A card's number is none: nobody here may know it."""
Quantity = Annotated[int, Field(ge=1, le=MAX_COPIES)]


def _accept_both_spellings(schema: dict[str, Any]) -> None:
    """Let Prefect's own parameter check pass snake_case names, and show only camelCase ones.

    The check runs on this schema before pydantic sees the input. ``patternProperties`` and
    ``if``/``then`` are used because the UI's form ignores them.
    """
    properties: dict[str, Any] = schema["properties"]
    for definition in properties.values():
        if definition.get("default", ...) is None:
            del definition["default"]
    snake = {
        name: "".join(f"_{c.lower()}" if c.isupper() else c for c in name) for name in properties
    }
    required = schema.pop("required", [])
    schema["patternProperties"] = {
        f"^{snake[name]}$": {
            "type": definition["type"] if name in required else [definition["type"], "null"],
            "pattern": definition["pattern"],
        }
        for name, definition in properties.items()
        if snake[name] != name
    }
    schema["required"] = [name for name in required if snake[name] == name]
    # The type is said again: Prefect lets null pass for a property that is not in "required".
    schema["allOf"] = [
        {
            "if": {"not": {"required": [snake[name]]}},
            "then": {
                "required": [name],
                "properties": {name: {"type": properties[name]["type"]}},
            },
        }
        for name in required
        if snake[name] != name
    ]


class Input(BaseModel):
    """Base of what comes from outside: strict types, no unknown field, both spellings."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        json_schema_extra=_accept_both_spellings,
    )


class OrderItem(Input):
    """Copies of one title in a cart."""

    book_id: Id = Field(description="The book's id.")
    quantity: Quantity = Field(description="How many copies of it, a whole number from 1.")


class CheckoutOrder(Input):
    """An order: one title (`bookId` and `quantity`) or a cart of several (`items`)."""

    user_id: Id = Field(description="The customer's id.")
    book_id: Id | SkipJsonSchema[None] = Field(
        default=None, description="The book's id, for an order of one title."
    )
    quantity: Quantity | SkipJsonSchema[None] = Field(
        default=None, description="How many copies of it, a whole number from 1."
    )
    items: (
        Annotated[list[OrderItem], Field(min_length=1, max_length=100)] | SkipJsonSchema[None]
    ) = Field(default=None, description="A cart of several titles, instead of bookId and quantity.")
    redeem: bool = Field(
        default=False, description="Pay with the customer's points as far as they go."
    )
    order_id: Id | SkipJsonSchema[None] = Field(
        default=None,
        description="Your own id of the order, the idempotency key: the same order sent twice "
        "is carried out once. Left out, the flow run's id is taken.",
    )
    payment_method: PaymentMethod | SkipJsonSchema[None] = Field(
        default=None,
        description="The payment method to charge. Left out, the customer's own is taken.",
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
            raise ValueError(f"{' and '.join(missing)} missing: give bookId and quantity, or items")
        return self

    def lines(self) -> list[OrderItem]:
        """Return the order's lines, one a title, whichever way the order was written."""
        if self.book_id is not None and self.quantity is not None:
            return [OrderItem(book_id=self.book_id, quantity=self.quantity)]
        return list(self.items or [])

    def content(self) -> dict[str, Any]:
        """Return what the order asks for, in one spelling: equal for equal orders."""
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

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    order_id: Id
    attempt: int = Field(ge=1)
    copies: int = Field(ge=1)


class CourierAnswer(BaseModel):
    """A courier's answer to an order, from the dispatcher or from a person's form."""

    outcome: Outcome = Field(description="Is there a courier who takes the order?")
    courier: str = Field(
        default="",
        max_length=ID_LENGTH,
        pattern=NO_NUL,
        description="The courier's id, if one takes the order.",
    )
    reason: str = Field(
        default="",
        max_length=500,
        pattern=NO_NUL,
        description="Why no courier takes it. Shown with the order: no personal data.",
    )
    answered_by: str = Field(
        default="",
        max_length=ID_LENGTH,
        pattern=NO_NUL,
        description="Who answers: your name or initials.",
    )


BatchOutcome = Literal["go on as decided", "courier assigned", "no courier available"]
GO_ON: BatchOutcome = "go on as decided"


class BatchAnswer(BaseModel):
    """The answer to a batch that waits: go on, or decide on all of its orders that still wait."""

    outcome: BatchOutcome = Field(
        description="Go on with what is decided, or decide on every order that still waits."
    )
    courier: str = Field(
        default="",
        max_length=ID_LENGTH,
        pattern=NO_NUL,
        description="The id of the courier who takes the orders that still wait, if one does.",
    )
    reason: str = Field(
        default="",
        max_length=500,
        pattern=NO_NUL,
        description="Why no courier takes them. Shown with each order: no personal data.",
    )
    answered_by: str = Field(
        default="",
        max_length=ID_LENGTH,
        pattern=NO_NUL,
        description="Who answers: your name or initials.",
    )


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
    """Return an amount as people read it: ``money(70000, "USD")`` is ``"700.00 USD"``."""
    return f"{cents // 100}.{cents % 100:02d} {currency}"
