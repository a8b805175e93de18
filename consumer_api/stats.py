"""`GET /v1/subscriptions/{id}/stats`: how a subscription's deliveries fared lately, in numbers and in one word."""

from datetime import UTC, datetime
from typing import Annotated

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from consumer_api.answers import json_answer
from consumer_api.changing import subscription_key
from consumer_api.errors import ErrorCode
from consumer_api.outcomes import done
from consumer_api.queries import StatsQuery
from consumer_api.reading import read_query
from consumer_api.route import Route
from consumer_api.searching import searching
from infra.store import stats, subscriptions
from infra.store.stats import Attempts, Stats
from infra.store.subscriptions import SubscriptionRow
from schemas.deliveries import Failure, Status
from schemas.health import Health, judge_health
from schemas.scopes import Scope


class LatencyView(TypedDict):
    """Milliseconds that so many of a hundred attempts took at most, from connecting to the answer's end."""

    p50: int
    p95: int
    p99: int


class AttemptStats(TypedDict):
    """`success_rate` is delivered of all; null, as `latency_ms` is, where there were none."""

    count: int
    delivered: int
    success_rate: float | None
    latency_ms: LatencyView | None


class AnswerStats(AttemptStats):
    """Attempts with one answer: its status, or why there was none."""

    status_code: int | None
    failure: Failure | None


class HourStats(AttemptStats):
    """Attempts that began in the hour from `hour` on. Hours without any are left out."""

    hour: datetime


class DeliveryStats(TypedDict):
    """`success_rate` is delivered of those delivered or dead; null where there are none."""

    count: int
    by_status: Annotated[dict[str, int], Field(description="every status, also those of which there are none")]
    success_rate: float | None


class StatsView(TypedDict):
    """Deliveries accepted in the range, and the attempts made at them in it.

    Where there are more than are counted, the newest are: `complete` is false, and `since` is when they begin.
    """

    since: datetime
    until: datetime
    complete: bool
    health: Annotated[Health, Field(description="by its row, and by the attempts of the range")]
    deliveries: DeliveryStats
    attempts: AttemptStats
    by_answer: list[AnswerStats]
    by_hour: list[HourStats]


def routes() -> list[Route]:
    return [
        Route(
            method="GET",
            path="/v1/subscriptions/{subscription_id}/stats",
            handler=get,
            scope=Scope.SUBSCRIPTIONS_READ,
            query=StatsQuery,
            answers={200: StatsView},
            errors=(ErrorCode.QUERY_TOO_BROAD,),
        )
    ]


async def get(request: web.Request) -> web.Response:
    """Count deliveries, success rates and latencies by hour and by answer: of the last 24 hours unless said."""
    key = subscription_key(request)
    since, until = read_query(request, StatsQuery).within(datetime.now(UTC))
    async with searching(request, narrow_by="since and until") as conn:
        row = done(await subscriptions.get(conn, key), "subscription")
        counted = await stats.count(conn, key, since=since, until=until)
    return json_answer(_view(row, counted, until))


def _view(row: SubscriptionRow, counted: Stats, until: datetime) -> StatsView:
    by_status = {status.value: counted.deliveries.get(status, 0) for status in Status}
    delivered, dead = by_status[Status.DELIVERED], by_status[Status.DEAD]
    return {
        "since": counted.since,
        "until": until,
        "complete": counted.complete,
        "health": judge_health(
            state=row.state,
            breaker_open=row.breaker_until is not None,
            failures=row.failures,
            attempts=counted.attempts.attempts,
            delivered=counted.attempts.delivered,
        ),
        "deliveries": {
            "count": sum(by_status.values()),
            "by_status": by_status,
            "success_rate": _rate(delivered, delivered + dead),
        },
        "attempts": _attempts(counted.attempts),
        "by_answer": [
            {"status_code": status, "failure": None if failure is None else Failure(failure), **_attempts(made)}
            for status, failure, made in counted.by_answer
        ],
        "by_hour": [{"hour": hour, **_attempts(made)} for hour, made in counted.by_hour],
    }


def _attempts(made: Attempts) -> AttemptStats:
    latency: LatencyView | None = None
    if made.attempts:
        p50, p95, p99 = made.latency_ms
        latency = {"p50": p50, "p95": p95, "p99": p99}
    return {
        "count": made.attempts,
        "delivered": made.delivered,
        "success_rate": _rate(made.delivered, made.attempts),
        "latency_ms": latency,
    }


def _rate(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
