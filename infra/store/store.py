"""The connection to PostgreSQL: a pool, its error border, and nothing that knows a table but the schema's version.

Guarantees: what leaves a `transaction()` without an error is committed; a cancelled task gives its connection back
rolled back; connections that died with a server are replaced when the server is there again.

Connections keep no session state between users: no SET without LOCAL, no session-level advisory locks, no LISTEN. So
giving one back costs no round trip.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, Final, cast

import asyncpg
import orjson

from infra.settings import Settings
from infra.store.versions import SCHEMA_HEAD
from infra.tasks import cancellations, end_task
from schemas.errors import ConfigurationError, SchemaMismatch, StoreUnavailable

# SQLSTATE classes and codes that say "not now", as opposed to "not this statement" (PostgreSQL, appendix A).
_UNAVAILABLE_CLASSES: Final = (
    "08",  # connection exception
    "28",  # a password or role that the server does not take (yet: it may be being rotated)
    "40",  # transaction rollback: deadlock, serialization failure
    "53",  # insufficient resources: too many connections, disk full, out of memory
    "57",  # operator intervention: shutting down, starting up, statement cancelled or timed out
    "58",  # system error: I/O
)
_UNAVAILABLE_CODES: Final = (
    "25P03",  # idle in transaction for too long
    "25006",  # read-only: a replica that was, or is about to be, the primary
    "3D000",  # the database does not exist (yet)
    "55006",  # object in use
    "55P03",  # a lock was not to be had in time
)
_CLOSE_TIMEOUT_S: Final = 3

# Everything that asyncpg and the network raise; a TimeoutError is an OSError.
DRIVER_ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


def is_unavailable(error: BaseException) -> bool:
    """Whether an error of asyncpg or the network means that the same call may pass later."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return (
            state[:2] in _UNAVAILABLE_CLASSES
            or state in _UNAVAILABLE_CODES
            # A statement that was prepared before a migration; asyncpg prepares it anew next time.
            or isinstance(error, asyncpg.InvalidCachedStatementError)
            # No partition for a key: maintenance has not run, or a clock is days off.
            or (isinstance(error, asyncpg.CheckViolationError) and error.constraint_name is None)
        )
    if isinstance(error, asyncpg.InterfaceError):
        # The other InterfaceErrors are mistakes in the calling code, and stay.
        return "clos" in str(error) or "released" in str(error)
    # InternalClientError: the server said that it goes away, and has not hung up yet when the next statement is sent.
    return isinstance(error, OSError | asyncpg.InternalClientError)


@contextmanager
def store_errors() -> Iterator[None]:
    """The border: what says "not now" leaves as StoreUnavailable, mistakes of ours as they are.

    A task that was cancelled meanwhile leaves as cancelled, whatever the driver says.
    """
    before = cancellations()
    try:
        yield
    except DRIVER_ERRORS as error:
        if cancellations() > before:
            raise asyncio.CancelledError from error
        if not is_unavailable(error):
            raise
        raise StoreUnavailable(f"the database: {type(error).__name__}: {error}") from error


class _Connection(asyncpg.Connection):
    """A connection whose commit is one.

    PostgreSQL answers the COMMIT of a failed transaction with ROLLBACK and no error. Whoever caught the error of a
    statement and went on would take that for stored.
    """

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        status = await super().execute(query, *args, timeout=timeout)
        if status == "ROLLBACK" and query.startswith("COMMIT"):
            raise asyncpg.InFailedSQLTransactionError(
                "nothing was committed: a statement of this transaction had failed, and its error was not let through"
            )
        return status


class Store:
    """A pool of connections. Made by `open_store`."""

    def __init__(self, pool: asyncpg.Pool, *, timeout_s: float, dsn: str) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._dsn = dsn

    async def connect(self) -> asyncpg.Connection:
        """A connection outside the pool, for what may not wait for others; the caller closes it.

        Raises StoreUnavailable.
        """
        with store_errors():
            return await asyncpg.connect(
                self._dsn,
                timeout=self._timeout_s,
                command_timeout=self._timeout_s,
                server_settings=server_settings(self._timeout_s, "hookhare"),
            )

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection, each statement its own transaction. Raises StoreUnavailable."""
        with store_errors():
            async with self._pool.acquire(timeout=self._timeout_s) as proxy:
                yield cast(asyncpg.Connection, proxy)  # a proxy has every method of a connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection in a transaction, committed when the block ends without an error.

        Raises StoreUnavailable, also when it is not known whether the commit took effect.
        """
        async with self.connection() as conn, conn.transaction():
            yield conn

    async def check(self) -> None:
        """Ask the database whether a running process can work over it. Raises StoreUnavailable or SchemaMismatch.

        It can over a schema that has become newer meanwhile: migrations expand first, and leave the release before at
        work. Refused here, an upgrade would make every running process unready at once.
        """
        await self._usable_revision()

    async def check_schema(self) -> None:
        """Before anything begins: as `check`, and SchemaMismatch for a newer schema too.

        How much newer it is, and what was contracted since, an old release cannot know.
        """
        revision = await self._usable_revision()
        if revision != SCHEMA_HEAD:
            raise SchemaMismatch(
                f"the database's schema is {revision}, newer than this release's {SCHEMA_HEAD}: "
                "run the release that migrated it, or a later one"
            )

    async def _usable_revision(self) -> str:
        """The revision of the schema: this release's, or a newer one."""
        async with self.connection() as conn:
            try:
                revision: str | None = await conn.fetchval("SELECT version_num FROM alembic_version")
            except asyncpg.UndefinedTableError:
                revision = None
        if revision is None:
            raise SchemaMismatch("the database has no schema yet: run `hookhare migrate`")
        if revision < SCHEMA_HEAD:
            raise SchemaMismatch(
                f"the database's schema is {revision}, older than this release's {SCHEMA_HEAD}: run `hookhare migrate`"
            )
        return revision


def open_store(settings: Settings) -> AbstractAsyncContextManager[Store]:
    """The store that the settings name, connected. Raises ConfigurationError or StoreUnavailable."""
    if settings.database_url is None:
        raise ConfigurationError("HOOKHARE_DATABASE_URL: is not set; it is the postgresql:// URL of the database")
    return _open(settings.database_url.get_secret_value(), settings.database_pool, settings.database_timeout_s)


@asynccontextmanager
async def _open(dsn: str, size: int, timeout_s: float) -> AsyncIterator[Store]:
    pool = make_pool(dsn, size=size, timeout_s=timeout_s, application="hookhare")
    try:
        await _connect(pool, timeout_s)
        yield Store(pool, timeout_s=timeout_s, dsn=dsn)
    finally:
        await close_pool(pool)


async def _connect(pool: asyncpg.Pool, timeout_s: float) -> None:
    """Open a pool and its first connection, where every mistake in the URL shows."""
    with store_errors():
        try:
            await pool
            async with pool.acquire(timeout=timeout_s):
                pass
        except ValueError:  # asyncpg.ClientConfigurationError is one
            # Without its cause: that quotes the URL, password and all.
            raise ConfigurationError("HOOKHARE_DATABASE_URL: is not a postgresql:// URL") from None


def make_pool(
    dsn: str, *, size: int, timeout_s: float, application: str, settings: Mapping[str, str] | None = None
) -> asyncpg.Pool:
    """A pool that is not opened yet, with our codecs, timeouts and no reset between users."""
    return asyncpg.create_pool(
        dsn,
        # No connection is kept for its own sake: asyncpg would log each failure to restore it, on top of ours.
        min_size=0,
        max_size=size,
        timeout=timeout_s,
        command_timeout=timeout_s,
        connection_class=_Connection,
        init=set_codecs,
        reset=_keep,
        server_settings={**server_settings(timeout_s, application), **(settings or {})},
    )


async def close_pool(pool: asyncpg.Pool) -> None:
    """Close a pool, and within a few seconds: a server that is away does not say goodbye."""
    closing = asyncio.create_task(pool.close())
    try:
        await asyncio.wait({closing}, timeout=_CLOSE_TIMEOUT_S)
    finally:
        pool.terminate()
        with suppress(*DRIVER_ERRORS):
            await end_task(closing)


def transaction_patience_s(timeout_s: float) -> float:
    """How long a transaction may wait for its client, which may be a process that stands still."""
    return 3 * timeout_s


def server_settings(timeout_s: float, application: str) -> dict[str, str]:
    """What the server does when this process is slow or gone; each limit in milliseconds."""
    timeout_ms = int(timeout_s * 1000)
    return {
        "application_name": application,
        # Below the client's own limit, so that the server says which lock it was.
        "lock_timeout": str(timeout_ms * 4 // 5),
        # Above it: the client gives up first, unless it is gone.
        "statement_timeout": str(timeout_ms * 2),
        # A process that is stopped amid a transaction would keep its row locks, and others waiting, for ever.
        # What it does not reach is ended by the reconciler (END_STALLED_SESSIONS).
        "idle_in_transaction_session_timeout": str(int(transaction_patience_s(timeout_s) * 1000)),
        # A batch over many partitions is costed as if it were a long query; compiling it took 80 ms, running it 8.
        "jit": "off",
        # A host that vanished is noticed after 30 s + 3 * 10 s, not after hours.
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
    }


async def set_codecs(conn: asyncpg.Connection) -> None:
    """Let a connection take and give jsonb as objects, by orjson."""
    # The binary form of jsonb is a version byte, 1, and the text: no decoding to str on the way.
    await conn.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: b"\x01" + orjson.dumps(value),
        decoder=lambda data: orjson.loads(data[1:]),
        format="binary",
    )


async def _keep(_: asyncpg.Connection) -> None:
    """In place of asyncpg's reset, a round trip for each use: an open transaction is rolled back before this runs."""
