"""The flow ``report_sales``, the shop's report on a day or a month."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from functools import partial
from typing import Literal

from prefect import flow, runtime
from prefect.artifacts import create_markdown_artifact

from flows.runs.names import name_by_day
from reports.attempts import Period
from reports.sales import COUNTS, Sales, add_up, sales
from store.database import snapshot
from store.messages import money
from store.settings import settings
from texts.pictures import bars
from texts.words import section

Span = Literal["yesterday", "last month"]
TITLES = 12
"""Titles in the picture; `checkout report --by title` prints all of them."""
NAME_AT_MOST = 26
"""Characters of a title for which a picture has room."""


@flow(
    name="sales-report",
    flow_run_name=partial(name_by_day, "sales"),
    retries=0,
    persist_result=False,
)
def report_sales(span: Span = "yesterday") -> str:
    """Publish the sales of a day or month as an artifact.

    It reads only. The days are those of STORE_TIMEZONE, counted from the run's scheduled time, so
    that a run that is late reports what it was to report.

    Args:
        span: `yesterday` or `last month`.

    Returns:
        The period and its sums in one line.
    """
    period = days_of(span, runtime.flow_run.scheduled_start_time)
    with snapshot() as session:
        by_day = list(sales(session, "day", period))
        by_title = list(sales(session, "title", period))
    title = f"Sales of {in_words(period)}"
    sums = add_up(by_day)
    message = "; ".join(
        f"{row.amounts['dispatched']} orders dispatched, net {money(row.net_cents, row.currency)}"
        for row in sums
    )
    message = f"{title}: {message or 'nothing'}"
    create_markdown_artifact(
        "\n".join(_markdown(title, period, sums, by_day, by_title)),
        key=f"sales-{span.replace(' ', '-')}",
        description=message,
    )
    return message


def days_of(span: Span, moment: datetime) -> Period:
    """Return the day or month before a moment, in STORE_TIMEZONE."""
    local = moment.astimezone(settings().zone)
    # Prefect's moments are pendulum's, whose dates calculate in another way.
    today = date(local.year, local.month, local.day)
    if span == "yesterday":
        return Period(today - timedelta(days=1), today, settings().timezone)
    end = today.replace(day=1)
    return Period((end - timedelta(days=1)).replace(day=1), end, settings().timezone)


def in_words(period: Period) -> str:
    """Return a period as in ``27 Nov 2026`` or ``November 2026``."""
    first = period.from_day or date.min
    if period.to_day == first + timedelta(days=1):
        return f"{first.day} {first:%b %Y}"
    return f"{first:%B %Y}"


def _markdown(
    title: str,
    period: Period,
    sums: Sequence[Sales],
    by_day: Sequence[Sales],
    by_title: Sequence[Sales],
) -> Iterator[str]:
    yield from (f"### {title}", "", *_table("currency", sums), "")
    if len(by_day) > len(sums):
        for row in sums:
            net = net_by_day(by_day, row.currency)
            yield from section("Net by day", bars("Net by day", net, f" {row.currency}"))
        yield from section("Days", "\n".join(_table("day", by_day)))
    most = most_copies(by_title)
    yield from section("Copies dispatched", bars("Copies dispatched", most))
    why: Counter[str] = sum((Counter(row.why) for row in sums), Counter())
    yield from section("Why orders failed", bars("Why orders failed", dict(why.most_common())))
    yield (
        f"Days are in {period.zone}. For a spreadsheet: `checkout report --csv` with "
        f"`--from {period.from_day} --to {period.to_day}`"
    )


def net_by_day(by_day: Sequence[Sales], currency: str) -> dict[str, int]:
    """Return each day's net in whole units of a currency.

    Refunds make it negative.
    """
    return {row.key: round(row.net_cents / 100) for row in by_day if row.currency == currency}


def most_copies(by_title: Sequence[Sales]) -> dict[str, int]:
    """Return the most dispatched titles' copies by their names.

    Books whose titles begin alike, as those of a series, have their ids as names.
    """
    names = {row.key: _short(row.title or row.key) for row in by_title}
    alike = Counter(names.values())
    copies: Counter[str] = Counter()
    for row in by_title:
        name = names[row.key]
        copies[name if alike[name] == 1 else _short(row.key)] += row.amounts["copies"]
    return {name: count for name, count in copies.most_common(TITLES) if count}


def _table(first: str, rows: Sequence[Sales]) -> list[str]:
    amounts = (*COUNTS, "copies")
    return [
        f"| {first} | {' | '.join(amounts)} | points | captured | refunded | net |",
        f"|---|{'---:|' * (len(amounts) + 4)}",
        *(
            f"| {row.currency if first == 'currency' else row.key} | "
            f"{' | '.join(str(row.amounts[name]) for name in amounts)} | "
            f"{row.amounts['points_redeemed'] - row.amounts['points_restored']} | "
            f"{money(row.amounts['captured_cents'], row.currency)} | "
            f"{money(row.amounts['refunded_cents'], row.currency)} | "
            f"{money(row.net_cents, row.currency)} |"
            for row in rows
        ),
    ]


def _short(title: str) -> str:
    return title if len(title) <= NAME_AT_MOST else f"{title[: NAME_AT_MOST - 1]}…"
