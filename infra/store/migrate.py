"""Brings the schema up to date. Safe to run from many places at once: the first does it, the others wait and look.

Alembic writes the SQL and asyncpg executes it in one transaction, together with the first partitions.
"""

import asyncio
import io
import threading
from datetime import timedelta
from pathlib import Path
from typing import Final

import asyncpg

import infra.migrations
from infra.store import locks, partitions
from infra.store.store import server_settings, store_errors
from infra.store.versions import SCHEMA_HEAD
from schemas.errors import ConfigurationError, SchemaMismatch

__all__ = ["SCHEMA_HEAD", "migrate", "upgrade_sql"]

_CONNECT_TIMEOUT_S: Final = 10
_WAIT_TIMEOUT_S: Final = 600  # for another process that migrates, and for each statement of ours
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
                await locks.take(conn, locks.Lock.MIGRATE)
                await _upgrade(conn)
            async with conn.transaction():
                await locks.take(conn, locks.Lock.MAINTENANCE)
                today = await partitions.today(conn)
                await partitions.make(
                    conn, first=today - timedelta(days=1), last=today + timedelta(days=_PARTITIONS_AHEAD_DAYS)
                )
        finally:
            await conn.close(timeout=_CONNECT_TIMEOUT_S)


async def _upgrade(conn: asyncpg.Connection) -> None:
    current = None
    if await conn.fetchval("SELECT to_regclass('alembic_version')") is not None:
        current = await conn.fetchval("SELECT version_num FROM alembic_version")
    if current != SCHEMA_HEAD:
        await conn.execute(await asyncio.to_thread(upgrade_sql, current))


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
            raise SchemaMismatch(f"the database's schema is {current}, which is newer than this code's {SCHEMA_HEAD}")
        command.upgrade(config, f"{current}:{SCHEMA_HEAD}" if current else SCHEMA_HEAD, sql=True)
    return sql.getvalue()
