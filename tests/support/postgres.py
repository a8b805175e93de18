"""A real PostgreSQL for tests: one server for the whole run, a fresh database for each test.

The server is the wheel's. It does not flush to disk (`fsync=off`) unless it is to be `durable`, as a benchmark's: no
test survives a power cut, and killed processes leave what they wrote with the kernel.
"""

import asyncio
import fcntl
import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import asyncpg
import pytest

from infra.postgres_server import SERVER_SETTINGS, PostgresServer
from infra.settings import read_settings
from infra.store.migrate import migrate
from infra.store.store import Store, open_store

T = TypeVar("T")

TEMPLATE = "hookhare_template"

_PREFIX = "hookhare-pg-"
_OWNER = "owner"  # a file in its folder, locked by the process that runs the server


class Postgres:
    """A server of a test's own, in a temporary folder. It can be stopped, killed and started again.

    `dsn` goes over the Unix socket, `tcp_dsn` over TCP on loopback (so that a proxy can stand between).
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.port = _free_port()
        self._server = PostgresServer(
            folder / "pg",
            settings={
                **SERVER_SETTINGS,
                "listen_addresses": "127.0.0.1",
                "port": str(self.port),
                "max_connections": "500",  # of a dozen dispatchers, each with both pools full, and of who looks on
                "fsync": "on" if durable else "off",
                "logging_collector": "off",  # what goes wrong is in pg/start.log
            },
        )
        self._names = itertools.count(1)

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, None while it does not run."""
        return self._server.pid()

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def kill(self) -> None:
        """SIGKILL; every connection is cut, `start` recovers."""
        self._server.kill()

    def dsn(self, database: str = "postgres") -> str:
        return f"{self._server.dsn(database)}&port={self.port}"

    def tcp_dsn(self, database: str = "postgres", *, port: int | None = None) -> str:
        return f"postgresql://postgres@127.0.0.1:{port or self.port}/{quote(database, safe='')}"

    async def create_database(self, *, migrated: bool = True) -> str:
        """Make a database and return its name: a copy of the migrated template, or an empty one."""
        if migrated and not await self._sql("SELECT 1 FROM pg_database WHERE datname = $1", TEMPLATE):
            await self._sql(f"CREATE DATABASE {TEMPLATE}")
            await migrate(self.dsn(TEMPLATE))
        name = f"test_{os.getpid()}_{next(self._names)}"
        await self._sql(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE if migrated else 'template0'}")
        return name

    async def drop_database(self, name: str) -> None:
        """Drop a database, whoever is still connected to it."""
        await self._sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def _sql(self, statement: str, *arguments: object) -> Any:
        conn = await asyncpg.connect(self.dsn())
        try:
            return await conn.fetchval(statement, *arguments)
        finally:
            await conn.close()


@contextmanager
def running_postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """A server that runs while the context is open, and leaves nothing behind."""
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    folder.chmod(0o711)  # as root, the server runs as another user, who has to pass through
    server = Postgres(folder, durable=durable)
    with (folder / f"{_OWNER}.new").open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        (folder / f"{_OWNER}.new").rename(folder / _OWNER)  # locked from the moment that it is there
        try:
            server.start()
            yield server
        finally:
            server.stop()  # not killed: that would leave its shared memory behind for good
            shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """End the servers of test runs that were killed: the lock on their folder is free, and they are not."""
    for owner_path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_OWNER}"):
        with suppress(OSError), owner_path.open("w") as owner:  # another user's is not ours to end
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            PostgresServer(owner_path.parent / "pg").kill()
            shutil.rmtree(owner_path.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server that the whole run shares. A test that stops or kills takes `own_postgres`."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A server of this test's own."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_dsn_base(postgres: Postgres) -> str:
    """The DSN of the shared server's maintenance database."""
    return postgres.dsn()


@pytest.fixture
def database_url(postgres: Postgres) -> Iterator[str]:
    """A fresh, migrated database of this test's own."""
    name = _run(postgres.create_database)
    yield postgres.dsn(name)
    _run(lambda: postgres.drop_database(name))


@pytest.fixture
def empty_database_url(postgres: Postgres) -> Iterator[str]:
    """A fresh database without a schema."""
    name = _run(lambda: postgres.create_database(migrated=False))
    yield postgres.dsn(name)
    _run(lambda: postgres.drop_database(name))


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """An open store over `database_url`."""
    async with open_store(read_settings(database_url=database_url)) as opened:
        yield opened


def _run(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine for a synchronous fixture, in a loop of its own that the test's loop knows nothing of."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(function())).result()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
