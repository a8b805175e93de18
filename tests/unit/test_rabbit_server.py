"""Where the tests' RabbitMQ comes from, and what is said when it comes from nowhere."""

from typing import NoReturn

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
