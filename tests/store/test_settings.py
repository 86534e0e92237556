"""A setting that is missing or wrong is named, and none is read at import."""

import pytest
from pydantic import ValidationError

from store.settings import Settings, settings


def test_the_database_has_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORE_DATABASE_URL", raising=False)
    with pytest.raises(ValidationError, match=r"database_url\n  Field required"):
        settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("currency", "dollars"),
        ("courier_timeout_seconds", "0"),
        ("courier_timeout_seconds", "4h"),
        ("pause_poll_seconds", "0"),
        ("visibility_timeout_seconds", "0"),
        ("queue", "kafka"),
        ("topic", "smoke"),
        ("payments", "cash"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", "sqlite:////tmp/store.db")
    monkeypatch.setenv(f"STORE_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name):
        settings()


def test_settings_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", "sqlite:////tmp/one.db")
    first = settings()
    monkeypatch.setenv("STORE_DATABASE_URL", "sqlite:////tmp/two.db")
    assert settings() is first


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
