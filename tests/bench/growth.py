"""What grows with the number of subscriptions, with the history, with what waits: cost of a delivery, and memory.

One dispatcher empties a full queue, as in `throughput`; what there is besides is never sent to. Each case stands beside
the one without it, over which its ratio is.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import asyncpg

from infra.broker.base import Outgoing, ToWorkAfter
from schemas.work import WorkItem, encode_work
from tests.bench import figures
from tests.bench.throughput import Emptied, empty, private_node
from tests.support.backlog import add_deliveries
from tests.support.postgres import running_postgres
from tests.support.system import Api, System

ROUNDS: Final = 3
WAITING: Final = 100_000
HISTORY: Final = 1_000_000
_TYPES: Final = 9  # with an endpoint each; one more subscription is that which nothing is sent to
_NEVER = "https://never.example/hook"
_AT_ONCE: Final = 5000

Prepare = Callable[[System, Api], Awaitable[None]]

# Copies of one subscription that differ in what they listen to, as if the API had made them.
_SUBSCRIPTIONS = """
WITH new AS (UPDATE subscription_version SET version = version + 1 RETURNING version)
INSERT INTO subscriptions (id, tenant, url, event_types, timeout_s, retry_policy, secrets, version)
SELECT gen_random_uuid(), tenant, url, ARRAY['other.n' || number], timeout_s, retry_policy, secrets, new.version
FROM subscriptions, new, generate_series(1, $2) AS number WHERE id = $1
"""

# A delivered delivery and its attempt for each event that there is.
_DELIVERED = """
WITH done AS (
    INSERT INTO deliveries (id, event_id, subscription_id, tenant, event_type, status, attempts, cycle, fence)
    SELECT id, id, $1, tenant, type, 'delivered', 1, 0, 1 FROM events RETURNING id)
INSERT INTO attempts (id, delivery_id, cycle, number, started_at, duration_ms, outcome, superseded, status_code,
                      response_body, remote_address, url, dispatcher)
SELECT id, id, 0, 1, clock_timestamp(), 12, 'delivered', false, 200,
       convert_to('ok', 'UTF8'), '127.0.0.1:1', $2, $1 FROM done
"""

# Keys as `event_key` makes them: milliseconds, a hash, version 8. Spread over the last two hours.
_EVENTS = """
INSERT INTO events (id, tenant, source, external_id, type, time, data)
SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - number * 7200000 / $1), 12, '0') || '8'
        || substr(md5(number::text), 1, 3) || '8' || substr(md5(number::text), 4, 15))::uuid,
       'default', 'bench', number::text, 'order.created', now(),
       convert_to('{"text":"' || repeat('x', 900) || '"}', 'UTF8')
FROM generate_series(1, $1::bigint) AS number
"""


async def measure() -> figures.Figures:
    """Microseconds of a dispatcher's CPU for each delivery, and its resident memory at the end."""
    families: dict[str, dict[str, Prepare]] = {
        "subscriptions": {str(number): _subscriptions(number) for number in (10, 1000, 100_000)},
        "history": {"0": _nothing, str(HISTORY): _history},
        "waiting": {"0": _nothing, "held": _held, "ladder": _ladder},
    }
    emptied: dict[tuple[str, str], list[Emptied]] = {}
    with private_node() as rabbit, running_postgres(durable=True) as postgres:
        for _ in range(ROUNDS):
            for family, cases in families.items():
                for case, prepare in cases.items():
                    one = await empty(postgres, rabbit, rabbit.url, fan_out=1, fleet=1, types=_TYPES, prepare=prepare)
                    emptied.setdefault((family, case), []).append(one)
    found: dict[str, list[float]] = {}
    for (family, case), rounds in emptied.items():
        name = f"growth.{family}_{case}"
        smallest = emptied[family, next(iter(families[family]))]
        costs = [1e6 / one.per_cpu_s for one in rounds]
        found[f"{name}.cpu_us"] = costs
        found[f"{name}.ratio"] = figures.ratios(costs, [1e6 / one.per_cpu_s for one in smallest])
        found[f"{name}.memory_mb"] = [one.memory_mb for one in rounds]
    return found


async def _nothing(_: System, __: Api) -> None:
    """As in `throughput`."""


def _subscriptions(number: int) -> Prepare:
    """So many in all."""

    async def prepare(system: System, api: Api) -> None:
        key = await _one(system, api)
        await _execute(system, _SUBSCRIPTIONS, key, number - _TYPES - 1)

    return prepare


async def _history(system: System, api: Api) -> None:
    key = await _one(system, api)
    await _execute(system, _EVENTS, HISTORY)
    await _execute(system, _DELIVERED, key, _NEVER)
    await _execute(system, "ANALYZE")


async def _held(system: System, api: Api) -> None:
    subscription = await api.subscribe(_NEVER, "other")
    await api.call("POST", f"/v1/subscriptions/{subscription['id']}/pause")
    await add_deliveries(system.database_url, subscription["id"], WAITING)


async def _ladder(system: System, api: Api) -> None:
    """Retries that are due in an hour, and their hints."""
    subscription = await api.subscribe(_NEVER, "other")
    waiting = await add_deliveries(system.database_url, subscription["id"], WAITING, status="retrying")
    at = "now() + interval '1 hour'"
    await _execute(system, f"UPDATE deliveries SET attempts = 1, next_attempt_at = {at}, hint_due_at = {at}")
    async with system.broker() as broker:
        for start in range(0, WAITING, _AT_ONCE):
            hints = [
                Outgoing(ToWorkAfter(3600), encode_work(WorkItem(key, 0, 2, 0)))
                for key in waiting[start : start + _AT_ONCE]
            ]
            assert set(await broker.publish_many(hints, timeout_s=60)) == {None}


async def _one(system: System, api: Api) -> object:
    """The key of a subscription that nothing is sent to."""
    await api.subscribe(_NEVER, "other")
    return await system.value("SELECT id FROM subscriptions WHERE url = $1", _NEVER)


async def _execute(system: System, statement: str, *arguments: object) -> None:
    connection = await asyncpg.connect(system.database_url)
    try:
        async with asyncio.timeout(300):
            await connection.execute(statement, *arguments, timeout=300)
    finally:
        await connection.close()


if __name__ == "__main__":
    figures.run(measure)
