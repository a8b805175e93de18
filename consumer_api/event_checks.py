"""What the catalogue of event types says of events that are about to be published.

It is asked as of now, so that what is answered 202 is not refused at admission right after; admission asks again.
"""

from collections.abc import Sequence
from typing import Final

import structlog
from aiohttp import web

from consumer_api.context import CATALOGUE, STORE, TELEMETRY
from consumer_api.errors import ErrorCode, Fault
from infra.store.catalogue import Verdict
from schemas.errors import Problem
from schemas.events import Event

log = structlog.get_logger(__name__)

EVENT_ERRORS: Final = (ErrorCode.EVENT_INVALID, ErrorCode.UNKNOWN_EVENT_TYPE)


async def verdicts(request: web.Request, events: Sequence[Event]) -> dict[int, Verdict]:
    """What the catalogue has against each of them, by its place; nothing for most. It is logged and counted."""
    found = await looked_at(request, events)
    for place, verdict in found.items():
        result = "refused" if verdict.refused else "warned"
        request.app[TELEMETRY].metrics.events_invalid.add(1, {"result": result})
        # Without the place in the data, whose names are the producer's.
        log.warning("event.invalid", event_type=events[place].type, reason=verdict.problem.message, result=result)
    return found


async def looked_at(request: web.Request, events: Sequence[Event]) -> dict[int, Verdict]:
    """The same, of events that are not going to be published."""
    catalogue = request.app[CATALOGUE]
    if not events or not catalogue.asked:
        return {}
    async with request.app[STORE].connection() as conn:
        await catalogue.refresh(conn)
    return (await catalogue.judge(events)).verdicts


def refusal(verdict: Verdict | None) -> Fault | None:
    """The error that an event is answered with, None where it is taken."""
    if verdict is None or not verdict.refused:
        return None
    code = ErrorCode.UNKNOWN_EVENT_TYPE if verdict.unknown else ErrorCode.EVENT_INVALID
    problem = verdict.problem
    return Fault(422, code, f"{problem.field}: {problem.message}", (problem,))


def warnings(verdict: Verdict | None) -> tuple[Problem, ...]:
    """What is told of an event that is taken all the same."""
    return () if verdict is None or verdict.refused else (verdict.problem,)
