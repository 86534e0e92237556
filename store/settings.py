"""Every setting of the store, read from the environment (prefix ``STORE_``)."""

import os
import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from store.database_url import checked_database_url

TOKEN_LENGTH_AT_LEAST = 32
"""What is not to be guessed; `openssl rand -hex 24` has 48."""
URL_OR_EMPTY = r"^(https?://\S+)?$"
"""An empty variable counts as not set."""
WITHOUT_HUNDREDTHS = (
    "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF "  # whole units
    "BHD IQD JOD KWD LYD OMR TND "  # thousandths
    "CLF UYW"  # ten-thousandths
)
"""Currencies that have another minor unit in ISO 4217: points and texts would be off by it."""
COUNTED_OTHERWISE_BY_STRIPE = ("MGA",)
"""Currencies with hundredths that Stripe counts in whole units: a charge would be off by 100."""


def parse_tokens(given: SecretStr | None) -> dict[str, str]:
    """Return the front ends' tokens by name, or an empty mapping.

    Raises:
        ValueError: the text is not of that form; it quotes no token.
    """
    tokens: dict[str, str] = {}
    text = given.get_secret_value() if given else ""
    for pair in filter(None, map(str.strip, text.split(","))):
        name, _, token = pair.partition(":")
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or len(token) < TOKEN_LENGTH_AT_LEAST:
            raise ValueError(
                "give name:token pairs, separated by commas; a name has 1 to 64 letters, digits, "
                f"dots, dashes and underscores, a token at least {TOKEN_LENGTH_AT_LEAST} characters"
            )
        if name in tokens or token in tokens.values():
            raise ValueError(f"the name {name}, or its token, is given twice")
        tokens[name] = token
    return tokens


class Settings(BaseSettings):
    """The store's settings.

    Each field is the environment variable ``STORE_<FIELD>``.

    Read at entry points through :func:`settings`, never at import.
    """

    # Without the input: an error about one setting would print the secrets in all the others.
    model_config = SettingsConfigDict(
        env_prefix="STORE_", extra="ignore", hide_input_in_errors=True
    )

    database_url: str = Field(
        description="SQLAlchemy URL of the store's database: "
        "`postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE`. In a user or a password write "
        "`@` as `%40`, `:` as `%3A`, `/` as `%2F`, `?` as `%3F`, `#` as `%23` and `%` as `%25`."
    )
    currency: str = Field(
        default="USD",
        pattern=r"^[A-Z]{3}$",
        description="ISO 4217 code of the currency of all prices. It must have hundredths.",
    )
    smallest_charge_cents: int = Field(
        default=50,
        ge=0,
        description="The smallest amount that the payment gateway charges, in the currency's minor "
        "unit. An order keeps some points rather than leave less to be charged; see "
        "[Payments](payments.md#when-stripe-refuses).",
    )
    timezone: str = Field(
        default="UTC",
        description="IANA name of the shop's time zone, such as `Europe/Berlin`. Forms, timelines, "
        "notices, run names, `checkout report` and `checkout export` use it; other commands and "
        "logs use UTC.",
    )
    courier_timeout_seconds: int = Field(
        default=4 * 3600,
        ge=1,
        description="Seconds that an order waits for a courier's answer before it is compensated.",
    )
    pause_poll_seconds: int = Field(
        default=5,
        ge=1,
        description="Seconds between a paused run's polls of Prefect, one request for each waiting "
        "order. `make up` sets 1.",
    )
    reminder_seconds: int = Field(
        default=1800,
        ge=0,
        description="Seconds before the end of an order's wait at which the shop gets a reminder.",
    )
    escalate_seconds: int = Field(
        default=900,
        ge=1,
        description="Seconds without an answer after which an order of a listening batch gets its "
        "own run with a form; at most 20 orders at a time.",
    )
    ask_again_seconds: int = Field(
        default=600,
        ge=1,
        description="Seconds without an answer after which a waiting order's message is sent "
        "again.",
    )
    stalled_seconds: int = Field(
        default=120,
        ge=1,
        description="Seconds without a change after which recovery takes a running order up. Set "
        "it well above the slowest step with its retries.",
    )
    unbegun_seconds: int = Field(
        default=300,
        ge=1,
        description="Seconds after which a run that a worker has taken, but no process has begun, "
        "counts as lost and is started again. Set it above the time that the work pool needs to "
        "start a container.",
    )
    max_continuations: int = Field(
        default=10, ge=0, description="Continuations after crashes before an order is compensated."
    )
    checkout_deployment: str = Field(
        default="store-checkout/local",
        description="The deployment that continues an order whose own run cannot.",
    )
    batch_deployment: str = Field(
        default="batch-checkout/nightly",
        description="The deployment that continues a batch's orders whose own run cannot.",
    )
    online_deployment: str = Field(
        default="batch-checkout/online",
        description="The listening batch's deployment, which `checkout online` turns on and off.",
    )
    batch_task_runner: Literal["threads", "dask"] = Field(
        default="threads",
        description="What executes a batch's chunks: `threads` of the run's process, or `dask`, a "
        "cluster (extra `dask`).",
    )
    dask_address: str | None = Field(
        default=None,
        description="Address of the Dask scheduler. Without it the run starts a local cluster.",
    )
    orders_folder: str | None = Field(
        default=None,
        description="The folder of a batch's local files; files outside it are refused. Without "
        "it, paths are relative to the run's working folder.",
    )
    visibility_timeout_seconds: int = Field(
        default=30,
        ge=1,
        le=12 * 3600,  # the longest that SQS allows
        description="Seconds for which a received message is hidden from other dispatchers. Use at "
        "least 30 in production, so that a message in work is not delivered twice.",
    )
    warm_start: bool = Field(
        default=True,
        description="Whether each run of a process work pool starts as a fork of a "
        "[fork server](../fork_server/README.md) (Linux) instead of in a new Python. Read where "
        "the pool is configured: `make up`, `make demo`, `python -m deployments.warm_start`.",
    )
    queue: Literal["table", "sqs"] = Field(
        default="table", description="Order queue: `table`, in the store's own database, or `sqs`."
    )
    queue_url: str | None = Field(
        default=None,
        pattern=URL_OR_EMPTY,
        description="URL of the SQS queue; needed for `STORE_QUEUE=sqs`.",
    )
    dead_letter_url: str | None = Field(
        default=None,
        pattern=URL_OR_EMPTY,
        description="URL of the SQS dead-letter queue; needed for `STORE_QUEUE=sqs`.",
    )
    topic: Literal["table", "sns"] = Field(
        default="table",
        description="Notifications: `table`, in the store's own database, or `sns`.",
    )
    topic_arn: str | None = Field(
        default=None,
        pattern=r"^(arn:[^:]+:sns:[^:]+:\d{12}:[A-Za-z0-9_.-]+)?$",
        description="ARN of the SNS topic; needed for `STORE_TOPIC=sns`.",
    )
    aws_endpoint_url: str | None = Field(
        default=None,
        pattern=URL_OR_EMPTY,
        description="Endpoint of a local stand-in for SQS and SNS; default: AWS. Region and "
        "credentials come from boto3's own chain.",
    )
    secrets_folder: str | None = Field(
        default=None,
        description="A folder with secrets as files, such as a container's mount. Each file is "
        "named after its setting, such as `store_database_url`. An environment variable takes "
        "precedence.",
    )
    front_end_tokens: SecretStr | None = Field(
        default=None,
        description="Bearer tokens of the front ends of `checkout serve`: `name:token` pairs, "
        "separated by commas. A token has at least 32 characters. An order keeps the name.",
    )
    payments: Literal["embedded", "stripe"] = Field(
        default="embedded",
        description="Payment gateway: `embedded`, in the store's own database, or `stripe` (extra "
        "`stripe`); see [Payments](payments.md).",
    )
    stripe_secret_key: SecretStr | None = Field(
        default=None,
        description="Stripe's secret or restricted key; needed for `STORE_PAYMENTS=stripe`, "
        "never logged or shown.",
    )
    stripe_api_url: str | None = Field(
        default=None,
        pattern=URL_OR_EMPTY,
        description="Endpoint of a local stand-in for Stripe; default: Stripe.",
    )

    @field_validator("database_url")
    @classmethod
    def _is_of_a_database(cls, database_url: str) -> str:
        return checked_database_url(database_url)

    @field_validator("front_end_tokens")
    @classmethod
    def _has_names(cls, given: SecretStr | None) -> SecretStr | None:
        parse_tokens(given)
        return given

    @field_validator("timezone")
    @classmethod
    def _is_a_zone(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(
                "there is no such time zone; set STORE_TIMEZONE to an IANA name such as "
                "Europe/Berlin"
            ) from error
        return timezone

    @field_validator("currency")
    @classmethod
    def _has_hundredths(cls, currency: str) -> str:
        if currency in WITHOUT_HUNDREDTHS.split():
            raise ValueError(
                f"{currency} has no hundredths, in which all amounts are counted here; set "
                "STORE_CURRENCY to a currency that has, such as USD or EUR"
            )
        return currency

    @property
    def zone(self) -> ZoneInfo:
        """Return the time zone of the times that the shop reads."""
        return ZoneInfo(self.timezone)

    @model_validator(mode="after")
    def _name_what_aws_needs(self) -> Self:
        needs = [
            f"STORE_{by} needs STORE_{name.upper()}"
            for name, by, chosen in (
                ("queue_url", "QUEUE=sqs", self.queue == "sqs"),
                ("dead_letter_url", "QUEUE=sqs", self.queue == "sqs"),
                ("topic_arn", "TOPIC=sns", self.topic == "sns"),
            )
            if chosen and not getattr(self, name)
        ]
        if needs:
            raise ValueError(
                f"{', '.join(needs)}; `python -m deployments.provision` creates what is not "
                "there and prints the settings to export"
            )
        return self

    @model_validator(mode="after")
    def _name_what_stripe_needs(self) -> Self:
        if self.payments != "stripe":
            return self
        if self.stripe_secret_key is None or not self.stripe_secret_key.get_secret_value():
            raise ValueError(
                "STORE_PAYMENTS=stripe needs STORE_STRIPE_SECRET_KEY, a key of the Stripe account "
                "that may write PaymentIntents and Refunds and read PaymentMethods"
            )
        if find_spec("stripe") is None:
            raise ValueError(
                "STORE_PAYMENTS=stripe needs the library of Stripe: install store-checkout[stripe]"
            )
        if self.currency in COUNTED_OTHERWISE_BY_STRIPE:
            raise ValueError(
                f"STORE_PAYMENTS=stripe does not go with STORE_CURRENCY={self.currency}: Stripe "
                "counts it in another minor unit than ISO 4217, so every charge would be off"
            )
        return self


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the settings of this process, read once from the environment.

    Raises:
        pydantic.ValidationError: a setting is missing or wrong; it names the field.
        NotADirectoryError: there is no such folder of secrets.
    """
    secrets = os.environ.get("STORE_SECRETS_FOLDER") or None
    # Pydantic would only warn, and then miss the setting.
    if secrets is not None and not Path(secrets).is_dir():
        raise NotADirectoryError(f"STORE_SECRETS_FOLDER: there is no folder {secrets}")
    return Settings(_secrets_dir=secrets)
