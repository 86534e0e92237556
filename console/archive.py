"""The commands for orders that ended long ago."""

from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from console.listing import Age
from orders.archive import archive_orders, due_months
from orders.archive_check import archives_to_verify, verify
from store.archived_orders import Archive
from terminal.output import AsJson, print_answer, print_json, terminal

NOTHING = "There is nothing to archive."

app = App(name="archive")


@app.default
def archive(
    *,
    older_than: Age | None = None,
    to: str | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    as_json: AsJson = False,
) -> int:
    """Move orders that ended long ago into files, one a month.

    Each file is read back before its orders are deleted from the database. Called again it goes on
    where it was ended. An archived order's id is never taken again.

    Args:
        older_than: How long ago a month must have ended, at least 30d: 400d.
        to: A folder, or s3://bucket/prefix.
        dry_run: Only count the orders of each month.
    """
    if older_than is None:
        raise CycloptsError(msg="Give --older-than, how long ago a month must have ended: 400d.")
    if dry_run:
        months = due_months(older_than)
        lines = [f"{month}: {orders} orders" for month, orders in months.items()]
        return print_answer({"would_archive": months}, *(lines or [NOTHING]), as_json=as_json)
    if to is None:
        raise CycloptsError(msg="Give --to, a folder or s3://bucket/prefix.")
    done = []
    for each in archive_orders(to, older_than):
        done.append(_as_data(each))
        if not as_json:
            terminal().print(f"{each.month}: {each.archived} orders are in {each.location}")
    if as_json:
        print_json(done)
    elif not done:
        terminal().print(NOTHING)
    return 0


@app.command(name="verify")
def verify_files(*files: str, as_json: AsJson = False) -> int:
    """Compare archive files with their records in the database.

    Digest, sums and ids of the orders are compared. The exit status is 1 if a file is not what was
    archived.

    Args:
        files: The files, or copies of the same names; left out, all of them where they were
            written.
    """
    found = [verify(archive, location) for archive, location in archives_to_verify(list(files))]
    if as_json:
        print_json(
            [
                {
                    **_as_data(each.archive),
                    "compared": each.location,
                    "left_out": each.left_out,
                    "problem": each.problem,
                }
                for each in found
            ]
        )
        return 1 if any(each.problem for each in found) else 0
    for each in found:
        left = (
            f"; {each.left_out} changed before their deletion and stayed" if each.left_out else ""
        )
        said = each.problem or f"as archived, {each.archive.archived} orders{left}"
        terminal().print(f"{each.location}: {said}", style="red" if each.problem else None)
    if not found:
        terminal().print("There is no archive.")
    return 1 if any(each.problem for each in found) else 0


def _as_data(archive: Archive) -> dict[str, Any]:
    return {
        "month": archive.month,
        "location": archive.location,
        "sha256": archive.sha256,
        "archived": archive.archived,
        "sums": archive.sums,
        "written_at": archive.written_at,
        "verified_at": archive.verified_at,
        "deleted_at": archive.deleted_at,
    }
