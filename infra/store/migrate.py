"""Brings the schema up to date. Safe to run from many places at once: the first does it, the others wait and look.

Alembic writes the SQL and asyncpg executes it in one transaction.

Safe under load, too. Whoever waits for a table's exclusive lock keeps everybody else from the table, and waits in turn
for whatever transaction is open, were it a report of an hour. And there is no order of the tables that all others keep:
a claim goes from deliveries to events, an admission the other way, so a migration that has the one and wants the other
deadlocks; while it rewrites the one, nearly always. So it takes all tables that it is going to change before it
begins, and waits for each only briefly. When one is not to be had, it lets go of all, everybody has a moment, and it
tries again.
"""

import asyncio
import io
import re
import threading
from datetime import timedelta
from pathlib import Path
from typing import Final

import asyncpg

import infra.migrations
from infra.store import locks, partitions
from infra.store.store import server_settings, store_errors
from infra.store.tables import metadata
from infra.store.versions import SCHEMA_HEAD
from schemas.errors import ConfigurationError, SchemaMismatch, StoreUnavailable

__all__ = ["SCHEMA_HEAD", "migrate", "upgrade_sql"]

_CONNECT_TIMEOUT_S: Final = 10
_WAIT_TIMEOUT_S: Final = 600  # for another process that migrates, for each statement of ours, and for all locks
_LOCK_TIMEOUT_MS: Final = 500  # below PostgreSQL's deadlock_timeout, so that it is never the others who are aborted
_LOCK_PAUSE_S: Final = 1.0
_PARTITIONS_AHEAD_DAYS: Final = 3

_writing = threading.Lock()  # Alembic's `context` and `op` are module globals


async def migrate(dsn: str) -> None:
    """Bring the database at `dsn` to SCHEMA_HEAD and give it partitions for today and the next days.

    Raises StoreUnavailable, SchemaMismatch when a newer release has been there, and ConfigurationError for no such URL.
    """
    with store_errors():
        try:
            conn = await asyncpg.connect(
                dsn,
                timeout=_CONNECT_TIMEOUT_S,
                command_timeout=_WAIT_TIMEOUT_S,
                server_settings=server_settings(_WAIT_TIMEOUT_S, "hookhare migrate"),
            )
        except ValueError:  # asyncpg.ClientConfigurationError is one; its text may quote the URL, password and all
            raise ConfigurationError("HOOKHARE_DATABASE_URL: is not a postgresql:// URL") from None
        try:
            async with conn.transaction():
                await locks.take(conn, locks.Lock.MIGRATE)  # kept through all tries
                await _upgrade_between_others(conn)
            async with conn.transaction():
                await locks.take(conn, locks.Lock.MAINTENANCE)
                today = await partitions.today(conn)
                await partitions.make(
                    conn, first=today - timedelta(days=1), last=today + timedelta(days=_PARTITIONS_AHEAD_DAYS)
                )
        finally:
            await conn.close(timeout=_CONNECT_TIMEOUT_S)


async def _upgrade_between_others(conn: asyncpg.Connection) -> None:
    """Upgrade as soon as every lock is to be had at once. In a transaction; each try is a savepoint in it."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _WAIT_TIMEOUT_S
    while True:
        try:
            async with conn.transaction():
                await conn.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
                await _upgrade(conn)
            return
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            if loop.time() > until:
                raise StoreUnavailable(
                    f"a table could not be locked in {_WAIT_TIMEOUT_S} s: some transaction stays open over it "
                    "(pg_stat_activity shows which); nothing was changed"
                ) from error
        await asyncio.sleep(_LOCK_PAUSE_S)


async def _upgrade(conn: asyncpg.Connection) -> None:
    current = None
    if await conn.fetchval("SELECT to_regclass('alembic_version')") is not None:
        current = await conn.fetchval("SELECT version_num FROM alembic_version")
    if current != SCHEMA_HEAD:
        sql = await asyncio.to_thread(upgrade_sql, current)
        # Their partitions are locked with them.
        if tables := [name for name in sorted(metadata.tables) if current and re.search(rf"\b{name}\b", sql)]:
            await conn.execute(f"LOCK TABLE {', '.join(tables)}")
        await conn.execute(sql)


def upgrade_sql(current: str | None) -> str:
    """The SQL from revision `current` (None: an empty database) to the newest. Raises SchemaMismatch."""
    # Alembic takes a third of a second to import; only a migration needs it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    sql = io.StringIO()
    config = Config(output_buffer=sql)
    config.set_main_option("script_location", str(Path(infra.migrations.__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with _writing:
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if current is not None and current not in known:
            raise SchemaMismatch(f"the database's schema is {current}, newer than this release's {SCHEMA_HEAD}")
        command.upgrade(config, f"{current}:{SCHEMA_HEAD}" if current else SCHEMA_HEAD, sql=True)
    return sql.getvalue()
