"""The front ends, known by their bearer tokens."""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from store.wrong_input import Problem

_BEARER = HTTPBearer(auto_error=False, description="The token of a front end.")


def hashed(tokens: Mapping[str, str]) -> dict[str, bytes]:
    """Return the hashes of tokens by their names, all of one length."""
    return {name: _hash(token) for name, token in tokens.items()}


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _front_end(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> str:
    """Return the name of the front end whose token was sent.

    Raises:
        HTTPException: 401, no token of this shop was sent.
    """
    sent = _hash(given.credentials) if given is not None else b""
    tokens: dict[str, bytes] = request.app.state.tokens
    # All are compared, each in constant time, so that no time tells which one was near.
    known = [name for name, token in tokens.items() if hmac.compare_digest(token, sent)]
    if not known:
        why = Problem("Authorization", "needs `Bearer` and a token of this shop")
        raise HTTPException(401, [why], {"WWW-Authenticate": "Bearer"})
    return known[0]


FrontEnd = Annotated[str, Depends(_front_end)]
"""The name of the front end that calls."""
