"""How long the API takes for a page of deliveries, of 1,000,000 in a month, at the start of a list and at its end.

Each filter is one that an index knows, or one that it does not: of a type there may be every fortieth, or nothing. The
times are those of a caller on this machine, one request after the other. Then all of them are exported.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Final
from uuid import UUID

import aiohttp
import asyncpg
import psutil

from consumer_api.cursors import encode_cursor
from infra.settings import read_settings
from infra.store import partitions
from infra.store.store import open_store
from schemas.ids import SUBSCRIPTION, first_key_at, public_id
from tests.bench import figures
from tests.support.api import ApiClient, api_settings, running_api
from tests.support.postgres import running_postgres

DELIVERIES: Final = 1_000_000
DAYS: Final = 30
SUBSCRIPTIONS: Final = 1000  # of 20 tenants
REQUESTS: Final = 20
_WARM: Final = 5  # requests before, as of a process that has been up for a minute

_SUBSCRIPTIONS = """
INSERT INTO subscriptions (id, tenant, url, event_types, timeout_s, retry_policy, secrets, version)
SELECT ('00000000-0000-4000-8000-' || lpad(number::text, 12, '0'))::uuid, 'tenant-' || number % 20,
       'https://never.example/hook', '{#}', 15, '{}', '', 1
FROM generate_series(0, $1::int - 1) AS number
"""

# Keys as `delivery_key` makes them, oldest first. One in a thousand is dead, fewer are canceled, held or retrying.
_DELIVERIES = """
INSERT INTO deliveries (id, event_id, subscription_id, tenant, event_type, status, attempts, cycle, fence)
SELECT (lpad(to_hex($2::bigint + number * $3::bigint / $1), 12, '0') || '8' || substr(md5(number::text), 1, 3) || '8'
        || substr(md5(number::text), 4, 15))::uuid, gen_random_uuid(),
       ('00000000-0000-4000-8000-' || lpad((number % $4)::text, 12, '0'))::uuid, 'tenant-' || number % $4 % 20,
       CASE WHEN number % 20000 = 7 THEN 'order.rare' ELSE 'order.n' || number / 7 % 40 END,
       CASE WHEN number % 997 = 3 THEN 'dead' WHEN number % 4999 = 4 THEN 'canceled' WHEN number % 9973 = 5 THEN 'held'
            WHEN number % 3001 = 6 THEN 'retrying' ELSE 'delivered' END, 1, 0, 1
FROM generate_series(0, $1::bigint - 1) AS number
"""


def _filters(now: datetime) -> dict[str, Mapping[str, str]]:
    a_week = {
        name: (now - timedelta(days=days)).isoformat() for name, days in (("created_after", 14), ("created_before", 7))
    }
    subscription = {"subscription_id": public_id(SUBSCRIPTION, UUID("00000000-0000-4000-8000-000000000005"))}
    return {
        "all": {},
        "subscription": subscription,
        "subscription_dead": subscription | {"status": "dead"},
        "delivered": {"status": "delivered"},
        "dead": {"status": "dead"},
        "dead_canceled": {"status": "dead,canceled"},
        "retrying": {"status": "retrying"},
        "type": {"event_type": "order.n5"},
        "type_rare": {"event_type": "order.rare"},
        "type_none": {"event_type": "order.none"},
        "tenant": {"tenant": "tenant-5"},
        "tenant_dead": {"tenant": "tenant-5", "status": "dead"},
        "tenant_type": {"tenant": "tenant-5", "event_type": "order.n5"},
        "time": a_week,
        "time_type_none": a_week | {"event_type": "order.none"},
    }


async def measure() -> figures.Figures:
    """Milliseconds for a page of 50, at the start and at the end of each list."""
    found: dict[str, list[float]] = {}
    now = datetime.now(UTC)
    oldest = now - timedelta(days=DAYS - 1)
    with running_postgres(durable=True) as postgres:
        dsn = postgres.dsn(await postgres.create_database())
        await _fill(dsn, oldest, now)
        at_the_end = encode_cursor(first_key_at(oldest + (now - oldest) / 50))  # before it a fiftieth of all
        async with open_store(read_settings(database_url=dsn)) as store, running_api(api_settings(dsn), store) as api:
            for name, wanted in _filters(now).items():
                found[f"pages.{name}.first_ms"] = await _times_ms(api, wanted)
                if "created_after" not in wanted:
                    found[f"pages.{name}.last_ms"] = await _times_ms(api, {**wanted, "cursor": at_the_end})
            found["export.rows_per_s"], found["export.grown_mb"] = await _export(api)
    return found


async def _export(api: ApiClient) -> tuple[list[float], list[float]]:
    """Rows a second, and by how much the process has grown since the first tenth; it has the caller too."""
    began, rows, early_bytes = perf_counter(), 0, 0
    process, timeout = psutil.Process(), aiohttp.ClientTimeout(total=None, sock_read=60)
    headers = {"Authorization": f"Bearer {api.key}", "Accept": "application/x-ndjson"}
    async with api.session.get(f"{api.url}/v1/deliveries", headers=headers, timeout=timeout) as response:
        async for part in response.content.iter_any():
            rows += part.count(b"\n")
            if not early_bytes and rows > DELIVERIES // 10:
                early_bytes = process.memory_info().rss
    assert rows == DELIVERIES
    return [rows / (perf_counter() - began)], [(process.memory_info().rss - early_bytes) / 1e6]


async def _times_ms(api: ApiClient, query: Mapping[str, str]) -> list[float]:
    times = []
    for _ in range(_WARM + REQUESTS):
        began = perf_counter()
        await api.get("/v1/deliveries", **query)
        times.append((perf_counter() - began) * 1000)
    return times[_WARM:]


async def _fill(dsn: str, oldest: datetime, now: datetime) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await partitions.make(connection, first=oldest.date(), last=now.date())
        await connection.execute(_SUBSCRIPTIONS, SUBSCRIPTIONS)
        span_ms = int((now - oldest).total_seconds() * 1000)
        first_ms = int(oldest.timestamp() * 1000)
        await connection.execute(_DELIVERIES, DELIVERIES, first_ms, span_ms, SUBSCRIPTIONS, timeout=600)
        await connection.execute("VACUUM ANALYZE", timeout=600)
    finally:
        await connection.close()


if __name__ == "__main__":
    figures.run(measure)
