"""The schema is migrated by the next release while this one runs."""

import asyncio
import re
import shutil
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from consumer_api.bootstrap import open_api
from infra.store.migrate import migrate
from infra.store.versions import SCHEMA_HEAD
from schemas.errors import SchemaMismatch
from tests.support.accounting import Accounting
from tests.support.load import under_load
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
NEXT_HEAD = f"{int(SCHEMA_HEAD) + 1:04}"
# Only adds and widens. That changes the results of statements that everybody has prepared: inside transactions (the
# wider `attempts`) and outside (`queue_messages`, whose claim returns whole rows). And it goes from deliveries to
# events, as claims do, while admissions go from events to deliveries.
REVISION = f'''
from alembic import op

revision = "{NEXT_HEAD}"
down_revision = "{SCHEMA_HEAD}"

STATEMENTS = (
    "ALTER TABLE subscriptions ADD COLUMN note text NOT NULL DEFAULT ''",
    "ALTER TABLE queue_messages ADD COLUMN priority smallint NOT NULL DEFAULT 0",
    "ALTER TABLE deliveries ADD COLUMN priority smallint NOT NULL DEFAULT 0, ALTER COLUMN attempts TYPE bigint",
    "ALTER TABLE events ADD COLUMN region text NOT NULL DEFAULT 'eu'",
    "CREATE INDEX deliveries_by_priority ON deliveries (priority, id) WHERE priority > 0",
    "CREATE TABLE labels (name text PRIMARY KEY)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
'''


@pytest.fixture(scope="module")
def next_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code of a next release: this one, and a revision more."""
    folder = tmp_path_factory.mktemp("release")
    for package in ("hookhare", "infra", "schemas"):
        shutil.copytree(ROOT / package, folder / package)
    (folder / "infra/migrations/versions" / f"v{NEXT_HEAD}_next.py").write_text(REVISION)
    versions = folder / "infra/store/versions.py"
    versions.write_text(versions.read_text().replace(f'"{SCHEMA_HEAD}"', f'"{NEXT_HEAD}"'))
    return folder


async def test_the_next_releases_migration_leaves_this_one_at_work(
    system: System, api: Api, receiver: Receiver, next_release: Path, tmp_path: Path
) -> None:
    """Two migrate at once, while a report keeps a table locked; then the load has all tables changed under it."""
    well, fails = receiver.url("/well"), receiver.behave("/fails", Behaviour(fail_fraction=0.2))
    await api.subscribe(well)
    await api.subscribe(fails, retry_policy={"delays_s": [1.0] * 10})
    log = tmp_path / "dispatcher.log"
    async with DispatcherProcess(system, log):
        async with under_load(system, api) as load:
            await load.flows(receiver, "/well")
            async with (
                migrating(next_release, system) as one,
                migrating(next_release, system) as other,
                report(system.database_url),
            ):
                await eventually(lambda: is_waiting(system), deadline_s=60)
                await load.flows(receiver, "/well")  # whoever waits for a table does not keep others from it
                assert (one.returncode, other.returncode) == (None, None)
            # Both have ended well.
            assert await system.value("SELECT version_num FROM alembic_version") == NEXT_HEAD
            await load.flows(receiver, "/well")
            # An API that is told "try again" for a statement prepared before is none that is not ready.
            await eventually(lambda: is_ready(api.base))
            await eventually(lambda: is_ready(f"http://127.0.0.1:{port_of(log)}"))
            await refused_at_the_start(system, f"{NEXT_HEAD}, newer than this release's {SCHEMA_HEAD}")
        await load.account(Accounting(system, [receiver]), well, fails)
    assert len(receiver.to("/well")) == await system.value("SELECT count(*) FROM events")
    assert b"settlement.failed" not in log.read_bytes()
    assert b"admission.failed" not in log.read_bytes()


async def test_a_migration_gives_way_to_who_has_a_table_and_wants_another(
    database_url: str, next_release: Path
) -> None:
    """As many have: PostgreSQL would find a deadlock, and end one of the two."""
    system = System(database_url, database_url)
    conn = await asyncpg.connect(database_url)
    try:
        async with migrating(next_release, system), conn.transaction():
            await conn.execute("LOCK TABLE subscriptions IN ROW SHARE MODE")
            await eventually(lambda: is_waiting(system), deadline_s=60)
            await conn.execute("LOCK TABLE deliveries IN ROW EXCLUSIVE MODE")
    finally:
        await conn.close()
    assert await system.value("SELECT version_num FROM alembic_version") == NEXT_HEAD


async def test_an_older_schema_is_refused_at_the_start(database_url: str) -> None:
    system = System(database_url, database_url)
    await system.fetch("UPDATE alembic_version SET version_num = '0001'")
    await refused_at_the_start(system, f"0001, older than this release's {SCHEMA_HEAD}: run `hookhare migrate`")


async def refused_at_the_start(system: System, message: str) -> None:
    with pytest.raises(SchemaMismatch, match=message):
        async with system.dispatcher():
            pass
    with pytest.raises(SchemaMismatch, match=message):
        async with open_api(system.settings()):
            pass
    if "newer" in message:
        with pytest.raises(SchemaMismatch, match=message):
            await migrate(system.database_url)


@asynccontextmanager
async def migrating(release: Path, system: System) -> AsyncIterator[Process]:
    """`hookhare migrate` of that release, in a process of its own; it must have ended well at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hookhare", "migrate"),
        cwd=release,  # comes first on the path of modules
        env=system.environment(),
        stderr=PIPE,
    )
    try:
        yield process
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, errors.decode()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@asynccontextmanager
async def report(database_url: str) -> AsyncIterator[None]:
    """Somebody reads a table in a transaction that stays open."""
    conn = await asyncpg.connect(database_url)
    try:
        async with conn.transaction():
            await conn.fetchval("SELECT count(*) FROM deliveries")
            yield
    finally:
        await conn.close()


async def is_waiting(system: System) -> bool:
    """Whether a migration waits for a lock on a table."""
    return bool(
        await system.value(
            "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
            " WHERE application_name = 'hookhare migrate' AND NOT granted AND mode = 'AccessExclusiveLock'"
        )
    )


async def is_ready(base: str) -> bool:
    async with aiohttp.ClientSession() as session, session.get(f"{base}/readyz") as answer:
        return answer.status == 200


def port_of(log: Path) -> str:
    found = re.search(r'"port":(\d+),"event":"dispatcher.started"', log.read_text())
    assert found is not None
    return found.group(1)
