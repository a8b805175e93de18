"""A soak: an installation with everything going wrong that can, and then the accounting."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

from producer.publisher import EventPublisher
from tests.soak.chronicle import Chronicle
from tests.soak.endpoints import Endpoints, endpoints
from tests.soak.facts import Change, Facts, read_history, read_rows
from tests.soak.fleet import MEMORY_GROWTH_BYTES, Fleet
from tests.soak.installation import Installation, installed
from tests.soak.ledger import Finding, Line, accounting, reckon, uneven
from tests.soak.operators import Operators
from tests.soak.player import Player
from tests.soak.publishing import Publishing
from tests.soak.schedule import schedule
from tests.support.accounting import Accounting

_SETTLE_EVERY_S: Final = 0.5
_HISTORIES: Final = 5  # findings that are shown with all that is known of their delivery


@dataclass(frozen=True, slots=True)
class Report:
    """`findings` is empty when all is well."""

    lines: Sequence[Line]
    published: Mapping[str, int]
    faults: int
    repeats: int
    dispatchers: int
    grown_bytes: int
    settled_s: float
    findings: Sequence[str]


async def soak(
    *, seed: int, seconds: float, broker: str, folder: Path, tell: Callable[[str], None], rate_per_s: float = 50
) -> Report:
    """Run one. Everything that it starts has ended when it returns, and `folder` has the dispatchers' logs."""
    faults = schedule(seed, seconds, broker_is_a_server=broker == "rabbitmq")
    async with AsyncExitStack() as stack:
        installation = await stack.enter_async_context(installed(broker))
        ends = await stack.enter_async_context(endpoints(seed))
        chronicle = Chronicle(tell)
        operators = Operators(installation, ends, chronicle)
        await operators.begin()
        fleet = Fleet(installation.system, folder, chronicle)
        adapter = await stack.enter_async_context(installation.system.broker())
        publisher = await stack.enter_async_context(EventPublisher(installation.system.broker_url))
        publishing = Publishing(publisher, installation.api, chronicle, rate_per_s, random.Random(seed))
        player = Player(installation, fleet, ends, operators, publishing, adapter, chronicle)
        books = Accounting(installation.direct, [ends.receiver])
        async with fleet.running():
            chronicle.begin()
            watching = asyncio.create_task(player.watch())
            publishes = asyncio.create_task(publishing.run())
            await player.play(faults)
            publishing.stop()
            await publishes
            await operators.end()
            settled_s = await _settle(books, chronicle, deadline_s=120 + seconds)
        watching.cancel()
        facts = await _facts(installation, ends, player)
        history = await read_history(installation.direct, uneven(facts))
        explained, findings = reckon(facts, history)
        at_fault = await books.rows_at_fault()
        if fleet.grown_bytes > MEMORY_GROWTH_BYTES:
            at_fault.append(f"a dispatcher grew by {fleet.grown_bytes / 1e6:.0f} MB")
        return Report(
            lines=accounting(facts, explained),
            published=_published(facts),
            faults=len(faults),
            repeats=len(explained),
            dispatchers=fleet.started,
            grown_bytes=fleet.grown_bytes,
            settled_s=settled_s,
            findings=[*chronicle.findings, *at_fault, *await _told(installation, findings, facts)],
        )


async def _settle(books: Accounting, chronicle: Chronicle, *, deadline_s: float) -> float:
    """Wait until nothing is left to do, or the deadline is over; how long it took."""
    chronicle.note("the faults are over: everything has to settle")
    begun_s = time.monotonic()
    while not await books.is_settled():
        if time.monotonic() > begun_s + deadline_s:
            chronicle.found(f"not settled {deadline_s:.0f} s after the last fault")
            break
        await asyncio.sleep(_SETTLE_EVERY_S)
    return time.monotonic() - begun_s


async def _facts(installation: Installation, ends: Endpoints, player: Player) -> Facts:
    return Facts(
        rows=await read_rows(installation.direct),
        events=player.publishing.events,
        subscribed=player.operators.subscribed,
        poison=player.poison,
        replayed=player.operators.replayed,
        chronicle=player.chronicle,
        seen=ends.seen(),
    )


def _published(facts: Facts) -> dict[str, int]:
    events = facts.events
    return {
        "confirmed": sum(event.confirmed > 0 for event in events),
        "not confirmed, and there": sum(not event.confirmed and event.id in facts.rows.admitted for event in events),
        "not confirmed, and not there": sum(
            not event.confirmed and event.id not in facts.rows.admitted for event in events
        ),
        "published more than once": sum(event.tried > 1 for event in events),
        "unreadable messages": len(facts.poison),
    }


async def _told(installation: Installation, findings: Sequence[Finding], facts: Facts) -> list[str]:
    """Findings as lines, the first few with all that is known of their delivery."""
    told = []
    shown = [one for one in findings if one.delivery is not None][:_HISTORIES]
    history = await read_history(installation.direct, [one.delivery for one in shown if one.delivery is not None])
    for finding in findings:
        told.append(str(finding))
        if finding in shown and finding.delivery is not None:
            told += _biography(finding.delivery, history.get(finding.delivery, ()), facts)
        if finding.at is not None and len(told) < 500:
            told += [f"    meanwhile {line}" for line in facts.chronicle.near(finding.at)]
    return told


def _biography(delivery: UUID, history: Sequence[Change], facts: Facts) -> list[str]:
    """Every change, attempt and request of a delivery, in order of time."""
    one = next(one for one in facts.rows.deliveries if one.id == delivery)
    moments: list[tuple[float, str]] = [(change.at, f"row: {_row(change)}") for change in history]
    moments += [(attempt.signed_at, f"attempt: {attempt}") for attempt in one.attempts]
    moments += [
        (seen.signed_at, "request, signed in this second")
        for seen in facts.seen
        if (seen.webhook_id, seen.path) == (one.webhook_id, one.path)
    ]
    head = f"    {one.path} {one.event_id} {one.webhook_id}"
    return [head, *(f"    {_clock(at)} {text}" for at, text in sorted(moments))]


def _row(change: Change) -> str:
    return f"{change.status} cycle={change.cycle} attempts={change.attempts} fence={change.fence} " + (
        f"claimed by {change.claimed_by}" if change.claimed_by else f"({change.reason})"
    )


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3]
