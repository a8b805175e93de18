"""Asks an endpoint whether it agrees to take deliveries, before the first is sent to it.

It is asked by whoever is about to make an attempt, within that attempt's deadline, and once at a time in a process.
What it agrees to stands in the subscription's row, with a new version, so that the whole fleet knows it and keeps to
the rate that it allows. Asked is only where the subscription says so; a new URL is asked anew.
"""

import asyncio
import ssl
from collections.abc import Mapping
from functools import partial
from uuid import UUID

import structlog

from dispatcher.authorization import Authorization
from dispatcher.clock import boot_s
from dispatcher.core.echo import to_hide, without_echo
from dispatcher.core.handshake import ANSWER_HEADERS, Agreed, judge, question
from dispatcher.index import Endpoint, SubscriptionIndex
from infra.deadlines import TICK_S
from infra.egress import Egress
from infra.store import subscriptions
from infra.store.store import Store
from schemas.deliveries import AttemptResult, Failure, NoAnswer
from schemas.errors import StoreError
from schemas.ids import SUBSCRIPTION, public_id

log = structlog.get_logger(__name__)


class Handshakes:
    """The handshakes of one dispatcher, which is known to endpoints by `origin`."""

    def __init__(
        self, store: Store, index: SubscriptionIndex, egress: Egress, authorization: Authorization, *, origin: str
    ) -> None:
        self._store = store
        self._index = index
        self._egress = egress
        self._authorization = authorization
        self._origin = origin
        self._under_way: dict[tuple[UUID, str], asyncio.Future[NoAnswer | None]] = {}

    async def ask(self, endpoint: Endpoint) -> NoAnswer | None:
        """None once the endpoint has agreed and the index knows it; otherwise what the attempt ends with.

        Takes `timeout_s` of the endpoint at most. Raises CancelledError also when it is the asker that is canceled.
        """
        key = (endpoint.id, endpoint.url)
        if (under_way := self._under_way.get(key)) is not None:
            return await _others_answer(under_way, endpoint.timeout_s)
        answer = self._under_way[key] = asyncio.get_running_loop().create_future()
        try:
            said = await self._ask(endpoint)
        except BaseException:
            answer.cancel()  # for who waits along it is interrupted too
            raise
        finally:
            del self._under_way[key]
        answer.set_result(said)
        return said

    async def _ask(self, endpoint: Endpoint) -> NoAnswer | None:
        began_s = boot_s()
        result = await self._authorization.through(
            endpoint, partial(self._options, endpoint), timeout_s=endpoint.timeout_s
        )
        said = judge(result, origin=self._origin)
        log.info(
            "subscription.handshake",
            subscription_id=public_id(SUBSCRIPTION, endpoint.id),
            agreed=isinstance(said, Agreed),
            allowed_per_min=said.allowed_per_min if isinstance(said, Agreed) else None,
            reason=said.reason if isinstance(said, NoAnswer) else None,
        )
        if isinstance(said, NoAnswer):
            return said
        try:
            async with asyncio.timeout(endpoint.timeout_s - (boot_s() - began_s)):
                await self._remember(endpoint, said)
        except (StoreError, TimeoutError) as error:
            # Unknown to the fleet, the rate that it allows would not be kept.
            reason = f"the endpoint agreed to take deliveries, which could not be stored: {type(error).__name__}"
            return NoAnswer(Failure.INTERNAL, reason, result.duration_ms, result.remote_address, result.timings)
        return None

    async def _options(
        self, endpoint: Endpoint, headers: Mapping[str, str], tls: ssl.SSLContext | None, timeout_s: float, _: bool
    ) -> AttemptResult:
        result = await self._egress.options(
            endpoint.url,
            headers={**endpoint.auth_headers, **headers, **question(origin=self._origin, limit=endpoint.limit)},
            timeout_s=timeout_s,
            tls=tls,
            keep_headers=ANSWER_HEADERS,
        )
        # Before anything of it is quoted in a reason or logged.
        return without_echo(result, (*endpoint.recipe.hidden, *to_hide(headers.values())))

    async def _remember(self, endpoint: Endpoint, agreed: Agreed) -> None:
        async with self._store.transaction() as connection:
            await subscriptions.agree(connection, endpoint.id, url=endpoint.url, allowed_per_min=agreed.allowed_per_min)
        async with self._store.connection() as connection:  # after the commit: the index takes nothing on trust
            await self._index.refresh(connection)


async def _others_answer(under_way: asyncio.Future[NoAnswer | None], timeout_s: float) -> NoAnswer | None:
    try:
        # Longer than who asked waits: it knows more of why there was no answer.
        async with asyncio.timeout(timeout_s + 2 * TICK_S):
            return await asyncio.shield(under_way)
    except TimeoutError:
        return NoAnswer(
            Failure.TIMEOUT, f"the handshake did not end within {timeout_s:g} s", int(timeout_s * 1000), None
        )
