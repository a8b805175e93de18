"""Replays in bulk: at their rate over three dispatchers, behind what is live, and none at another one's cost."""

import asyncio
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.support.backlog import add_deliveries
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually

# When each step of a replay was made, by the database's clock, and how many deliveries it looked at.
NOTE_STEPS = (
    "CREATE TABLE steps (at timestamptz DEFAULT clock_timestamp(), count int)",
    """
    CREATE FUNCTION note_step() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO steps (count) VALUES (NEW.replayed + NEW.skipped - OLD.replayed - OLD.skipped);
        RETURN NULL;
    END $$
    """,
    "CREATE TRIGGER note_step AFTER UPDATE OF cursor ON replays FOR EACH ROW EXECUTE FUNCTION note_step()",
)


async def replay(api: Api, subscription: dict[str, Any], **more: object) -> dict[str, Any]:
    wanted = {"subscription_id": subscription["id"], **more}
    answer: dict[str, Any] = await api.call("POST", "/v1/replays", wanted, expect=202)
    return answer


async def ended(api: Api, asked: dict[str, Any], *, deadline_s: float = 60) -> dict[str, Any]:
    """The replay, once it is completed."""
    path = f"/v1/replays/{asked['id']}"

    async def completed() -> bool:
        return bool((await api.call("GET", path))["state"] == "completed")

    await eventually(completed, lambda: api.call("GET", path), deadline_s=deadline_s)
    answer: dict[str, Any] = await api.call("GET", path)
    return answer


async def test_a_replay_keeps_its_rate_over_the_fleet_and_live_events_do_not_wait_for_it(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    subscription = await api.subscribe(receiver.url("/hook"))
    await add_deliveries(system.database_url, subscription["id"], 300, status="dead")
    for statement in NOTE_STEPS:
        await system.fetch(statement)
    async with AsyncExitStack() as stack:
        for number in range(3):
            await stack.enter_async_context(DispatcherProcess(system, tmp_path / f"{number}.log"))
        asked = await replay(api, subscription, max_per_s=50)
        assert asked["max_per_s"] == 50
        await receiver.wait_for(50, deadline_s=30)
        async with system.publisher() as publisher:
            await asyncio.gather(*(publisher.publish("order.created", {"live": n}) for n in range(20)))
        await system.settled({"delivered": 320}, deadline_s=60)
        assert (await ended(api, asked))["replayed"] == 300

    begun_at = datetime.fromisoformat(asked["created_at"])
    rows = await system.fetch("SELECT a.cycle, a.started_at FROM attempts AS a ORDER BY a.started_at")
    replayed = [(row["started_at"] - begun_at).total_seconds() for row in rows if row["cycle"] == 1]
    assert len(replayed) == 300
    # It goes when it has been begun again, or later: never more than the rate has allowed since the beginning.
    assert [at for place, at in enumerate(replayed, 1) if place > 50 * at + 0.1] == []
    # And however the dispatchers were held up, no more than a second's worth was made good for at once. A step that was
    # held up itself is noted later than it was reckoned, by up to a fifth of a second here.
    steps = [((row["at"] - begun_at).total_seconds(), row["count"]) for row in await system.fetch("TABLE steps")]
    assert sum(count for _, count in steps) == 300
    assert max(sum(count for at, count in steps if start <= at < start + 1) for start, _ in steps) <= 51 + 50 + 10
    live = [place for place, row in enumerate(rows) if row["cycle"] == 0]
    assert len(live) == 20
    assert live[-1] < 300  # of 319: they were all delivered before the replay had ended


async def test_a_live_event_goes_before_ten_thousand_replays_also_when_the_hand_is_full_of_them(
    system: System, api: Api, receiver: Receiver
) -> None:
    subscription = await api.subscribe(receiver.behave("/slow", Behaviour(delay_s=0.02)))
    await add_deliveries(system.database_url, subscription["id"], 10_000, cycle=1)
    async with system.dispatcher(endpoint_max_in_flight=1, max_wait_in_hand_s=20, claim_cap_s=100):

        async def full() -> bool:
            claimed = "SELECT count(*) FROM deliveries WHERE claimed_by IS NOT NULL"
            return bool(await system.value(claimed) >= 200)

        await eventually(full, deadline_s=30)
        async with system.publisher() as publisher:
            live = await publisher.publish("order.created", {"live": 1})

        async def admitted() -> bool:
            return bool(await system.value("SELECT count(*) FROM deliveries WHERE cycle = 0"))

        await eventually(admitted, deadline_s=30)
        before = len(receiver.requests)
        came = await receiver.wait_until(lambda all_: any(one.webhook_id == live.id for one in all_), deadline_s=30)
        place = [one.webhook_id for one in came].index(live.id)
    # In hand are 235, one after the other. It waits for a place, and is then the next one.
    assert place - before < 100


async def test_a_replay_of_another_endpoint_and_one_by_hand_do_not_wait_for_a_slow_one(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    slow, quick, single = [await api.subscribe(receiver.url(f"/{name}"), name) for name in ("slow", "quick", "single")]
    await add_deliveries(system.database_url, slow["id"], 50, status="dead")
    await add_deliveries(system.database_url, quick["id"], 600, status="dead")  # more than a batch
    await add_deliveries(system.database_url, single["id"], 1, status="dead")
    async with AsyncExitStack() as stack:
        for number in range(3):
            await stack.enter_async_context(DispatcherProcess(system, tmp_path / f"{number}.log"))
        first = await replay(api, slow, max_per_s=0.1)
        second = await replay(api, quick, max_per_s=10_000)
        assert (await ended(api, second))["replayed"] == 600
        await receiver.wait_for(600, path="/quick", deadline_s=60)
        letter = (await api.call("GET", f"/v1/deliveries?subscription_id={single['id']}"))["data"][0]
        await api.call("POST", f"/v1/deliveries/{letter['id']}/replay")
        await receiver.wait_for(1, path="/single", deadline_s=30)
        assert (await api.call("GET", f"/v1/replays/{first['id']}"))["state"] == "running"
        canceled = await api.call("POST", f"/v1/replays/{first['id']}/cancel")
        await system.settled({"delivered": 601 + canceled["replayed"], "dead": 50 - canceled["replayed"]})
        assert len(receiver.to("/slow")) == canceled["replayed"] < 50
