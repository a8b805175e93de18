"""What lets a request in at its endpoint, where that is more than a header that is always the same.

A token of OAuth 2, and TLS with certificates of the subscription's own, are got ready within the attempt's own
deadline. That one of them cannot be had is an outcome of the attempt, retried like any other.

An endpoint that answers 401 does not take the token: it may have been revoked, or the endpoint's clock be ahead. The
token is dropped, another one fetched, and the request made once more, within the same attempt and deadline. It is the
one second request of an attempt that there is. It repeats nothing that was taken, for the endpoint has answered that it
did not take it; what it answers to the second is what counts.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final, TypeVar

from msgspec.structs import replace

from dispatcher.clock import boot_s
from dispatcher.core.credentials import bearer
from dispatcher.index import Endpoint
from dispatcher.tokens import Tokens
from infra.egress import Egress
from infra.tls import Contexts, Unusable
from schemas.deliveries import Answered, Failure, NoAnswer
from schemas.destination_auth import Tls

R = TypeVar("R")
Send = Callable[[Mapping[str, str], ssl.SSLContext | None, float, bool], Awaitable[R]]
"""Makes the request with these headers besides its own, over that TLS, within so many seconds; or says, by whatever
else it returns, that it is not to be made. The flag: there was a wait, so what let the request through may be so no
more."""

_NOTHING: Final[Mapping[str, str]] = {}


class Authorization:
    """Gets ready what endpoints ask for. Close it before the egress that it was given."""

    def __init__(self, egress: Egress) -> None:
        self._tokens = Tokens(egress)
        self._contexts = Contexts()

    async def through(self, endpoint: Endpoint, send: Send[R], *, timeout_s: float) -> R | NoAnswer:
        """What becomes of a request to `endpoint` that `send` makes, within `timeout_s` in all.

        What is the same for every request is in the endpoint's recipe already. The duration is of everything, the wait
        for a token included.
        """
        began_s = boot_s()
        result = await self._through(endpoint, send, began_s + timeout_s)
        if isinstance(result, Answered | NoAnswer):
            return replace(result, duration_ms=round((boot_s() - began_s) * 1000))
        return result

    async def _through(self, endpoint: Endpoint, send: Send[R], end_s: float) -> R | NoAnswer:
        is_there = endpoint.tls is None or self._contexts.has(endpoint.tls)
        tls = None if endpoint.tls is None else await self._context(endpoint.tls, end_s)
        if isinstance(tls, NoAnswer):
            return tls
        client = endpoint.oauth
        if client is None:
            return await send(_NOTHING, tls, _left_s(end_s), not is_there)
        is_there = is_there and self._tokens.has(client)
        token = await self._tokens.get(client, within_s=_left_s(end_s))
        if isinstance(token, NoAnswer):
            return _for_want_of_a_token(token)
        result = await send(bearer(token.grant.token), tls, _left_s(end_s), not is_there)
        if not _is_refused(result) or boot_s() >= end_s:
            return result
        self._tokens.drop(client, token)
        token = await self._tokens.get(client, within_s=_left_s(end_s))
        if isinstance(token, NoAnswer):
            again = _for_want_of_a_token(token)
            return replace(again, reason=f"the endpoint answered 401 to its token, and {again.reason}")
        again_result = await send(bearer(token.grant.token), tls, _left_s(end_s), True)
        # What may not be sent again has been answered once.
        return again_result if isinstance(again_result, Answered | NoAnswer) else result

    async def _context(self, tls: Tls, end_s: float) -> ssl.SSLContext | NoAnswer:
        try:
            async with asyncio.timeout(_left_s(end_s)):
                made = await self._contexts.get(tls)
        except TimeoutError:
            return NoAnswer(Failure.INTERNAL, "this dispatcher did not come to set up TLS in time", 0, None)
        if isinstance(made, Unusable):
            return NoAnswer(Failure.TLS, f"TLS cannot be set up: {made.reason}", 0, None)
        return made

    async def close(self) -> None:
        """End what is being got ready."""
        await self._tokens.close()
        await self._contexts.close()


def _left_s(end_s: float) -> float:
    """Not less than a millisecond, and no longer a number than a person likes to read."""
    return max(0.001, round(end_s - boot_s(), 3))


def _is_refused(result: object) -> bool:
    return isinstance(result, Answered) and result.status == HTTPStatus.UNAUTHORIZED


def _for_want_of_a_token(token: NoAnswer) -> NoAnswer:
    """Whatever kept it away, it is the token that the endpoint got no request for; unless it is our own fault."""
    return token if token.failure is Failure.INTERNAL else replace(token, failure=Failure.AUTH)
