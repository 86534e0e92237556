"""The timeline of an order in Prefect, under a key of its own."""

import re

from flows.order.events import artifact_key


def test_an_ordinary_id_is_its_key() -> None:
    assert artifact_key("2024-0001") == "order-2024-0001"
    assert artifact_key("0b5ab1c5-0000-4000-8000-000000000001").endswith("-000000000001")


def test_ids_that_differ_have_keys_that_differ_and_prefect_takes() -> None:
    ids = ["A1", "a1", "a.1", "a_1", "a-1", "a--1", "A-1", "A.1", "a1.", "a1-", "a1_", "A1-"]
    ids += [artifact_key(id_).removeprefix("order-") for id_ in ids]
    keys = {id_: artifact_key(id_) for id_ in ids}
    assert len(set(keys.values())) == len(set(ids))
    assert all(re.fullmatch("[a-z0-9-]+", key) for key in keys.values())
    assert keys["A.1"].startswith("order-a-1--")


def test_no_word_of_a_key_is_wider_than_the_ui_has_room_for() -> None:
    words = artifact_key("0123456789abcdef" * 4).split("-")
    assert words[1:5] == ["0123456789abcdef"] * 4
    assert artifact_key("0123456789abcdef" * 2) == f"order-{'0123456789abcdef' * 2}"
