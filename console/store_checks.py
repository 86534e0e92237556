"""The doctor's checks of settings, database, queue, topic and payments."""

import json
import os
from collections.abc import Iterator
from itertools import islice

from prefect.settings import get_current_settings
from pydantic import ValidationError
from sqlalchemy import URL, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from console.deployment_checks import PREFECT_YAML
from console.diagnosis import Check, Diagnosis, mend, ok, warning
from deployments.prefect_yaml import variables_of
from reports.audit import forgotten_orders
from reports.figures import sums_of_failed_undos
from store.blockers import Blocker, blockers
from store.database import reading, require_known_version, revisions
from store.errors import DatabaseVersionUnknown, PaymentRefused, and_more
from store.models import Courier
from store.partners import order_queue, stripe_gateway
from store.queue import MAX_RECEIVES
from store.sessions import STEP
from store.settings import Settings, parse_tokens, settings
from store.wrong_input import described
from tasks.unsent import unsent_messages

LEAST_VISIBILITY_SECONDS = 30
"""A dispatcher looks after its messages every few seconds; a busy machine may hold it up."""
OF_A_LEASH = "STORE_LEASH"
"""No setting: deployments/leash.py gives it to the processes that it starts."""
NAMED = 5
"""Orders that stand still and are named; `checkout audit` names all of them."""
LEAST_CHARACTERS = 8
"""Different ones in a token; 48 random hexadecimal digits have fewer once in many millions."""
LONG_HELD_SECONDS = 5
"""Locks change hands all the time in a rush, each within a second or two."""
LEAST_STALLED_SECONDS = 60
"""A step waits up to 23 s in between its tries alone."""


def _settings() -> Iterator[Diagnosis]:
    try:
        settings()
    except ValidationError as error:
        for line in described(error):
            yield mend(line, "set it as docs/settings.md says, for everything that runs the store")


def _store_settings() -> Iterator[Diagnosis]:
    chosen = settings()
    if chosen.visibility_timeout_seconds < LEAST_VISIBILITY_SECONDS:
        yield mend(
            f"STORE_VISIBILITY_TIMEOUT_SECONDS is {chosen.visibility_timeout_seconds}: messages "
            "are delivered again while they are looked after, and become dead letters",
            f"set it to {LEAST_VISIBILITY_SECONDS} or more",
        )
    if chosen.stalled_seconds < LEAST_STALLED_SECONDS:
        yield mend(
            f"STORE_STALLED_SECONDS is {chosen.stalled_seconds}: a slow step counts as dead, and "
            "its order is started again beside it",
            f"set it to {LEAST_STALLED_SECONDS} or more, well above the slowest step",
        )
    if chosen.reminder_seconds >= chosen.courier_timeout_seconds:
        yield warning(
            "STORE_REMINDER_SECONDS is not below STORE_COURIER_TIMEOUT_SECONDS: the shop is "
            "reminded of each order as soon as it waits",
            "set it to less",
        )
    yield from _front_end_tokens(chosen)
    known = {f"STORE_{name.upper()}" for name in Settings.model_fields} | {OF_A_LEASH}
    if PREFECT_YAML.is_file():
        known |= variables_of(PREFECT_YAML.read_text())
    for name in sorted(os.environ):
        if name.startswith("STORE_") and name not in known:
            yield warning(
                f"there is no setting {name}; it is ignored", "see docs/settings.md for its name"
            )


def _front_end_tokens(chosen: Settings) -> Iterator[Diagnosis]:
    if chosen.front_end_tokens is None:
        return
    tokens = parse_tokens(chosen.front_end_tokens)
    if not tokens:
        yield warning(
            "STORE_FRONT_END_TOKENS is empty: `checkout serve` does not start",
            "set it to name:token, or unset it where no front end is served",
        )
    for name, token in tokens.items():
        if len(set(token)) < LEAST_CHARACTERS:
            yield warning(
                f"the token of {name} in STORE_FRONT_END_TOKENS has few different characters: who "
                "guesses it submits and cancels orders",
                "set it to one of `openssl rand -hex 24`",
            )


def _database() -> Iterator[Diagnosis]:
    url = make_url(settings().database_url)
    with reading() as session:
        is_read_only = session.execute(text("SHOW transaction_read_only")).scalar_one() == "on"
    # psycopg takes a password in the query too, which is not hidden.
    shown = url.difference_update_query(["password"]).render_as_string(hide_password=True)
    if is_read_only:
        yield mend(
            f"{shown} is read-only, as a standby is: no order goes on",
            "name the primary in STORE_DATABASE_URL, or end what made this server read-only; "
            "orders wait and go on by themselves",
        )
    else:
        yield ok(f"{shown} answers")


def _locks() -> Iterator[Diagnosis]:
    with reading() as session:
        found = blockers(session)
    for blocker in found:
        yield from _of_blocker(blocker)


def _of_blocker(blocker: Blocker) -> Iterator[Diagnosis]:
    name = f"session {blocker.pid} ({blocker.name or 'without a name'}, {blocker.state})"
    behind = f"{blocker.waiting} others wait for its locks"
    if blocker.is_hidden:
        yield warning(
            f"{name} of another role: {behind}",
            "`GRANT pg_read_all_stats` to the store's role shows since when",
        )
    elif blocker.seconds > STEP.transaction_seconds:
        yield mend(
            f"{name} has been in its transaction for {blocker.seconds:.0f} s; {behind}",
            f"see what its process does, or end it: `SELECT pg_terminate_backend({blocker.pid})` "
            "undoes its transaction",
        )
    elif blocker.seconds > LONG_HELD_SECONDS:
        yield warning(
            f"{name} has been in its transaction for {blocker.seconds:.0f} s; {behind}",
            f"wait: PostgreSQL ends a step after {STEP.transaction_seconds} s",
        )


def _shared_database() -> Iterator[Diagnosis]:
    if _is_prefects(make_url(settings().database_url)):
        yield mend(
            "the store shares its database with Prefect's server, whose migrations and locks are "
            "in its way",
            "give the store a database of its own",
        )


def _is_prefects(url: URL) -> bool:
    database = get_current_settings().server.database.connection_url
    if database is None:
        return False
    try:
        prefects = make_url(database.get_secret_value())
    except (ArgumentError, ValueError):
        return False  # Prefect's server says so itself; the text may quote a password
    return (prefects.host, prefects.port, prefects.database, prefects.query.get("host")) == (
        url.host,
        url.port,
        url.database,
        url.query.get("host"),
    )


def _migrations() -> Iterator[Diagnosis]:
    url = settings().database_url
    present, newest = revisions(url)
    try:
        require_known_version(url)
    except DatabaseVersionUnknown as error:
        yield mend(error.found, error.remedy)
        return
    if present == newest:
        yield ok(f"the database is at the newest version, {newest}")
    else:
        yield mend(
            f"the database is at version {present or 'none'}, the code at {newest}",
            "run `python -m deployments.migrate`; it is safe while the shop is open",
        )


def _couriers() -> Iterator[Diagnosis]:
    with reading() as session:
        capacity, assigned = session.execute(
            select(func.sum(Courier.capacity_copies), func.sum(Courier.assigned_copies))
        ).one()
    if not capacity:
        yield mend(
            "no courier has any capacity: new orders are rejected, and charged ones wait for one",
            "insert one: `python -m seed --courier ID COPIES`",
        )
        return
    yield ok(f"the couriers have room for {capacity - assigned} of {capacity} copies")


def _orders() -> Iterator[Diagnosis]:
    with reading() as session:
        forgotten = forgotten_orders(session)
        named = [f"{order.subject} {order.facts}" for order in islice(forgotten, NAMED)]
        more = sum(1 for _ in forgotten)
    if named:
        names = "; ".join([*named, *and_more(more)])
        yield warning(
            f"{len(named) + more} orders have not moved for long: {names}",
            "see that recover-orders runs; `checkout audit` names them all",
        )


def _compensations() -> Iterator[Diagnosis]:
    with reading() as session:
        failed = sum(undos.count for undos in sums_of_failed_undos(session))
    if failed:
        yield warning(
            f"{failed} undos have failed: somebody waits for money, copies or points",
            "they are tried again by themselves; `checkout compensations` has each one's error",
        )


def _unsent_messages() -> Iterator[Diagnosis]:
    with reading() as session:
        unsent = unsent_messages(session)
    if unsent.orders:
        yield mend(
            f"{unsent.orders} orders wait although the queue did not take their message: "
            f"{unsent.reason}",
            "docs/aws.md says what to do about each refusal; recovery sends them again",
        )


def _queue() -> Iterator[Diagnosis]:
    chosen = settings()
    depth = order_queue().depth()
    kind = "the table" if chosen.queue == "table" else chosen.queue_url
    yield ok(f"{kind} has {depth.ready} messages to deliver, {depth.in_hand} in hand")
    if depth.dead:
        yield mend(
            f"{depth.dead} dead letters: their orders wait until they are asked again, or time out",
            "`checkout dead-letters list` has each one's reason: mend it, then `checkout redrive`; "
            "one that cannot be read comes again: `checkout dead-letters drop ID`",
        )
    if chosen.queue == "sqs":
        yield from _sqs()


def _sqs() -> Iterator[Diagnosis]:
    from store import aws
    from store.sqs import ERRORS

    chosen = settings()
    with aws.calling(f"looking at {chosen.queue_url}", ERRORS):
        client = aws.sqs(chosen.aws_endpoint_url)
        of_queue = client.get_queue_attributes(
            QueueUrl=chosen.queue_url or "",
            AttributeNames=["MessageRetentionPeriod", "RedrivePolicy"],
        )["Attributes"]
        dead_arn = client.get_queue_attributes(
            QueueUrl=chosen.dead_letter_url or "", AttributeNames=["QueueArn"]
        )["Attributes"]["QueueArn"]
    remedy = "run `python -m deployments.provision`"
    retention_seconds = int(of_queue["MessageRetentionPeriod"])
    if retention_seconds < chosen.courier_timeout_seconds:
        yield mend(
            f"the queue drops messages after {retention_seconds} s, while an order waits up to "
            f"{chosen.courier_timeout_seconds} s",
            remedy,
        )
    policy = json.loads(of_queue.get("RedrivePolicy", "{}"))
    if policy.get("deadLetterTargetArn") != dead_arn:
        yield mend(
            "messages that cannot be handled are delivered for ever: the queue's redrive policy "
            "does not name STORE_DEAD_LETTER_URL",
            remedy,
        )
    elif int(policy.get("maxReceiveCount", 0)) < MAX_RECEIVES:
        yield warning(
            f"a message is dead after {policy.get('maxReceiveCount')} receives, of which an "
            f"ordinary restart may take {MAX_RECEIVES}",
            remedy,
        )


def _topic() -> Iterator[Diagnosis]:
    chosen = settings()
    if chosen.topic == "table":
        yield warning(
            "notices go into a table, which nobody is told of",
            "choose STORE_TOPIC=sns where a person is to get them",
        )
        return
    from store import aws
    from store.sns import ERRORS

    with aws.calling(f"looking at {chosen.topic_arn}", ERRORS):
        subscriptions = aws.sns(chosen.aws_endpoint_url).list_subscriptions_by_topic(
            TopicArn=chosen.topic_arn or ""
        )["Subscriptions"]
    # One that is not confirmed yet has words in the place of its ARN.
    confirmed = sum(each["SubscriptionArn"].startswith("arn:") for each in subscriptions)
    if confirmed:
        yield ok(f"{chosen.topic_arn} has {confirmed} subscribers")
    else:
        yield mend(
            f"{chosen.topic_arn} has no confirmed subscriber: every notice is lost",
            "run `python -m deployments.provision --email ADDRESS` and confirm the e-mail",
        )


def _payments() -> Iterator[Diagnosis]:
    chosen = settings()
    if chosen.payments == "embedded":
        yield warning(
            "the embedded gateway takes every card and moves no money",
            "choose a real gateway (STORE_PAYMENTS) before the shop opens",
        )
        return
    try:
        stripe_gateway().require_access()
    except PaymentRefused as error:
        yield mend(str(error), "set STORE_STRIPE_SECRET_KEY as docs/payments.md says")
        return
    key = chosen.stripe_secret_key.get_secret_value() if chosen.stripe_secret_key else ""
    if "_test_" in key:
        yield warning(
            "Stripe answers, in test mode: no card is charged",
            "set STORE_STRIPE_SECRET_KEY to a live key before the shop opens",
        )
    else:
        yield ok("Stripe answers, in live mode")


STORE_CHECKS = (
    Check("settings", _settings, "every setting is valid"),
    Check("store settings", _store_settings, "the store's settings are safe", ("settings",)),
    Check("database", _database, needs=("settings",)),
    Check("locks", _locks, "no session waits for another one for long", ("database",)),
    Check(
        "shared database", _shared_database, "the store has a database of its own", ("settings",)
    ),
    Check("migrations", _migrations, needs=("database",)),
    Check("couriers", _couriers, needs=("migrations",)),
    Check("orders", _orders, "no order stands still", ("migrations",)),
    Check("compensations", _compensations, "all that failed was given back", ("migrations",)),
    Check(
        "unsent messages", _unsent_messages, "the queue has taken every message", ("migrations",)
    ),
    Check("queue", _queue, needs=("migrations",)),
    Check("topic", _topic, needs=("settings",)),
    Check("payments", _payments, needs=("settings",)),
)
