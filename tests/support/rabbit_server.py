"""RabbitMQ servers that belong to whoever starts them: they may be stopped, killed and started again.

From a Docker engine, or from a `rabbitmq-server` on this machine; on Debian as root the package is installed first.
Works outside pytest too: `with running_server() as server: server.kill(); server.start()`.
"""

import atexit
import fcntl
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from requests.exceptions import RequestException

IMAGE: Final = "rabbitmq:4"

_START_S: Final = 90
_STOP_S: Final = 30
_PULL_S: Final = 60
_CONTROL_S: Final = 60


class NoServer(Exception):
    """Why a way to have a server did not lead to one."""


class RabbitServer(Protocol):
    """A RabbitMQ of ours. It keeps its port and its data when it is started again."""

    @property
    def url(self) -> str: ...

    @property
    def running(self) -> bool:
        """Whether it takes connections."""
        ...

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        ...

    def stop(self) -> None:
        """Stop it in order."""
        ...

    def kill(self) -> None:
        """SIGKILL."""
        ...

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on it and return what it prints."""
        ...

    def close(self) -> None:
        """End it and leave nothing behind."""
        ...


@contextmanager
def running_server() -> Iterator[RabbitServer]:
    """A server of ours, started. Raises NoServer, which says what to do, when there is no way to have one."""
    server = _start_one()
    try:
        yield server
    finally:
        server.close()


def _start_one() -> RabbitServer:
    tried = []
    for way in (DockerServer, PrivateNode, _installed_node):
        try:
            with _alone():  # or else one would begin what another one is just installing
                server = way()
            server.start()
            return server
        except NoServer as reason:
            tried.append(str(reason))
    raise NoServer(
        f"These tests need a RabbitMQ, and there is none: {'; '.join(tried)}. Start Docker, install rabbitmq-server, "
        "or set HOOKHARE_TEST_AMQP_URL to the amqp:// URL of a server whose hookhare.* queues may be emptied."
    )


@contextmanager
def _alone() -> Iterator[None]:
    """One process of all test runs on this machine at a time."""
    with (Path(tempfile.gettempdir()) / f"hookhare-rabbit-{os.geteuid()}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class PrivateNode:
    """A node of ours from the machine's `rabbitmq-server`, on free ports of loopback and in a temporary folder."""

    _numbers = itertools.count(1)

    def __init__(self, *, config: Mapping[str, str] | None = None) -> None:
        self._commands = _command_folder()
        self._folder = Path(tempfile.mkdtemp(prefix="hookhare-rabbit-"))
        self.port, self._epmd_port, self._control_port = free_port(), free_port(), free_port()
        self._config = {
            "disk_free_limit.absolute": "1MB",  # a small disk must not raise an alarm that no test asked for
            "log.console": "false",
            **(config or {}),
        }
        self._name = f"hookhare-{os.getpid()}-{next(self._numbers)}@localhost"
        self._environment = self._make_environment()
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._guards: dict[int, subprocess.Popen[bytes]] = {}
        atexit.register(self.close)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int | None:
        """The process of the broker itself, None while it does not run."""
        return self._server.pid if self._server is not None and self._server.poll() is None else None

    @property
    def running(self) -> bool:
        return self.pid is not None and answers_amqp(self.port)

    def start(self) -> None:
        if self._epmd is None and (epmd := shutil.which("epmd")):
            # Or else Erlang starts one as a daemon, which nobody would end.
            self._epmd = self._launch([epmd, "-port", str(self._epmd_port), "-address", "127.0.0.1"])
            _wait(lambda: _takes_connections(self._epmd_port), 10, "epmd does not start")
        self._server = self._launch([str(self._commands / "rabbitmq-server")])
        try:
            _wait(self._started, _START_S, "the private node does not start")
        except NoServer as reason:
            words = self._last_words()
            self.close()
            raise NoServer(f"{reason}: {words}") from None

    def stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(_STOP_S)
            self.kill()

    def kill(self) -> None:
        if self._server is not None:
            self._end(self._server)
            self._server = None

    def ctl(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._commands / "rabbitmqctl"), "--node", self._name, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_CONTROL_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def close(self) -> None:
        self.kill()
        if self._epmd is not None:
            self._end(self._epmd)
            self._epmd = None
        shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_environment(self) -> dict[str, str]:
        folder = self._folder
        (folder / "rabbitmq.conf").write_text("".join(f"{key} = {value}\n" for key, value in self._config.items()))
        (folder / "enabled_plugins").write_text("[].\n")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
        return kept | {
            "HOME": str(folder),  # the Erlang cookie is made here
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),  # or else the system's settings win over these
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._control_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            # Makes the script become the broker, so that a signal to the process is a signal to the broker.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self._folder / "output.txt").open("ab") as output:
            process = subprocess.Popen(
                command,
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the tests, which then end the node
            )
        # If we are killed, our end of this pipe closes, and the guard ends the process group.
        self._guards[process.pid] = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; kill -KILL "-$1"; rm -rf "$2"', "guard", str(process.pid), str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        guard = self._guards.pop(process.pid)
        guard.kill()
        guard.communicate()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _started(self) -> bool:
        if self.pid is None:
            raise NoServer("the private node ended while it was starting")
        return answers_amqp(self.port)

    def _last_words(self) -> str:
        return (self._folder / "output.txt").read_text(errors="replace")[-2000:]


class DockerServer:
    """A container on a Docker engine, on a fixed port so that it is found again after a restart."""

    def __init__(self) -> None:
        self._docker: Any = import_module("docker")  # here, so that nobody waits for it who needs no container
        self._faults = (self._docker.errors.DockerException, RequestException, OSError)
        self._container: Any = None
        self._host = "127.0.0.1"
        self._port = free_port()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{self._host}:{self._port}/"

    @property
    def running(self) -> bool:
        return self._container is not None and answers_amqp(self._port, self._host)

    def start(self) -> None:
        try:
            if self._container is None:
                self._make()
            else:
                self._container.get_wrapped_container().start()
        except self._faults as fault:
            self.close()
            raise NoServer(f"no container can be started ({type(fault).__name__})") from fault
        _wait(lambda: self.running, _START_S, "the container does not answer")

    def stop(self) -> None:
        self._container.get_wrapped_container().stop(timeout=_STOP_S)

    def kill(self) -> None:
        self._container.get_wrapped_container().kill("SIGKILL")

    def ctl(self, *arguments: str) -> str:
        code, output = self._container.exec(["rabbitmqctl", *arguments])
        if code:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)} failed: {output!r}")
        return bytes(output).decode()

    def close(self) -> None:
        if self._container is not None:
            container, self._container = self._container, None
            container.stop()
            atexit.unregister(self.close)

    def _make(self) -> None:
        from testcontainers.core.config import testcontainers_config
        from testcontainers.core.container import DockerContainer

        client = self._docker.from_env(timeout=10)
        client.ping()  # there may be a docker command without an engine
        self._have_image(client)
        testcontainers_config.ryuk_disabled = True  # its reaper is one more image to pull, and close() is called anyway
        container = DockerContainer(IMAGE).with_bind_ports(5672, self._port)
        container.start()
        self._container = container
        self._host = container.get_container_host_ip()
        atexit.register(self.close)

    def _have_image(self, client: Any) -> None:
        try:
            client.images.get(IMAGE)
            return
        except self._docker.errors.ImageNotFound:
            pass
        failures: list[str] = []

        def pull() -> None:
            try:
                client.api.timeout = _PULL_S
                client.images.pull(IMAGE)
            except self._faults as fault:
                failures.append(type(fault).__name__)

        thread = threading.Thread(target=pull, daemon=True)
        thread.start()
        thread.join(_PULL_S)
        if failures or thread.is_alive():
            raise NoServer(f"Docker does not pull {IMAGE} within {_PULL_S} s ({', '.join(failures) or 'too slow'})")


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers_amqp(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a broker that takes connections listens there: it begins the handshake."""
    try:
        with closing(socket.create_connection((host, port), timeout=2)) as probe:
            probe.sendall(b"AMQP\x00\x00\x09\x01")
            return probe.recv(1) == b"\x01"  # a method frame: connection.start
    except OSError:
        return False


def _installed_node() -> PrivateNode:
    if not (shutil.which("apt-get") and os.geteuid() == 0):
        raise NoServer("it cannot be installed from here, which takes apt-get and root")
    with suppress(NoServer):
        return PrivateNode()  # installed by another process while this one waited for its turn
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "rabbitmq-server"]):
        done = subprocess.run(
            command, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise NoServer(f"{' '.join(command)} failed: {done.stderr[-500:]}")
    return PrivateNode()


def _command_folder() -> Path:
    """Where rabbitmq-server and rabbitmqctl are. Debian's own in /usr/sbin insist on a user and on its one node."""
    folders = [Path("/usr/lib/rabbitmq/bin")]
    if found := shutil.which("rabbitmq-server"):
        folders.append(Path(found).resolve().parent)
    for folder in folders:
        if all((folder / command).exists() for command in ("rabbitmq-server", "rabbitmqctl")):
            return folder
    raise NoServer("no rabbitmq-server is installed")


def _takes_connections(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _wait(condition: Callable[[], bool], limit_s: float, complaint: str) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise NoServer(f"{complaint} within {limit_s:.0f} s")
        time.sleep(0.05)
