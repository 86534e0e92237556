"""Database errors as one line for states, records and notices."""

from sqlalchemy import ExceptionContext
from sqlalchemy.exc import StatementError


def leave_statement_out(context: ExceptionContext) -> None:
    """Reduce an error's text to its first line.

    The statement stays in tracebacks, as a note.

    SQLAlchemy's text has the driver's lines, the whole statement, and a link behind them.

    Args:
        context: What SQLAlchemy gives to a handler of the event ``handle_error``.
    """
    error = context.sqlalchemy_exception
    if not isinstance(error, StatementError):
        return
    if error.statement:
        error.add_note(f"[SQL: {error.statement}]")
    error.statement = error.code = None
    first, *_ = str(error.args[0]).strip().splitlines() or [""]
    error.args = (first,)
