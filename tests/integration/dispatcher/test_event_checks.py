"""What admission asks the catalogue of event types: by which settings, and of which events."""

import asyncio
import json
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import pytest
from structlog.testing import capture_logs

from dispatcher import event_checks
from dispatcher.event_checks import EventChecks
from infra.settings import Settings
from infra.store import event_types
from infra.store.event_types import Wanted
from infra.store.store import Store
from infra.telemetry import Telemetry
from schemas.errors import Problem
from schemas.events import Event, build_event
from tests.support import rows

REFUSED = Problem("data.total", "must be text (#/properties/total/type)")
UNKNOWN = Problem("type", "is not in the catalogue of event types")
GOOD, BAD = b'{"total":"1.10"}', b'{"total":4711}'


def event(data: bytes, external_id: str = "fresh", *, type: str = "order.created", **more: Any) -> Event:  # noqa: A002
    moment = datetime.now(UTC)
    return build_event(type=type, data=data, external_id=external_id, source="shop", time=moment, **more)


async def define(store: Store, name: str, *schemas: Any) -> None:
    said = Wanted(description="", example=None, deprecated=False, deprecation=None)
    async with store.transaction() as conn:
        version = await event_types.lock(conn)
        row = await event_types.create(conn, name, said, version=version)
        for schema in schemas:
            assert isinstance(row, event_types.EventTypeRow)
            added = await event_types.add_version(conn, row, json.dumps(schema).encode(), version=version)
            assert isinstance(added, tuple)
            row = added[0]


async def refused(checks: EventChecks, store: Store, *events: Event) -> dict[int, Problem]:
    async with store.transaction() as conn:
        version = await conn.fetchval("SELECT version FROM subscription_version")
        looked_at, found = await checks.refused(conn, version, events)
    assert looked_at == len(events)
    return found


@pytest.fixture
async def catalogue(store: Store) -> None:
    await define(store, "order.created", {"properties": {"total": {"type": "string"}}})
    await define(store, "order.noted")


@pytest.mark.usefixtures("catalogue")
@pytest.mark.parametrize(
    ("mode", "unknown", "expected"),
    [
        ("refuse", "allow", {1: REFUSED}),
        ("warn", "allow", {}),
        ("off", "allow", {}),
        ("refuse", "refuse", {1: REFUSED, 3: UNKNOWN}),
        ("warn", "refuse", {3: UNKNOWN}),
        ("off", "refuse", {3: UNKNOWN}),
    ],
)
async def test_what_is_refused_is_as_it_is_set(
    store: Store, settings: Settings, telemetry: Telemetry, mode: str, unknown: str, expected: dict[int, Problem]
) -> None:
    set_so = settings.model_copy(update={"event_schema_mode": mode, "unknown_event_types": unknown})
    told = (
        event(GOOD),
        event(BAD),
        event(b"1", type="order.noted"),
        event(b"2", type="other"),
        event(b"3", type="hookhare.test", operational=True),
    )
    with capture_logs() as lines:
        assert await refused(EventChecks(set_so, telemetry), store, *told) == expected
    warned = [line for line in lines if line["event"] == "event.invalid"]
    assert [line["reason"] for line in warned] == ([REFUSED.message] if mode == "warn" else [])
    assert "4711" not in str(lines)


@pytest.mark.usefixtures("catalogue")
async def test_what_was_admitted_before_is_a_duplicate_whatever_the_catalogue_says_now(
    store: Store, settings: Settings, telemetry: Telemetry
) -> None:
    """It comes again when a dispatcher died before its ack, or its publisher did not hear of the confirm."""
    async with store.transaction() as conn:
        await rows.add_event(conn, external_id="known", digest=event(BAD).digest)
        await rows.add_event(conn, external_id="long ago", digest=event(BAD).digest)
        await conn.execute(
            "UPDATE event_keys SET created_at = created_at - interval '8 days' WHERE external_id = 'long ago'"
        )
    checks = EventChecks(settings, telemetry)
    told = (event(BAD, "known"), event(BAD, "long ago"), event(BAD, "fresh"))
    assert await refused(checks, store, *told) == {1: REFUSED, 2: REFUSED}


async def test_a_change_of_the_catalogue_is_seen_by_the_next_admission(
    store: Store, settings: Settings, telemetry: Telemetry
) -> None:
    checks = EventChecks(settings, telemetry)
    assert await refused(checks, store, event(BAD)) == {}
    await define(store, "order.created", {"type": "string"}, {"properties": {"total": {"type": "string"}}})
    assert await refused(checks, store, event(GOOD), event(BAD)) == {1: REFUSED}
    first = "/v1/event-types/order.created/versions/1"
    assert (await refused(checks, store, event(GOOD, dataschema=first))).keys() == {0}
    async with store.transaction() as conn:
        version = await event_types.lock(conn)
        row = await event_types.get(conn, "order.created")
        assert isinstance(row, event_types.EventTypeRow)
        await event_types.delete(conn, row, version=version)
    assert await refused(checks, store, event(BAD)) == {}
    await define(store, "order.created", {"properties": {"total": {"type": "string"}}})
    assert await refused(checks, store, event(BAD)) == {0: REFUSED}


async def test_a_flood_of_slow_checks_is_cut_into_transactions_and_others_run_between_them(
    store: Store, settings: Settings, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of 500 such events in one transaction would take 30 s: the server would end it, again and again."""
    await define(store, "order.slow", {"items": {"anyOf": [{"const": [1, n]} for n in range(20)]}})
    slow = event(b"[%b]" % b",".join([b"[1,19]"] * 500), type="order.slow")
    checks = EventChecks(settings, telemetry)
    assert await refused(checks, store, slow) == {}
    monkeypatch.setattr(event_checks, "_LONGEST_S", 0.05)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(others())
    async with store.transaction() as conn:
        version = await conn.fetchval("SELECT version FROM subscription_version")
        turns = 0
        began_s = perf_counter()
        looked_at, found = await checks.refused(conn, version, [slow] * 500)
        took_s = perf_counter() - began_s
    running.cancel()
    assert 1 <= looked_at < 500
    assert found == {}
    assert took_s < 2
    assert turns >= 3


@pytest.mark.usefixtures("catalogue")
async def test_a_schema_that_this_release_cannot_read_refuses_nothing_and_is_told(
    store: Store, settings: Settings, telemetry: Telemetry
) -> None:
    async with store.transaction() as conn:
        await conn.execute("""UPDATE event_type_versions SET schema = '{"type":"of a later release"}'""")
    with capture_logs() as lines:
        assert await refused(EventChecks(settings, telemetry), store, event(BAD)) == {}
    assert [line["event"] for line in lines] == ["event_schema.unreadable"]
