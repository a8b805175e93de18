"""Auto-disable, recover and operational events: three dispatchers, killed in between, and who listens."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually

SOON: dict[str, Any] = {
    "failing_after_failures": 4,
    "failing_after_s": 0.5,
    "disable_after_failures": 14,
    "disable_after_s": 2,
}
# Three attempts within seconds, and then a wait that no test sees the end of.
THREE_SOON = {"delays_s": [1.0, 1.0, 3600.0]}
ONCE: dict[str, Any] = {"delays_s": []}
UNFINISHED = "status IN ('pending', 'held', 'retrying')"


@asynccontextmanager
async def fleet(system: System, folder: Path, **changes: object) -> AsyncIterator[list[DispatcherProcess]]:
    """Three dispatchers, killed at the end."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(DispatcherProcess(system, folder / f"{number}.log", **{**SOON, **changes}))
            for number in range(3)
        ]


async def publish(system: System, count: int) -> None:
    async with system.publisher() as publisher:
        await asyncio.gather(*(publisher.publish("order.created", {"n": n}) for n in range(count)))


async def listen(api: Api, receiver: Receiver) -> dict[str, Any]:
    """A subscription to all that Hookhare tells; its endpoint verifies each signature."""
    listener = await api.subscribe(receiver.url("/told"), "hookhare.#")
    receiver.behave("/told", Behaviour(secret=listener["secret"]))
    return listener


def heard(receiver: Receiver, of: str) -> list[tuple[str, dict[str, Any]]]:
    """What was told of this subscription, by type, in no order."""
    bodies = [orjson.loads(one.body) for one in receiver.to("/told")]
    return [
        (body["type"].removeprefix("hookhare."), body["data"])
        for body in bodies
        if body["data"]["subscription_id"] == of
    ]


def counted(receiver: Receiver, of: str) -> Counter[str]:
    return Counter(kind for kind, _ in heard(receiver, of))


async def hears(receiver: Receiver, of: str, expected: dict[str, int]) -> None:
    """Wait until so much was told; and each of it once, verified."""

    async def told() -> bool:
        return counted(receiver, of) >= Counter(expected)

    async def so_far() -> object:
        return counted(receiver, of)

    await eventually(told, so_far, deadline_s=60)
    assert counted(receiver, of) == Counter(expected)
    requests = receiver.to("/told")
    assert all(one.verified for one in requests)
    assert len({one.webhook_id for one in requests}) == len(requests)


async def settled(system: System, expected: dict[str, int]) -> None:
    """Wait until the deliveries of ordinary events stand as expected."""

    async def statuses() -> dict[str, int]:
        rows = await system.fetch(
            "SELECT status, count(*) AS number FROM deliveries WHERE event_type NOT LIKE 'hookhare.%' GROUP BY status"
        )
        return {row["status"]: row["number"] for row in rows}

    async def there() -> bool:
        return await statuses() == expected

    await eventually(there, statuses, deadline_s=60)


async def none(system: System, what: str) -> bool:
    return not await system.value(f"SELECT count(*) FROM {what}")


async def shown(api: Api, subscription: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = await api.call("GET", f"/v1/subscriptions/{subscription['id']}")
    return answer


async def streak_of(api: Api, subscription: dict[str, Any]) -> int:
    failures: int = (await shown(api, subscription))["streak"]["failures"]
    return failures


async def test_an_endpoint_that_only_fails_is_disabled_although_all_dispatchers_died_amid_its_streak(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    """And what died is recovered, once it is well and enabled again, with a streak that starts clean."""
    began = datetime.now(UTC)
    await listen(api, receiver)
    failing = await api.subscribe(receiver.behave("/failing", Behaviour(status=503)), retry_policy=THREE_SOON)
    well = await api.subscribe(receiver.url("/well"))

    async with fleet(system, tmp_path):
        await publish(system, 3)

        async def nine() -> bool:
            return await streak_of(api, failing) == 9

        await eventually(nine, deadline_s=60)
        await hears(receiver, failing["id"], {"subscription.created": 1, "subscription.failing": 1})
    before = await shown(api, failing)
    assert before["state"] == "enabled"

    async with fleet(system, tmp_path):  # these alone see six failures, of the fourteen that it takes
        await publish(system, 2)

        async def disabled() -> bool:
            return bool((await shown(api, failing))["state"] == "disabled")

        await eventually(disabled, deadline_s=60)
        await settled(system, {"dead": 5, "delivered": 5})
        reason = (await shown(api, failing))["state_reason"]
        assert reason.startswith(f"every attempt has failed since {before['streak']['failing_since'][:19]}Z, ")
        assert reason.endswith("; the last: the endpoint answered 503")
        letters = await api.all(f"/v1/dead-letters?subscription_id={failing['id']}")
        assert {letter["reason"] for letter in letters} == {reason}
        assert len(letters) == 5
        once = {"subscription.created": 1, "subscription.failing": 1, "subscription.disabled": 1, "delivery.dead": 5}
        await hears(receiver, failing["id"], once)
        told = dict(heard(receiver, failing["id"]))
        assert told["subscription.disabled"]["failing_since"] == before["streak"]["failing_since"]
        assert told["subscription.disabled"]["reason"] == reason
        assert told["delivery.dead"]["event_type"] == "order.created"

        # Enabled again, one failure is the first of a streak.
        receiver.behave("/failing", Behaviour(fail_first=1))
        path = f"/v1/subscriptions/{failing['id']}"
        assert (await api.call("PATCH", path, {"state": "enabled"}))["streak"]["failures"] == 0
        await publish(system, 1)

        async def retried() -> bool:
            answered = [request.status for request in receiver.to("/failing")]
            return answered[-2:] == [503, 200]

        await eventually(retried, deadline_s=60)
        assert (await shown(api, failing))["state"] == "enabled"

        replay = await api.call("POST", f"{path}/recover", {"since": began.isoformat()}, expect=202)
        assert replay["matched"] == 5
        await hears(receiver, failing["id"], once | {"subscription.updated": 1})
        await settled(system, {"delivered": 12})
        sent = Counter(request.webhook_id for request in receiver.to("/failing") if request.status == 200)
        assert (len(sent), set(sent.values())) == (6, {1})
        assert (await shown(api, failing))["streak"] == {"failures": 0, "failing_since": None}
    assert counted(receiver, well["id"]) == Counter({"subscription.created": 1})


async def test_a_success_at_any_dispatcher_ends_the_streak_and_is_told_once(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    await listen(api, receiver)
    flapping = await api.subscribe(receiver.behave("/flapping", Behaviour(status=500)), retry_policy=THREE_SOON)
    expected = {"subscription.created": 1}
    async with fleet(system, tmp_path, disable_after_failures=14, disable_after_s=0.01):
        for round_number in range(1, 4):  # 9 failures each, 27 in all, of which no 14 without a success
            receiver.behave("/flapping", Behaviour(status=500))
            await publish(system, 3)

            async def nine() -> bool:
                return await streak_of(api, flapping) == 9

            await eventually(nine, deadline_s=60)
            expected |= {"subscription.failing": round_number}
            await hears(receiver, flapping["id"], expected)
            receiver.behave("/flapping", Behaviour())
            await publish(system, 1)
            expected |= {"subscription.recovered": round_number}
            await hears(receiver, flapping["id"], expected)
            assert (await shown(api, flapping))["streak"] == {"failures": 0, "failing_since": None}
    assert (await shown(api, flapping))["state"] == "enabled"


async def told_of(system: System, what: str, times: int) -> bool:
    counted = "SELECT count(*) >= $2 FROM events WHERE type = 'hookhare.subscription.' || $1::text"
    return bool(await system.value(counted, what, times))


async def test_operational_events_never_cause_themselves(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    """A listener that fails at everything it is told: its failures are told to nobody, only that it is disabled."""
    await listen(api, receiver)
    deaf = await api.subscribe(receiver.behave("/deaf", Behaviour(status=500)), "hookhare.#", retry_policy=ONCE)
    other = await api.subscribe(receiver.url("/other"), "nothing")
    async with fleet(system, tmp_path, failing_after_s=0.001, disable_after_s=0.001, disable_after_failures=12):
        for number in range(12):
            await api.call("PATCH", f"/v1/subscriptions/{other['id']}", {"description": f"{number}"})

        async def disabled() -> bool:
            return bool((await shown(api, deaf))["state"] == "disabled")

        await eventually(disabled, deadline_s=60)
        await hears(receiver, other["id"], {"subscription.created": 1, "subscription.updated": 12})
        await hears(receiver, deaf["id"], {"subscription.created": 1, "subscription.disabled": 1})
        # Nothing more comes: all that was caused is published, and what came of it has ended without a word.
        await eventually(lambda: none(system, "operational_events"), deadline_s=60)
        await api.subscribe(receiver.url("/marker"), "order.#")
        await publish(system, 1)
        await receiver.wait_for(1, path="/marker", deadline_s=60)
        await eventually(lambda: told_of(system, "created", 4), deadline_s=60)  # the marker too
        await eventually(lambda: none(system, f"deliveries WHERE {UNFINISHED}"), deadline_s=60)
        await hears(receiver, deaf["id"], {"subscription.created": 1, "subscription.disabled": 1})
        told = await system.fetch("SELECT type, count(*) FROM events WHERE source = 'hookhare' GROUP BY type")
    assert {row["type"].removeprefix("hookhare.subscription."): row["count"] for row in told} == {
        "created": 4,
        "updated": 12,
        "disabled": 1,
    }
    assert await system.value("SELECT count(*) FROM dead_letters") >= 12
