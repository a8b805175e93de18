"""The servers' commands as an operator runs them: each a process, over one empty database and RabbitMQ."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.crypto import new_key

COMMAND = Path(sys.executable).with_name("hookhare")
LIMIT_S = 60


@pytest.fixture
def environment(empty_database_url: str, rabbit_url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HOOKHARE_")}
    return kept | {
        "HOOKHARE_DATABASE_URL": empty_database_url,
        "HOOKHARE_BROKER_URL": rabbit_url,
        "HOOKHARE_ENCRYPTION_KEYS": new_key(),
        "HOOKHARE_API_PORT": "0",
        "HOOKHARE_DISPATCHER_PORT": "0",
    }


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *command], env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


@contextmanager
def running(environment: dict[str, str], command: str, log: Path, pattern: str) -> Iterator[str]:
    """The command, from the line that says it is up until SIGTERM; what the pattern found in that line."""
    with log.open("w") as output:
        process = subprocess.Popen([COMMAND, command], env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline_s = time.monotonic() + LIMIT_S
        while not (found := re.search(pattern, log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.05)
        yield found.group(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_from_an_empty_database_to_servers_that_are_ready(environment: dict[str, str], tmp_path: Path) -> None:
    for early in ("api", "dispatcher", "keys create"):
        refused = run(environment, *early.split())
        assert refused.returncode == 1
        assert "SchemaMismatch: the database has no schema yet: run `hookhare migrate`" in refused.stderr
        assert "Traceback" not in refused.stderr

    migrated = run(environment, "migrate")
    assert migrated.returncode == 0, migrated.stderr
    assert run(environment, "migrate").returncode == 0  # safe to repeat
    key = run(environment, "keys", "create", "--name", "me").stdout.strip()

    up = r'"port":(\d+),"event":"api.started"'
    with running(environment, "api", tmp_path / "api", up) as port:
        url = f"http://127.0.0.1:{port}"
        request = urllib.request.Request(f"{url}/v1/subscriptions", headers={"Authorization": f"Bearer {key}"})
        assert urllib.request.urlopen(request, timeout=LIMIT_S).status == 200
        assert urllib.request.urlopen(f"{url}/readyz", timeout=LIMIT_S).status == 200

    up = r'"port":(\d+),"event":"dispatcher.started"'
    with running(environment, "dispatcher", tmp_path / "dispatcher", up) as port:
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=LIMIT_S).status == 200


async def test_the_topology_is_declared_for_publishers_that_come_first(
    environment: dict[str, str], bare_rabbit_url: str
) -> None:
    from hookhare import EventPublisher

    declared = run(environment | {"HOOKHARE_BROKER_URL": bare_rabbit_url}, "topology", "--declare")
    assert declared.returncode == 0, declared.stderr
    async with EventPublisher(bare_rabbit_url) as events:
        await events.publish("order.created", {})
