"""A setting that is missing or wrong is named, and none is read at import."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from pydantic import ValidationError

from store.settings import Settings, settings
from tests.shop import NOWHERE

BY_FILE = "postgresql+psycopg://by-file@db/store"
SECRET = "sk_test_not_to_be_seen_anywhere"  # noqa: S105


def test_the_database_has_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORE_DATABASE_URL", raising=False)
    with pytest.raises(ValidationError, match=r"database_url\n  Field required"):
        settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("currency", "dollars"),
        ("timezone", "Europe/Entenhausen"),
        ("timezone", "../etc/passwd"),
        ("courier_timeout_seconds", "0"),
        ("courier_timeout_seconds", "4h"),
        ("pause_poll_seconds", "0"),
        ("visibility_timeout_seconds", "0"),
        ("queue", "kafka"),
        ("topic", "smoke"),
        ("payments", "cash"),
        ("stripe_api_url", "stripe"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", NOWHERE)
    monkeypatch.setenv(f"STORE_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name):
        settings()


@pytest.mark.parametrize("given", [None, ""])
def test_stripe_needs_its_key(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", NOWHERE)
    monkeypatch.setenv("STORE_PAYMENTS", "stripe")
    if given is not None:
        monkeypatch.setenv("STORE_STRIPE_SECRET_KEY", given)
    with pytest.raises(ValidationError, match="needs STORE_STRIPE_SECRET_KEY"):
        settings()


def test_stripe_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", NOWHERE)
    monkeypatch.setenv("STORE_PAYMENTS", "stripe")
    monkeypatch.setenv("STORE_STRIPE_SECRET_KEY", SECRET)
    monkeypatch.setattr("store.settings.find_spec", lambda _: None)
    with pytest.raises(ValidationError, match=r"install store-checkout\[stripe\]"):
        settings()


@pytest.mark.parametrize("currency", ["JPY", "ISK", "KWD", "CLF"])
def test_a_currency_without_hundredths_is_refused_by_its_name_and_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, currency: str
) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", NOWHERE)
    monkeypatch.setenv("STORE_CURRENCY", currency)
    with pytest.raises(ValidationError, match=f"currency\n.* {currency} .* set STORE_CURRENCY to"):
        settings()


@pytest.mark.parametrize(("currency", "goes"), [("EUR", True), ("MGA", False)])
def test_a_currency_that_stripe_counts_otherwise_does_not_go_with_it(
    monkeypatch: pytest.MonkeyPatch, currency: str, goes: bool
) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", NOWHERE)
    monkeypatch.setenv("STORE_PAYMENTS", "stripe")
    monkeypatch.setenv("STORE_STRIPE_SECRET_KEY", SECRET)
    monkeypatch.setenv("STORE_CURRENCY", currency)
    with nullcontext() if goes else pytest.raises(ValidationError, match="another minor unit"):
        settings()


def test_no_secret_is_shown_by_the_settings_or_their_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", f"postgresql+psycopg://shop:{SECRET}@localhost/store")
    monkeypatch.setenv("STORE_STRIPE_SECRET_KEY", SECRET)
    given = settings()
    assert SECRET not in repr(given.stripe_secret_key) + str(given.stripe_secret_key)
    for name, wrong in {"QUEUE": "sqs", "CURRENCY": "ISK", "TOPIC": "smoke"}.items():
        settings.cache_clear()
        monkeypatch.setenv("STORE_PAYMENTS", "stripe")
        with monkeypatch.context() as patch:
            patch.setenv(f"STORE_{name}", wrong)
            with pytest.raises(ValidationError) as refused:
                settings()
        assert SECRET not in str(refused.value)


def test_a_secret_may_be_a_file_and_a_variable_goes_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "store_database_url").write_text(f"{BY_FILE}\n")
    (tmp_path / "store_currency").write_text("EUR\n")
    monkeypatch.delenv("STORE_DATABASE_URL", raising=False)
    monkeypatch.setenv("STORE_SECRETS_FOLDER", str(tmp_path))
    monkeypatch.setenv("STORE_CURRENCY", "CHF")
    assert settings().database_url == BY_FILE
    assert settings().currency == "CHF"


def test_a_folder_of_secrets_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", NOWHERE)
    monkeypatch.setenv("STORE_SECRETS_FOLDER", str(tmp_path / "gone"))
    with pytest.raises(NotADirectoryError, match="STORE_SECRETS_FOLDER: there is no"):
        settings()


def test_settings_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", NOWHERE)
    first = settings()
    monkeypatch.setenv("STORE_DATABASE_URL", f"{NOWHERE}/else")
    assert settings() is first


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
