"""A policy's max age, kept by three dispatchers: what is older is dead-lettered, and not sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from schemas.ids import key_time
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually

MAX_AGE_S: Final = 3
SHORT: Final[dict[str, Any]] = {"delays_s": [1.0] * 20, "max_age_s": MAX_AGE_S}
LONG: Final[dict[str, Any]] = {**SHORT, "max_age_s": 3600}
TOO_OLD: Final = f"expired: older than its policy's max_age_s of {MAX_AGE_S} s"
TOO_LATE: Final = "expired: the next attempt would come after its policy's max_age_s; the last: "


@asynccontextmanager
async def three_dispatchers(system: System, folder: Path, **changes: Any) -> AsyncIterator[list[DispatcherProcess]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(DispatcherProcess(system, folder / f"{number}.log", **changes))
            for number in range(3)
        ]


async def publish(system: System, count: int) -> None:
    async with system.publisher() as publisher:
        await asyncio.gather(*(publisher.publish("order.created", {"n": n}) for n in range(count)))


async def all_too_old(system: System) -> None:
    """Wait until every event that there is, is older than `MAX_AGE_S`."""
    newest = key_time(await system.value("SELECT id FROM events ORDER BY id DESC LIMIT 1"))

    async def old() -> bool:
        return datetime.now(UTC) - newest > timedelta(seconds=MAX_AGE_S)

    await eventually(old)


async def pause_until_too_old(system: System, api: Api, subscription: dict[str, Any], count: int) -> None:
    """Events come in while the subscription is paused, and grow too old."""
    await api.call("PATCH", f"/v1/subscriptions/{subscription['id']}", {"state": "paused"})
    await publish(system, count)

    async def held() -> bool:
        return bool(await system.value("SELECT count(*) = $1 FROM deliveries WHERE status = 'held'", count))

    await eventually(held, system.statuses, deadline_s=30)
    await all_too_old(system)


async def test_what_was_paused_for_too_long_dies_unsent_and_a_replay_of_it_is_sent(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    short = await api.subscribe(receiver.url("/short"), retry_policy=SHORT)
    await api.subscribe(receiver.url("/sibling"))
    path = f"/v1/subscriptions/{short['id']}"
    async with three_dispatchers(system, tmp_path) as fleet:
        await pause_until_too_old(system, api, short, 30)
        await system.settled({"held": 30, "delivered": 30})
        await api.call("PATCH", path, {"state": "enabled"})
        await system.settled({"dead": 30, "delivered": 30})
        assert not receiver.to("/short")
        assert await system.value("SELECT sum(attempts) FROM deliveries WHERE status = 'dead'") == 0
        assert await system.value("SELECT count(*) FROM attempts WHERE url LIKE '%/short'") == 0
        letters = await api.all("/v1/dead-letters")
        assert [letter["reason"] for letter in letters] == [TOO_OLD] * 30
        assert sum(one.log.count('"delivery.expired"') for one in fleet) == 30

        await api.call("POST", "/v1/replays", {"subscription_id": short["id"]}, expect=202)
        await system.settled({"delivered": 60})
        assert len(receiver.to("/short")) == 30


async def test_what_expired_takes_no_turn_of_a_rate_limit(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    """One turn is had in twenty seconds. Twenty that are too old take none, and the next one has it."""
    limited = await api.subscribe(
        receiver.url("/limited"), retry_policy=SHORT, rate_limit={"requests_per_s": 0.05, "burst": 1}
    )
    async with three_dispatchers(system, tmp_path):
        await pause_until_too_old(system, api, limited, 20)
        path = f"/v1/subscriptions/{limited['id']}"
        await api.call("PATCH", path, {"state": "enabled"})
        await system.settled({"dead": 20}, deadline_s=15)
        await api.call("PATCH", path, {"retry_policy": LONG})
        await publish(system, 1)
        await system.settled({"dead": 20, "delivered": 1}, deadline_s=15)


async def test_what_expires_behind_an_open_breaker_is_no_probe(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    failing = await api.subscribe(receiver.behave("/failing", Behaviour(status=503)), retry_policy=SHORT)
    breaks: dict[str, Any] = {"breaker_min_attempts": 10, "breaker_failure_ratio": 0.8, "breaker_rest_s": 2}
    async with three_dispatchers(system, tmp_path, **breaks):
        await publish(system, 60)

        async def opened() -> bool:
            return bool(await system.value("SELECT count(*) FROM subscriptions WHERE breaker_until IS NOT NULL"))

        await eventually(opened, deadline_s=30)
        await system.settled({"dead": 60}, deadline_s=60)
        rows = await system.fetch(
            "SELECT event_id, d.reason, started_at FROM deliveries AS d LEFT JOIN attempts AS a ON d.id = delivery_id"
        )
        assert all(row["reason"].startswith((TOO_OLD, TOO_LATE)) for row in rows)
        # A POST begins in the breath of the check; the second is for a machine that holds it.
        late_s = timedelta(seconds=MAX_AGE_S + 1)
        assert all(row["started_at"] - key_time(row["event_id"]) < late_s for row in rows if row["started_at"])
        receiver.behave("/failing", Behaviour())
        await api.call("PATCH", f"/v1/subscriptions/{failing['id']}", {"retry_policy": LONG})
        await publish(system, 1)
        await system.settled({"dead": 60, "delivered": 1}, deadline_s=30)  # the probe, and the breaker lets it through


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_a_retry_that_the_endpoint_asks_for_too_late_is_dead_now(
    form: str, system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    """Without a max age it is made, and not before the time that was asked for: by now, in an hour or in two days."""

    def busy(path: str, after_s: int) -> str:
        date = f"{datetime.now(UTC) + timedelta(seconds=after_s):%a, %d %b %Y %H:%M:%S GMT}"
        answer = {"Retry-After": str(after_s) if form == "seconds" else date}
        return receiver.behave(path, Behaviour(status=503, headers=answer))

    async with three_dispatchers(system, tmp_path):
        began = datetime.now(UTC)
        late = await api.subscribe(busy("/late", 7200), retry_policy=LONG)
        hour = await api.subscribe(busy("/hour", 3600), retry_policy={**LONG, "max_age_s": 7200})
        days = await api.subscribe(busy("/days", 172_800), retry_policy={"delays_s": [1.0]})
        await publish(system, 1)  # a second one might find the endpoint resting, as it asked
        await system.settled({"dead": 1, "retrying": 2}, deadline_s=60)
    by_id = {one["id"]: one for one in await api.all("/v1/deliveries")}
    assert len(by_id) == 3
    for one in by_id.values():
        assert one["attempt_count"] == 1
        if one["subscription_id"] == late["id"]:
            assert one["reason"] == f"{TOO_LATE}the endpoint answered 503"
            continue
        # A date has no fractions of a second.
        wanted_s = {hour["id"]: 3600 - 1, days["id"]: 86_400}[one["subscription_id"]]
        assert datetime.fromisoformat(one["next_attempt_at"]) >= began + timedelta(seconds=wanted_s)
    assert len(receiver.requests) == 3
