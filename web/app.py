"""The HTTP application for a shop's front end.

It needs the store's database and nothing else. Orders that it accepts are submitted orders, which
a batch claims. An accepted order is committed before it is answered.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI

from web.changes import Changes
from web.errors import answer_errors
from web.intake import Intake
from web.routes import router
from web.tokens import hashed


def create_app(tokens: Mapping[str, str]) -> FastAPI:
    """Return the application.

    Args:
        tokens: The front ends' bearer tokens by their names.
    """
    app = FastAPI(
        title="Store checkout",
        description="Submit orders and follow them. Errors name the field and the reason.",
        lifespan=_tasks,
    )
    app.state.tokens = hashed(tokens)
    app.include_router(router)
    answer_errors(app)
    return app


@asynccontextmanager
async def _tasks(app: FastAPI) -> AsyncIterator[None]:
    async with Intake() as app.state.intake, Changes() as app.state.changes:
        yield
