"""Upkeep: what is kept past its time goes, in batches, and what is not stays."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from dispatcher import upkeep
from dispatcher.heartbeat import Heartbeat
from dispatcher.lanes import Lanes
from dispatcher.upkeep import Upkeep
from infra.settings import read_settings
from infra.store import replays
from infra.store.history import DeliveryFilter
from infra.store.store import Store, open_store
from infra.telemetry import Telemetry
from tests.support.seed import Seed
from tests.support.waiting import eventually

DAYS = 30
AUDIT_DAYS = 400

# What makes one row, `$2` ago; `$1` is its id. And how old it may become.
KEPT = {
    "dead_letters": (
        (
            "INSERT INTO dead_letters (id, kind, reason, body, created_at) "
            "VALUES ($1, 'unreadable', 'no JSON', 'x', clock_timestamp() - $2::interval)"
        ),
        timedelta(days=DAYS),
    ),
    "replays": (
        (
            "INSERT INTO replays (id, filter, state, created_at, ended_at) "
            "VALUES ($1, '{}', 'completed', clock_timestamp() - $2::interval, clock_timestamp() - $2::interval)"
        ),
        timedelta(days=DAYS),
    ),
    "audit_log": (
        (
            "INSERT INTO audit_log (id, action, target, created_at) "
            "VALUES ($1, 'key.created', 'x', clock_timestamp() - $2::interval)"
        ),
        timedelta(days=AUDIT_DAYS),
    ),
    "event_keys": (
        (
            "INSERT INTO event_keys (tenant, source, external_id, event_id, digest, created_at) "
            "VALUES ('default', 'tests', $1::uuid::text, $1, 'x', clock_timestamp() - $2::interval)"
        ),
        timedelta(days=7),
    ),
    "dispatchers": (
        "INSERT INTO dispatchers (id, host, pid, renewed_at) VALUES ($1, 'x', 1, clock_timestamp() - $2::interval)",
        timedelta(minutes=10),
    ),
}


@pytest.fixture
def kept(store: Store, lanes: Lanes, heartbeat: Heartbeat, telemetry: Telemetry) -> Upkeep:
    return Upkeep(
        store,
        lanes,
        heartbeat,
        telemetry,
        read_settings(retention_days=DAYS, audit_days=AUDIT_DAYS, dedupe_window_s=7 * 86_400),
    )


@pytest.mark.parametrize("table", KEPT)
async def test_what_is_past_its_time_goes_in_batches(
    kept: Upkeep, store: Store, heartbeat: Heartbeat, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    monkeypatch.setattr(upkeep, "_FORGOTTEN_AT_ONCE", 2)
    monkeypatch.setattr(upkeep, "_KEYS_AT_ONCE", 2)
    insert, most = KEPT[table]
    young = uuid7()  # ids begin with the time that they were made at
    async with store.connection() as connection:
        for number in range(5):
            await connection.execute(insert, UUID(int=number), most + timedelta(minutes=1))
        await connection.execute(insert, young, most - timedelta(minutes=1))
    await kept._maintain()
    key = "event_id" if table == "event_keys" else "id"
    async with store.connection() as connection:
        left = {row[key] for row in await connection.fetch(f"SELECT {key} FROM {table}")}
    assert left - {heartbeat.incarnation} == {young}


async def test_a_replay_that_still_runs_is_kept(kept: Upkeep, store: Store, seed: Seed) -> None:
    key = uuid7()
    async with store.connection() as connection:
        await connection.execute(
            "INSERT INTO replays (id, filter, state, created_at) "
            "VALUES ($1, '{}', 'running', clock_timestamp() - interval '90 days')",
            key,
        )
    await kept._maintain()
    assert (await seed.row("replays", key))["state"] == "running"


async def test_a_replay_that_fails_keeps_no_other_one_waiting(
    database_url: str, seed: Seed, lanes: Lanes, heartbeat: Heartbeat, telemetry: Telemetry
) -> None:
    """Somebody has the first one's subscription locked for longer than a statement may take."""
    settings = read_settings(database_url=database_url, database_timeout_s=0.5, feeder_period_s=0.05)
    replayed = []
    for _ in range(2):
        subscription = await seed.subscription()
        await seed.delivery(subscription, status="dead")
        replayed.append(subscription)
    async with open_store(settings) as quick, seed.store.transaction() as other:
        await other.execute("SELECT FROM subscriptions WHERE id = $1 FOR UPDATE", replayed[0])
        async with quick.transaction() as connection:
            asked = [
                await replays.create(
                    connection,
                    replay_id=uuid7(),
                    wanted=DeliveryFilter(subscription_id=one, statuses=("dead",)),
                    max_per_s=100,
                    now=datetime.now(UTC) + timedelta(milliseconds=1),
                )
                for one in replayed
            ]
        running = asyncio.create_task(Upkeep(quick, lanes, heartbeat, telemetry, settings).run_replays())

        async def second_is_done() -> bool:
            return str((await seed.row("replays", asked[1].id))["state"]) == "completed"

        try:
            await eventually(second_is_done)
        finally:
            running.cancel()
            await asyncio.wait([running])
        first = await seed.row("replays", asked[0].id)
    assert (first["state"], first["replayed"]) == ("running", 0)
