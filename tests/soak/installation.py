"""The installation that a soak torments: servers of its own, a proxy before each, and the API."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

from tests.soak.schedule import LIVENESS_S, Wire
from tests.support.postgres import Postgres, running_postgres
from tests.support.proxy import Proxy
from tests.support.rabbit_server import RabbitServer, running_server
from tests.support.system import Api, System

SETTINGS: Final[Mapping[str, object]] = {
    "liveness_s": LIVENESS_S,
    "claim_cap_s": 80,
    "max_in_hand": 1000,
    "max_in_hand_bytes": 16_777_216,
    # An event that is in hand whenever a dispatcher is killed is not poison; here that may be a hundred times.
    "events_delivery_limit": 10_000,
    # An endpoint that hangs is left alone, but not for so long that the end has to be waited for.
    "breaker_timeouts": 10,
    "breaker_rest_s": 1,
    "breaker_longest_rest_s": 4,
}

# Every change of a delivery, and which process each dispatcher is: the rows themselves only say how it ended.
_WITNESS: Final = """
CREATE TABLE soak_history (
    id bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), delivery_id uuid NOT NULL,
    status text NOT NULL, reason text, cycle int NOT NULL, attempts int NOT NULL, fence int NOT NULL, claimed_by uuid
);
CREATE FUNCTION soak_note_delivery() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO soak_history (delivery_id, status, reason, cycle, attempts, fence, claimed_by)
    VALUES (NEW.id, NEW.status, NEW.reason, NEW.cycle, NEW.attempts, NEW.fence, NEW.claimed_by);
    RETURN NULL;
END $$;
CREATE TRIGGER soak_note_delivery AFTER INSERT OR UPDATE ON deliveries
    FOR EACH ROW EXECUTE FUNCTION soak_note_delivery();
CREATE TABLE soak_dispatchers (id uuid NOT NULL, pid int NOT NULL);
CREATE FUNCTION soak_note_dispatcher() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO soak_dispatchers VALUES (NEW.id, NEW.pid);
    RETURN NULL;
END $$;
CREATE TRIGGER soak_note_dispatcher AFTER INSERT ON dispatchers
    FOR EACH ROW EXECUTE FUNCTION soak_note_dispatcher();
"""


class SoakSystem(System):
    """Everything of it goes through the proxies."""

    def _values(self, changes: Mapping[str, object]) -> dict[str, Any]:
        return super()._values({**SETTINGS, **changes})


@dataclass(slots=True)
class Installation:
    """`direct` is the same installation past the proxies; `locks` let one fault at a time at a server."""

    system: SoakSystem
    direct: System
    api: Api
    postgres: Postgres
    rabbit: RabbitServer | None
    wires: Mapping[Wire, Proxy]
    locks: Mapping[Wire, asyncio.Lock] = field(default_factory=lambda: {wire: asyncio.Lock() for wire in Wire})


@asynccontextmanager
async def installed(broker: str) -> AsyncIterator[Installation]:
    """An installation over `rabbitmq` or `embedded`, without dispatchers."""
    async with AsyncExitStack() as stack:
        postgres = stack.enter_context(running_postgres())
        name = await postgres.create_database()
        rabbit = stack.enter_context(running_server()) if broker == "rabbitmq" else None
        database = await stack.enter_async_context(Proxy(("127.0.0.1", postgres.port)))
        port = urlsplit(rabbit.url).port if rabbit else postgres.port
        assert port is not None
        wire = await stack.enter_async_context(Proxy(("127.0.0.1", port)))
        broker_url = f"amqp://guest:guest@127.0.0.1:{wire.port}/" if rabbit else postgres.tcp_dsn(name, port=wire.port)
        direct = System(postgres.dsn(name), rabbit.url if rabbit else postgres.dsn(name))
        await _install_witness(direct.database_url)
        system = SoakSystem(postgres.tcp_dsn(name, port=database.port), broker_url)
        api = await stack.enter_async_context(system.api())
        wires = {Wire.BROKER: wire, Wire.DATABASE: database}
        yield Installation(system, direct, api, postgres, rabbit, wires)


async def _install_witness(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(_WITNESS)
    finally:
        await connection.close()
