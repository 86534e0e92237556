"""The HTTP server for the shop's front end."""

from typing import Annotated

from cyclopts import CycloptsError, Parameter
from cyclopts.validators import Number

from store.settings import parse_tokens, settings
from terminal.numbers import WholeNumber
from terminal.output import terminal

END_SECONDS = 10
"""How long requests may take to end; one that waits for a change would take a minute."""


def serve(
    *,
    host: str = "127.0.0.1",
    port: Annotated[WholeNumber, Parameter(validator=Number(gte=0, lte=65535))] = 8321,
) -> int:
    """Serve the shop's front end by HTTP, until Ctrl-C.

    A front end submits, follows and cancels orders. The server needs only the store's database. A
    listening batch checks the accepted orders out. /docs describes the interface.

    Args:
        host: The address to listen at; 0.0.0.0 for every network of this machine, behind a proxy
            with TLS.
        port: The port to listen at.
    """
    tokens = parse_tokens(settings().front_end_tokens)
    if not tokens:
        raise CycloptsError(
            msg="STORE_FRONT_END_TOKENS names no front end, so that nobody may submit an order. "
            "Set it to name:token, for example web:$(openssl rand -hex 24)."
        )
    import uvicorn

    from web.app import create_app

    terminal().print(f"Serving {', '.join(tokens)} at http://{host}:{port}; Ctrl-C ends it.")
    uvicorn.run(
        create_app(tokens),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=END_SECONDS,
    )
    return 0
