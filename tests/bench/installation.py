"""An installation at the settings of production, for as long as one measurement takes."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from infra.settings import Settings
from tests.support.postgres import Postgres
from tests.support.rabbitmq import reset
from tests.support.system import QUICK, DispatcherProcess, System

# What a test's installation sets otherwise, less the ports, and what lets webhooks go to the receivers.
_DEFAULTS = {
    name: Settings.model_fields[name].default
    for name in QUICK
    if name not in {"dispatcher_port", "api_port", "egress_allow", "egress_http", "egress_ports"}
}


@asynccontextmanager
async def installation(postgres: Postgres, broker_url: str | None, **changes: object) -> AsyncIterator[System]:
    """A new database and a broker without messages: RabbitMQ, or the database."""
    if broker_url is not None:
        await reset(broker_url)
    database = await postgres.create_database()
    try:
        yield System(postgres.dsn(database), broker_url or postgres.dsn(database), **{**_DEFAULTS, **changes})
    finally:
        await postgres.drop_database(database)


@asynccontextmanager
async def dispatchers(system: System, count: int) -> AsyncIterator[list[DispatcherProcess]]:
    """So many, each a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix="hookhare-bench-"))
    try:
        async with AsyncExitStack() as stack:
            running = [
                await stack.enter_async_context(DispatcherProcess(system, folder / f"{number}.log"))
                for number in range(count)
            ]
            yield running
            for one in running:
                await one.stop()
    finally:
        shutil.rmtree(folder)
