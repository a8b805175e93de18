"""The schema: made once however many ask for it, and equal to the tables in the code."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

import infra.migrations
from infra.settings import read_settings
from infra.store import partitions
from infra.store.migrate import SCHEMA_HEAD, migrate
from infra.store.store import open_store
from infra.store.tables import PARTITIONED, metadata
from schemas.errors import SchemaMismatch, StoreUnavailable

# What a schema is, in sentences; partitions are left out (maintenance makes them), and Alembic's own table.
CATALOG = """
    WITH ours AS (
        SELECT oid, relname FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
           AND NOT relispartition AND relname <> 'alembic_version'
    )
    SELECT format('%s.%s %s%s %s', relname, attname, format_type(atttypid, atttypmod),
                  CASE WHEN attnotnull THEN ' not null' END, pg_get_expr(adbin, adrelid))
      FROM ours JOIN pg_attribute ON attrelid = ours.oid AND attnum > 0 AND NOT attisdropped
      LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
     UNION ALL
    SELECT format('%s constraint %s %s', relname, conname, pg_get_constraintdef(pg_constraint.oid))
      FROM ours JOIN pg_constraint ON conrelid = ours.oid AND contype <> 'n'
     UNION ALL
    SELECT pg_get_indexdef(indexrelid) FROM ours JOIN pg_index ON indrelid = ours.oid
     UNION ALL
    SELECT format('%s %s', relname, pg_get_partkeydef(ours.oid)) FROM ours
     ORDER BY 1
"""


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    conn = await asyncpg.connect(dsn)
    try:
        yield conn
    finally:
        await conn.close()


async def read_catalog(dsn: str) -> list[str]:
    async with connected(dsn) as conn:
        return [row[0] for row in await conn.fetch(CATALOG)]


async def test_the_migrated_schema_is_the_one_in_tables(database_url: str, empty_database_url: str) -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    async with connected(empty_database_url) as conn:
        for table in metadata.sorted_tables:
            await conn.execute(str(CreateTable(table).compile(dialect=dialect)))
            for index in table.indexes:
                await conn.execute(str(CreateIndex(index).compile(dialect=dialect)))
    migrated = await read_catalog(database_url)
    assert migrated == await read_catalog(empty_database_url)
    assert any(line.startswith("deliveries.id uuid not null") for line in migrated)


def test_the_head_is_the_newest_revision_and_all_are_numbered_in_order() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(infra.migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [SCHEMA_HEAD]
    newest_first = [script.revision for script in scripts.walk_revisions()]
    assert newest_first == [f"{number:04}" for number in range(len(newest_first), 0, -1)]


async def test_many_tasks_may_migrate_at_once(empty_database_url: str) -> None:
    await asyncio.gather(*(migrate(empty_database_url) for _ in range(4)))
    await assert_migrated(empty_database_url)


async def test_many_processes_may_migrate_at_once(empty_database_url: str) -> None:
    code = "import asyncio, sys; from infra.store.migrate import migrate; asyncio.run(migrate(sys.argv[1]))"
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", code, empty_database_url, stderr=asyncio.subprocess.PIPE
        )
        for _ in range(4)
    ]
    for process in processes:
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        assert (process.returncode, errors) == (0, b"")
    await assert_migrated(empty_database_url)


async def assert_migrated(dsn: str) -> None:
    async with open_store(read_settings(database_url=dsn)) as store:
        await store.check_schema()
        async with store.connection() as conn:
            assert await conn.fetchval("SELECT count(*) FROM subscription_version") == 1
            today = await partitions.today(conn)
            for table in PARTITIONED:
                children = await conn.fetch(
                    "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::regclass", table
                )
                days = [today + timedelta(days=offset) for offset in range(-1, 4)]
                assert {row[0] for row in children} >= {partitions.partition_name(table, day) for day in days}


async def test_a_newer_schema_is_refused(database_url: str) -> None:
    async with connected(database_url) as conn:
        await conn.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaMismatch, match="9999"):
        await migrate(database_url)


async def test_no_database_is_store_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await migrate(f"postgresql://postgres@/postgres?host={tmp_path}")
