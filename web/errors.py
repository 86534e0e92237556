"""Errors as a front end gets them, without any value sent."""

import logging
from collections.abc import Mapping

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from store.errors import OrderArchived, OrderIdConflict, OrderNotFound, RefusedOrder, StoreError
from store.outages import is_outage
from store.wrong_input import Problem, problems

logger = logging.getLogger("store.web")


def answer_errors(app: FastAPI) -> None:
    """Answer every error of the application."""

    def answer(
        status: int, found: list[Problem], headers: Mapping[str, str] | None = None
    ) -> JSONResponse:
        errors = [{"field": each.field, "reason": each.reason} for each in found]
        return JSONResponse({"errors": errors}, status, headers)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        # What the router refuses, an unknown path or method, has a text alone.
        detail: object = error.detail
        found = [Problem("", detail)] if isinstance(detail, str) else detail
        return answer(error.status_code, found, error.headers)  # type: ignore[arg-type]

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> JSONResponse:
        return answer(400, [Problem("", "the request broke off")])

    @app.exception_handler(ValidationError)
    async def wrong(_: Request, error: ValidationError) -> JSONResponse:
        return answer(422, problems(error))

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(422, [Problem(str(each["loc"][-1]), each["msg"]) for each in error.errors()])

    @app.exception_handler(StoreError)
    async def refused_by_store(_: Request, error: StoreError) -> JSONResponse:
        field, colon, reason = str(error).partition(": ")
        named = Problem(field, reason) if colon and " " not in field else Problem("", str(error))
        return answer(_status_of(error), [named])

    # By their own classes too: an answer for `Exception` is raised again after it, which logs each
    # request of an outage with its traceback and closes the connection under the next request.
    @app.exception_handler(SQLAlchemyError)
    @app.exception_handler(psycopg.Error)
    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        if is_outage(error):
            logger.warning("a request was refused in an outage: %s", type(error).__name__)
            again = "the database is away; send the same request again"
            return answer(503, [Problem("", again)], {"Retry-After": "1"})
        logger.error("a request failed", exc_info=error)
        return answer(500, [Problem("", "a defect; the shop's log has more")])


def _status_of(error: StoreError) -> int:
    match error:
        case OrderNotFound():
            return 404
        case OrderArchived():
            return 410
        case OrderIdConflict():
            return 409
        case RefusedOrder():
            return 422
        case _:
            return 409
