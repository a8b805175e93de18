"""One attempt, from a claim in hand to an outcome for settlement."""

import asyncio
import random
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import structlog
from uuid_utils.compat import uuid7

from dispatcher.authorization import Authorization
from dispatcher.breakers import Breakers
from dispatcher.caps import Caps
from dispatcher.clock import boot_s, wall
from dispatcher.core.age import expiry, time_left_s
from dispatcher.core.conclude import Canceled, Delivered, Expired, Held, conclude
from dispatcher.core.echo import to_hide, without_echo
from dispatcher.core.gate import RESTING
from dispatcher.core.liveness import why_not_begin
from dispatcher.core.request import Composed, compose
from dispatcher.handshake import Handshakes
from dispatcher.heartbeat import Heartbeat
from dispatcher.index import Endpoint, SubscriptionIndex
from dispatcher.lanes import Claim
from dispatcher.paces import Paces
from dispatcher.settlement import Attempted, Outcome, Settlement
from infra.egress import Egress
from infra.store.expunging import EXPUNGED
from infra.telemetry import Telemetry
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer
from schemas.ids import DELIVERY, EVENT, public_id

log = structlog.get_logger(__name__)


class Deliverer:
    """Signs, POSTs and concludes."""

    def __init__(
        self,
        index: SubscriptionIndex,
        egress: Egress,
        heartbeat: Heartbeat,
        settlement: Settlement,
        paces: Paces,
        breakers: Breakers,
        caps: Caps,
        telemetry: Telemetry,
        handshakes: Handshakes,
        authorization: Authorization,
    ) -> None:
        self._authorization = authorization
        self._paces = paces
        self._breakers = breakers
        self._caps = caps
        self._index = index
        self._egress = egress
        self._heartbeat = heartbeat
        self._settlement = settlement
        self._telemetry = telemetry
        self._handshakes = handshakes

    async def deliver(self, claim: Claim) -> bool:
        """Make one attempt, or none if it may not begin; whether the endpoint answered. Raises nothing: every claim
        gets an outcome."""
        if claim.content.expunged:
            self._settlement.add(Outcome(claim, Canceled(EXPUNGED), None))
            return False
        # Before the wait: what is too old takes no turn of a rate limit. After it: it may have become so meanwhile.
        unsent = self._expiry(claim) or await self._held_back(claim) or self._expiry(claim)
        endpoint = self._index.get(claim.subscription)
        if endpoint is None or unsent is not None:
            self._settlement.add(Outcome(claim, unsent or Held("the subscription was deleted"), None))
            return False
        started_at, attempt_id = wall(), uuid7()
        self._caps.began(claim.subscription, attempt_id)
        result = await self._attempt(endpoint, claim, started_at)
        if isinstance(result, Held):
            self._caps.withdrawn(claim.subscription, attempt_id)
            self._settlement.add(Outcome(claim, result, None))
            return False
        self._caps.ended(claim.subscription, attempt_id, endpoint.url, result)
        self._breakers.observe(claim, result)
        now = wall()
        verdict = conclude(
            result,
            endpoint.policy,
            attempt=claim.held.attempt,
            now=now,
            left_s=time_left_s(endpoint.policy, claim.event, cycle=claim.held.cycle, now=now),
            jitter=random.random(),  # noqa: S311
        )
        outcome = Outcome(claim, verdict, Attempted(attempt_id, started_at, result, endpoint.url))
        # With a rate limit nothing is sooner for a commit of its own. In strict order the next one waits for it.
        patient = isinstance(verdict, Delivered) and endpoint.limit is not None and not endpoint.ordered
        self._settlement.add(outcome, patient=patient)
        return isinstance(result, Answered)

    def _expiry(self, claim: Claim) -> Expired | None:
        """Whether it is too old to be sent. What is paused waits all the same: it expires when its turn comes."""
        endpoint = self._index.get(claim.subscription)
        if endpoint is None or endpoint.blocked is not None or endpoint.policy.max_age_s is None:
            return None
        return expiry(endpoint.policy, claim.event, cycle=claim.held.cycle, now=wall())

    async def _held_back(self, claim: Claim) -> Held | None:
        """Wait for its turn, and say why it may not begin then, as its endpoint is by that time."""
        obstacle = await self._wait_for_turn(claim)
        obstacle = obstacle or self._obstacle(claim, self._index.get(claim.subscription))
        return None if obstacle is None else Held(obstacle)

    async def _wait_for_turn(self, claim: Claim) -> str | None:
        """Wait as long as the endpoint's pace asks; the obstacle, if it is not ours to send."""
        endpoint = self._index.get(claim.subscription)
        if endpoint is None or endpoint.limit is None:
            return None
        try:
            return None if await self._paces.turn(endpoint) else "another dispatcher keeps its endpoint's pace"
        except asyncio.CancelledError:  # as of a POST, there is an outcome
            return "the dispatcher stopped"

    def _obstacle(self, claim: Claim, endpoint: Endpoint | None, *, deadline_s: float | None = None) -> str | None:
        if endpoint is None:
            return "the subscription was deleted"
        if endpoint.blocked is not None:
            return endpoint.blocked
        if endpoint.ordered and not claim.in_order:
            return "its endpoint takes its deliveries in strict order since"
        if self._breakers.refuses(claim):
            return "its endpoint's breaker is open"
        if self._caps.rests(claim.subscription, endpoint.url):
            return RESTING.reason
        if self._heartbeat.lapsed_since(claim.claimed_s):
            return "the dispatcher's heartbeat lapsed while it waited"
        return why_not_begin(
            self._heartbeat.times,
            renewal_age_s=self._heartbeat.renewal_age_s(),
            claim_age_s=boot_s() - claim.claimed_s,
            deadline_s=endpoint.timeout_s if deadline_s is None else deadline_s,
        )

    async def _attempt(self, endpoint: Endpoint, claim: Claim, started_at: datetime) -> AttemptResult | Held:
        """POST, after a handshake where there has to be one. Held: nothing was sent, and it may not be sent now."""
        began = boot_s()
        try:
            with self._telemetry.attempt_span(
                endpoint.url,
                traceparent=claim.content.traceparent,
                attempt=claim.held.attempt,
                event_type=claim.content.type,
                delivery=claim.delivery,
            ) as span:
                timeout_s: float = endpoint.timeout_s
                if endpoint.asks_first:
                    refused = await self._shake_hands(claim, endpoint, began)
                    if isinstance(refused, NoAnswer):
                        span.end(refused)
                    if refused is not None:
                        return refused
                    timeout_s -= boot_s() - began
                    endpoint = self._index.get(endpoint.id) or endpoint
                    started_at = wall()  # signed when it is sent; the attempt's own time began with the question
                if endpoint.oauth is None and endpoint.tls is None:
                    composed = _composed(endpoint, claim, started_at, span.traceparent)
                    result = await self._egress.post(
                        endpoint.url,
                        headers=composed.headers,
                        body=composed.body,
                        content_type=composed.content_type,
                        timeout_s=timeout_s,
                    )
                else:
                    authorized = await self._authorized(_Post(endpoint, claim, span.traceparent), timeout_s)
                    if isinstance(authorized, Held):
                        return authorized
                    result = authorized
                if endpoint.recipe.hidden:
                    result = without_echo(result, endpoint.recipe.hidden)
                span.end(result)
                return result
        except asyncio.CancelledError:
            # A POST that has begun always has an outcome, also when it is interrupted.
            return _internal("the dispatcher stopped before the answer came", began)
        except Exception as error:
            log.exception("delivery.failed", delivery=public_id(DELIVERY, claim.delivery))
            return _internal(f"internal error: {type(error).__name__}", began)

    async def _shake_hands(self, claim: Claim, endpoint: Endpoint, began_s: float) -> NoAnswer | Held | None:
        """None once the endpoint has agreed and the claim may still be sent. A stop meanwhile spends no attempt."""
        try:
            refused = await self._handshakes.ask(endpoint)
        except asyncio.CancelledError:
            return Held("the dispatcher stopped during the handshake")
        if refused is not None:
            return refused
        left_s = endpoint.timeout_s - (boot_s() - began_s)
        obstacle = self._obstacle_after_handshake(claim, endpoint, left_s)
        return None if obstacle is None else Held(obstacle)

    def _obstacle_after_handshake(self, claim: Claim, asked: Endpoint, left_s: float) -> str | None:
        """Why it may not be sent in the time that is left. It was let through by what was known before the answer."""
        now = self._index.get(asked.id)
        if now is None or now.url != asked.url or now.asks_first:
            return "its subscription was changed during the handshake"
        if now.limit is not None:
            # Its turn is long over, and those of others that waited with it: who has its lease gives new ones.
            return "its turn passed during the handshake"
        if self._expiry(claim) is not None:
            return "it became too old during the handshake"  # and expires when it is fed
        if left_s <= 0:
            return "the handshake took all of its time"
        return self._obstacle(claim, now, deadline_s=left_s)

    async def _authorized(self, post: "_Post", timeout_s: float) -> AttemptResult | Held:
        """POST once what the endpoint asks for is there. A stop before that spends no attempt."""
        try:
            return await self._authorization.through(post.endpoint, partial(self._send, post), timeout_s=timeout_s)
        except asyncio.CancelledError:
            if post.begun:
                raise
            return Held("the dispatcher stopped while it waited for a token or for TLS")

    async def _send(
        self, post: "_Post", headers: Mapping[str, str], tls: ssl.SSLContext | None, timeout_s: float, waited: bool
    ) -> AttemptResult | Held:
        began_s = boot_s()
        if waited and (obstacle := await self._obstacle_after_wait(post, timeout_s)):
            return Held(obstacle)
        post.begun = True
        composed = _composed(post.endpoint, post.claim, wall(), post.traceparent)
        result = await self._egress.post(
            post.endpoint.url,
            headers={**composed.headers, **headers},
            body=composed.body,
            content_type=composed.content_type,
            timeout_s=max(0.001, timeout_s - (boot_s() - began_s)),
            tls=tls,
        )
        return without_echo(result, to_hide(headers.values())) if headers else result

    async def _obstacle_after_wait(self, post: "_Post", left_s: float) -> str | None:
        """Why it may not be sent after a wait. Its turn has passed meanwhile, and with it that of all that waited."""
        began_s = boot_s()
        try:
            async with asyncio.timeout(left_s):
                if not await self._paces.turn(post.endpoint):
                    return "another dispatcher keeps its endpoint's pace"
        except TimeoutError:
            return "no other turn came in time, after the wait for a token or for TLS"
        if self._index.get(post.endpoint.id) is not post.endpoint:
            return "its subscription was changed during the wait for a token or for TLS"
        if self._expiry(post.claim) is not None:
            return "it became too old during the wait for a token or for TLS"  # and expires when it is fed
        return self._obstacle(post.claim, post.endpoint, deadline_s=left_s - (boot_s() - began_s))


@dataclass(slots=True, eq=False)
class _Post:
    """A request that something has to be got ready for; `begun`: it may have been sent."""

    endpoint: Endpoint
    claim: Claim
    traceparent: str | None
    begun: bool = False


def _composed(endpoint: Endpoint, claim: Claim, now: datetime, traceparent: str | None) -> Composed:
    return compose(
        endpoint.recipe, claim.content, webhook_id=public_id(EVENT, claim.event), now=now, traceparent=traceparent
    )


def _internal(reason: str, began_s: float) -> NoAnswer:
    return NoAnswer(Failure.INTERNAL, reason, int((boot_s() - began_s) * 1000), None)
