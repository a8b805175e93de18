"""Where the tests' RabbitMQ comes from, and what is said when it comes from nowhere."""

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import pytest

from tests.support import rabbit_server
from tests.support.rabbit_server import DockerServer, NoServer, answers_amqp, free_port, running_server


def test_without_any_way_to_a_server_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> NoReturn:
        raise NoServer("none of this kind")

    for way in ("DockerServer", "PrivateNode", "_installed_node"):
        monkeypatch.setattr(rabbit_server, way, none)
    with pytest.raises(NoServer, match=r"Docker.*rabbitmq-server.*HOOKHARE_TEST_AMQP_URL"), running_server():
        pass


def test_a_docker_command_without_an_engine_is_no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{free_port()}")
    with pytest.raises(NoServer, match="container"):
        DockerServer().start()


def test_a_port_that_nobody_listens_on_answers_nothing() -> None:
    assert not answers_amqp(free_port())


def test_two_runs_that_find_no_server_install_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []

    class Node:
        def __init__(self) -> None:
            if "install" not in installed:
                raise NoServer("not installed")

        def start(self) -> None: ...

        def close(self) -> None: ...

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        time.sleep(0.05)  # time enough for the other one to come to the same place
        installed.append(command[1])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(rabbit_server, "DockerServer", Node)
    monkeypatch.setattr(rabbit_server, "PrivateNode", Node)
    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr("os.geteuid", lambda: 0)

    def one(_: int) -> None:
        with running_server():
            pass

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(one, range(2)))
    assert installed == ["update", "install"]
