"""The embedded server: shared, recovered, and its owner's alone."""

import asyncio
import fcntl
import os
import pwd
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import psutil
import pytest

from infra.embedded import open_embedded_postgres, read_or_make_key
from infra.postgres_server import PostgresServer
from infra.store.migrate import migrate
from schemas.errors import ConfigurationError
from tests.support.waiting import eventually

DEADLINE_S = 60

USE = """
import asyncio, signal, sys
from pathlib import Path
from infra.embedded import open_embedded_postgres

async def main():
    told = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    async with open_embedded_postgres(Path(sys.argv[1])) as dsn:
        print(dsn, flush=True)
        await told.readline()

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs in the background ignores it
asyncio.run(main())
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """Not pytest's folder: its path may be too long for a socket, and as root its parents would have to be opened."""
    folder = Path(tempfile.mkdtemp(prefix="hookhare-home-"))
    folder.chmod(0o711)
    try:
        yield folder / "home"
    finally:
        PostgresServer(folder / "home" / "postgres").stop()
        shutil.rmtree(folder, ignore_errors=True)


async def ask(dsn: str, statement: str = "SELECT 1") -> object:
    conn = await asyncpg.connect(dsn, timeout=10)
    try:
        return await conn.fetchval(statement)
    finally:
        await conn.close()


async def use(home: Path) -> tuple[asyncio.subprocess.Process, str]:
    """A process that has the home open until it is told a line, and its DSN."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-c",
        USE,
        str(home),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    dsn = ""
    while not dsn.startswith("postgresql://"):  # it may log before
        dsn = (await asyncio.wait_for(process.stdout.readline(), DEADLINE_S)).decode().strip()
    return process, dsn


async def end(process: asyncio.subprocess.Process) -> None:
    await asyncio.wait_for(process.communicate(b"\n"), DEADLINE_S)
    assert process.returncode == 0


def server_pid(home: Path) -> int | None:
    return PostgresServer(home / "postgres").pid()


async def test_data_is_kept_from_one_use_to_the_next_and_the_server_stops_between(home: Path) -> None:
    async with open_embedded_postgres(home) as dsn:
        await migrate(dsn)
        await ask(dsn, "UPDATE subscription_version SET version = 7")
    assert server_pid(home) is None
    async with open_embedded_postgres(home) as dsn:
        assert await ask(dsn, "SELECT version FROM subscription_version") == 7
        assert await ask(dsn, "SELECT current_setting('fsync') || current_setting('synchronous_commit')") == "onon"


async def test_users_share_one_server_and_the_last_one_stops_it(home: Path) -> None:
    """Several at once begin it, in this process and in others."""
    (first, dsn), (second, _) = await asyncio.gather(use(home), use(home))
    async with open_embedded_postgres(home), open_embedded_postgres(home) as mine:
        assert mine == dsn
        pid = server_pid(home)
        await end(first)
        await end(second)
        assert server_pid(home) == pid
        await ask(mine)
    assert server_pid(home) is None


async def test_a_killed_user_counts_as_gone(home: Path) -> None:
    killed, dsn = await use(home)
    async with open_embedded_postgres(home):
        killed.kill()
        await killed.wait()
        await ask(dsn)
    assert server_pid(home) is None


async def test_a_server_that_nobody_was_left_to_stop_is_taken_over(home: Path) -> None:
    killed, _ = await use(home)
    pid = server_pid(home)
    killed.kill()
    await killed.wait()
    async with open_embedded_postgres(home) as dsn:
        assert server_pid(home) == pid
        await ask(dsn)
    assert server_pid(home) is None


async def test_a_killed_server_recovers_what_was_committed(home: Path) -> None:
    async with open_embedded_postgres(home) as dsn:
        await ask(dsn, "CREATE TABLE kept AS SELECT 42 AS value")
        await asyncio.to_thread(PostgresServer(home / "postgres").kill)
    async with open_embedded_postgres(home) as dsn:
        assert await ask(dsn, "SELECT value FROM kept") == 42


async def test_what_is_left_of_a_killed_server_is_ended_before_the_next_one_starts(home: Path) -> None:
    """A backend amid a long statement does not notice that its server is gone; two would write to the same files."""
    async with open_embedded_postgres(home) as dsn:
        conn = await asyncpg.connect(dsn)
        backend = psutil.Process(await conn.fetchval("SELECT pg_backend_pid()"))
        busy = asyncio.create_task(conn.execute("SELECT count(*) FROM generate_series(1, 10000000000)"))

        async def amid_it() -> bool:
            return await ask(dsn, f"SELECT state FROM pg_stat_activity WHERE pid = {backend.pid}") == "active"

        await eventually(amid_it, deadline_s=DEADLINE_S)
        server = server_pid(home)
        assert server is not None
        os.kill(server, signal.SIGKILL)  # that process alone

        async def is_gone() -> bool:
            return server_pid(home) is None

        await eventually(is_gone, deadline_s=DEADLINE_S)
        assert backend.status() != psutil.STATUS_ZOMBIE
    async with open_embedded_postgres(home) as dsn:
        assert not backend.is_running() or backend.status() == psutil.STATUS_ZOMBIE
        await ask(dsn)
    with pytest.raises((OSError, asyncpg.PostgresError)):
        await busy


async def test_a_stale_file_with_the_number_of_another_process_is_no_server(home: Path) -> None:
    """After a restart of the machine, or of a container, some other process has that number."""
    async with open_embedded_postgres(home) as dsn:
        await ask(dsn, "CREATE TABLE kept AS SELECT 42 AS value")
        stale = (home / "postgres" / "postmaster.pid").read_text()
        await asyncio.to_thread(PostgresServer(home / "postgres").kill)
    pid_file = home / "postgres" / "postmaster.pid"
    owner = (home / "postgres").stat()
    other = await asyncio.create_subprocess_exec(
        *("sleep", "60"),
        user=owner.st_uid if os.geteuid() == 0 else None,  # PostgreSQL knows that root's are not its own
    )
    try:
        pid_file.write_text(stale.replace(stale.split("\n", 1)[0], str(other.pid), 1))
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        async with open_embedded_postgres(home) as dsn:
            assert await ask(dsn, "SELECT value FROM kept") == 42
    finally:
        other.kill()
        await other.wait()


async def test_a_first_start_that_was_cut_off_is_not_in_the_way(home: Path) -> None:
    (home / "postgres.new" / "base").mkdir(parents=True)
    (home / "postgres.new" / "PG_VERSION").write_text("18\n")
    async with open_embedded_postgres(home) as dsn:
        await ask(dsn)
    assert not (home / "postgres.new").exists()


async def test_a_cancelled_start_leaves_no_server_behind(home: Path) -> None:
    async def enter() -> None:
        async with open_embedded_postgres(home):
            pass

    for delay_s in (0.05, 0.6):
        starting = asyncio.create_task(enter())
        await asyncio.sleep(delay_s)
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        with (home / "postgres.turn").open() as turn:
            await asyncio.to_thread(fcntl.flock, turn, fcntl.LOCK_EX)  # nobody is still starting it
            assert server_pid(home) is None


async def test_the_loop_goes_on_while_the_server_starts(home: Path) -> None:
    longest_s = 0.0

    async def watch() -> None:
        nonlocal longest_s
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0.01)
            longest_s = max(longest_s, loop.time() - before)

    watching = asyncio.create_task(watch())
    async with open_embedded_postgres(home):
        pass
    watching.cancel()
    assert longest_s < 0.4  # making a data folder alone takes longer


async def test_a_long_path_gets_its_socket_elsewhere(home: Path) -> None:
    long = home.parent / ("x" * 100)
    try:
        async with open_embedded_postgres(long) as dsn:
            assert str(long) not in dsn
            await ask(dsn)
            socket_folder = PostgresServer(long / "postgres").socket_folder()
            assert stat.S_IMODE(socket_folder.stat().st_mode) == 0o700
        assert not socket_folder.exists()
    finally:
        PostgresServer(long / "postgres").stop()


async def test_a_socket_folder_that_somebody_else_made_is_refused(home: Path) -> None:
    """The temporary folder is everybody's: a folder waiting there would get to see what we say."""
    long = home.parent / ("x" * 100)
    trap = PostgresServer(long / "postgres").socket_folder()
    trap.symlink_to(home.parent)
    try:
        with pytest.raises(ConfigurationError, match=str(trap)):
            async with open_embedded_postgres(long):
                pass
    finally:
        trap.unlink()


async def test_nobody_else_gets_in(home: Path) -> None:
    async with open_embedded_postgres(home) as dsn:
        assert await ask(dsn, "SHOW listen_addresses") == ""
        data = home / "postgres"
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        sockets = [path for path in data.iterdir() if path.is_socket()]
        assert [stat.S_IMODE(path.stat().st_mode) for path in sockets] == [0o700]
        server = psutil.Process(server_pid(home) or 0)
        assert server.uids().real == server.uids().effective == data.stat().st_uid
        if os.geteuid() == 0:
            owner = pwd.getpwuid(data.stat().st_uid)
            assert owner.pw_uid != 0
            assert owner.pw_shell.endswith("nologin")


async def test_parents_are_opened_only_for_root_and_then_to_pass_through_not_to_look_into() -> None:
    parent = Path(tempfile.mkdtemp(prefix="hookhare-home-"))  # mode 0700
    try:
        async with open_embedded_postgres(parent / "home") as dsn:
            await ask(dsn)
        expected = 0o701 if os.geteuid() == 0 else 0o700  # root lends the server a user, who has to get there
        assert stat.S_IMODE(parent.stat().st_mode) == expected  # noqa: ASYNC240 - a test's own
    finally:
        shutil.rmtree(parent)


async def test_another_major_version_is_refused_with_a_sentence(home: Path) -> None:
    async with open_embedded_postgres(home):
        pass
    (home / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ConfigurationError, match="made by PostgreSQL 9"):
        async with open_embedded_postgres(home):
            pass


async def test_an_interrupt_from_the_terminal_ends_its_process_and_not_the_server(home: Path) -> None:
    process, dsn = await use(home)
    async with open_embedded_postgres(home):
        pid = server_pid(home)
        assert pid is not None
        assert os.getpgid(pid) != os.getpgid(process.pid)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), DEADLINE_S)
        await ask(dsn)


class TestKey:
    """The file of the encryption key."""

    def test_it_is_made_once_and_is_its_owners_alone(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        assert read_or_make_key(home, lambda: "first") == "first"
        assert read_or_make_key(home, lambda: "second") == "first"
        assert stat.S_IMODE((home / "encryption.key").stat().st_mode) == 0o600
        assert [path.name for path in home.iterdir()] == ["encryption.key"]

    def test_one_that_others_can_read_is_closed(self, tmp_path: Path) -> None:
        read_or_make_key(tmp_path, lambda: "key")
        (tmp_path / "encryption.key").chmod(0o644)
        assert read_or_make_key(tmp_path, lambda: "other") == "key"
        assert stat.S_IMODE((tmp_path / "encryption.key").stat().st_mode) == 0o600

    def test_the_first_of_two_that_make_it_at_once_wins_for_both(self, tmp_path: Path) -> None:
        def make() -> str:
            read_or_make_key(tmp_path, lambda: "theirs")  # another process, between our look and our file
            return "ours"

        assert read_or_make_key(tmp_path, make) == "theirs"

    @pytest.mark.parametrize("content", [b"", b"\n", b"\xff"])
    def test_one_that_is_no_key_is_not_replaced(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "encryption.key").write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"encryption\.key"):
            read_or_make_key(tmp_path, lambda: "new")
        assert (tmp_path / "encryption.key").read_bytes() == content
