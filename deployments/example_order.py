"""The order of the examples, in the original's form."""

EXAMPLE_ORDER = (
    '{"userId": "01G4E1AZW2Q1X3QQEYBACQXMFH", "bookId": "01G4E1A9GF5CZWET09RSBR04PV", '
    '"quantity": 50, "redeem": true}'
)
FIRST_ORDER = EXAMPLE_ORDER.replace("{", '{"orderId": "first", ', 1)
"""The example with an id of its own, by which a newcomer finds it."""
