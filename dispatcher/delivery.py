"""One attempt, from a claim in hand to an outcome for settlement."""

import random
from collections.abc import Mapping

import structlog
from infra.telemetry import Telemetry
from uuid_utils.compat import uuid7

from dispatcher.clock import boot_s, wall
from dispatcher.core.conclude import Held, conclude
from dispatcher.core.liveness import why_not_begin
from dispatcher.heartbeat import Heartbeat
from dispatcher.index import Endpoint, SubscriptionIndex
from dispatcher.lanes import Claim
from dispatcher.settlement import Attempted, Outcome, Settlement
from infra.egress import Egress
from schemas.deliveries import AttemptResult, Failure, NoAnswer
from schemas.events import webhook_body
from schemas.ids import EVENT, public_id
from schemas.signatures import sign

log = structlog.get_logger(__name__)


class Deliverer:
    """Signs, POSTs and concludes."""

    def __init__(
        self,
        index: SubscriptionIndex,
        egress: Egress,
        heartbeat: Heartbeat,
        settlement: Settlement,
        telemetry: Telemetry,
    ) -> None:
        self._index = index
        self._egress = egress
        self._heartbeat = heartbeat
        self._settlement = settlement
        self._telemetry = telemetry

    async def deliver(self, claim: Claim) -> None:
        """Make one attempt, or hold it if it may not begin. Raises nothing: every claim gets an outcome."""
        endpoint = self._index.get(claim.subscription)  # as it is now: a change reaches what waited
        obstacle = self._obstacle(claim, endpoint)
        if endpoint is None or obstacle is not None:
            self._settlement.add(Outcome(claim, Held(obstacle or "the subscription was deleted"), None))
            return
        started_at, attempt_id = wall(), uuid7()
        result = await self._post(endpoint, claim, timestamp=int(started_at.timestamp()))
        verdict = conclude(
            result,
            endpoint.policy,
            attempt=claim.held.attempt,
            now=wall(),
            jitter=random.random(),  # noqa: S311
        )
        self._settlement.add(Outcome(claim, verdict, Attempted(attempt_id, started_at, result, endpoint.url)))

    def _obstacle(self, claim: Claim, endpoint: Endpoint | None) -> str | None:
        if endpoint is None:
            return "the subscription was deleted"
        if endpoint.blocked is not None:
            return endpoint.blocked
        return why_not_begin(
            self._heartbeat.times,
            renewal_age_s=self._heartbeat.renewal_age_s(),
            claim_age_s=boot_s() - claim.claimed_s,
            deadline_s=endpoint.timeout_s,
        )

    async def _post(self, endpoint: Endpoint, claim: Claim, *, timestamp: int) -> AttemptResult:
        began = boot_s()
        try:
            with self._telemetry.attempt_span(claim, endpoint.url) as traceparent:
                body = webhook_body(type=claim.event_type, time=claim.event_time, data=claim.data)
                headers = _headers(endpoint, claim, timestamp=timestamp, body=body, traceparent=traceparent)
                return await self._egress.post(endpoint.url, headers=headers, body=body, timeout_s=endpoint.timeout_s)
        except BaseException as error:
            # Also when it is interrupted: a POST that has begun always has an outcome.
            stopped = not isinstance(error, Exception)
            reason = "the dispatcher stopped before the answer came" if stopped else f"internal error: {error!r}"
            if not stopped:
                log.exception("delivery.failed")
            return NoAnswer(Failure.INTERNAL, reason, int((boot_s() - began) * 1000), None)


def _headers(
    endpoint: Endpoint, claim: Claim, *, timestamp: int, body: bytes, traceparent: str | None
) -> Mapping[str, str]:
    webhook_id = public_id(EVENT, claim.event)
    keys = endpoint.keys_at(wall())
    headers = {
        **endpoint.headers,
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(keys, webhook_id=webhook_id, timestamp=timestamp, body=body),
    }
    if traceparent is not None:
        headers["traceparent"] = traceparent
    return headers
