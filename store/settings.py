"""Every setting of the store, read from the environment (prefix ``STORE_``)."""

from functools import lru_cache
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The store's settings; each field is the environment variable ``STORE_<FIELD>``.

    Read at entry points through :func:`settings`, never at import.
    """

    model_config = SettingsConfigDict(env_prefix="STORE_", extra="ignore")

    database_url: str = Field(
        description="SQLAlchemy URL of the store's database: `postgresql+psycopg://…`, or "
        "`sqlite:////absolute/path.db`. Relative SQLite paths would point into a worker's "
        "temporary folder.",
    )
    currency: str = Field(
        default="USD",
        pattern=r"^[A-Z]{3}$",
        description="ISO 4217 code of the currency in which every price is given.",
    )
    courier_timeout_seconds: int = Field(
        default=4 * 3600,
        ge=1,
        description="How long an order waits for a courier's answer before it is compensated.",
    )
    pause_poll_seconds: int = Field(
        default=5,
        ge=1,
        description="How often a paused run asks Prefect whether it was resumed. Each waiting "
        "order costs one request in this time.",
    )
    visibility_timeout_seconds: int = Field(
        default=30,
        ge=1,
        description="How long a received message stays hidden from other dispatchers.",
    )
    queue: Literal["table"] = Field(
        default="table",
        description="Order queue: `table`, in the store's own database.",
    )
    topic: Literal["table"] = Field(
        default="table",
        description="Notifications: `table`, in the store's own database.",
    )
    payments: Literal["ledger"] = Field(
        default="ledger",
        description="Payment gateway: `ledger`, in the store's own database.",
    )


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the settings of this process, read once from the environment.

    Raises:
        pydantic.ValidationError: a setting is missing or wrong; it names the field.
    """
    return Settings()
