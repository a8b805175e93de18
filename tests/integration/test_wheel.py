"""The wheel, installed into an empty environment with the base dependencies only, is enough to publish."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aio_pika
import pytest

from infra.broker.base import Queue
from schemas.events import Event, read_event
from schemas.ids import EVENT, event_key, public_id
from schemas.messages import Message

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300
HEAVY = [
    "pydantic",
    "pydantic_settings",
    "aiohttp",
    "sqlalchemy",
    "asyncpg",
    "alembic",
    "cryptography",
    "typer",
    "rich",
]

PUBLISH = """
import asyncio, json, sys
import hookhare

async def main():
    async with hookhare.EventPublisher(sys.argv[1], source="wheel") as events:
        event = await events.publish("order.created", hookhare.RawJSON(b'{"total":1.10}'), id="4711")
    print(json.dumps({"id": event.id, "file": hookhare.__file__, "loaded": sorted(sys.modules)}))

asyncio.run(main())
"""


@dataclass(frozen=True)
class Installed:
    wheel: Path
    python: Path
    command: Path
    elsewhere: Path  # a folder that is not the checkout

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.elsewhere, env=clean(), capture_output=True, text=True, timeout=TIMEOUT_S
        )


def clean() -> dict[str, str]:
    """The environment without what would let the checkout, or the caller's own settings, in."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HOOKHARE_", "VIRTUAL_ENV"))
    }


def checked(*command: str | Path) -> None:
    done = subprocess.run(command, env=clean(), capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    # Not isolated: the build's own dependencies are pinned with all others, and installed already.
    checked(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", ROOT)
    (wheel,) = (folder / "dist").glob("hookhare-*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    checked(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    return Installed(wheel, python, python.with_name("hookhare"), elsewhere)


def test_the_wheel_holds_the_migrations_and_nothing_that_is_not_for_running(installed: Installed) -> None:
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    of_the_tree = {
        path.relative_to(ROOT).as_posix()
        for package in ("hookhare", "consumer_api", "dispatcher", "producer", "infra", "schemas")
        for path in (ROOT / package).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == of_the_tree
    assert any(name.startswith("infra/migrations/versions/v0001") for name in names)
    assert "infra/migrations/env.py" in names
    static = (ROOT / "consumer_api/static").rglob("*")
    shipped = {path.relative_to(ROOT).as_posix() for path in static if path.is_file()}
    assert len(shipped) >= 8
    assert shipped <= names
    assert not any(name.startswith(("tests/", "infra/deploy/")) for name in names)


async def test_it_publishes_from_elsewhere_and_loads_nothing_of_the_server(
    installed: Installed, rabbit_url: str
) -> None:
    done = installed.run(installed.python, "-c", PUBLISH, rabbit_url)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert not told["file"].startswith(f"{ROOT}/")
    assert [name for name in HEAVY if name in told["loaded"]] == []

    connection = await aio_pika.connect(rabbit_url)
    async with connection:
        channel = await connection.channel()
        queue = await channel.get_queue(Queue.EVENTS.value, ensure=False)
        got = await queue.get(timeout=10, fail=True)
        assert got is not None
        await got.ack()
    message = Message(got.body, {key: value for key, value in got.headers.items() if isinstance(value, str | int)})
    event = read_event(message, now=datetime.now(UTC), fresh_id="unused", max_bytes=1000)
    assert isinstance(event, Event)
    assert (event.type, event.source, event.external_id, event.data) == (
        "order.created",
        "wheel",
        "4711",
        b'{"total":1.10}',
    )
    assert event.accepted_ms is not None
    assert told["id"] == public_id(EVENT, event_key(event.accepted_ms, "default", "wheel", "4711"))


def test_importing_it_loads_nothing_at_all(installed: Installed) -> None:
    code = "import sys; before = set(sys.modules); import hookhare; print(sorted(set(sys.modules) - before))"
    done = installed.run(installed.python, "-c", code)
    third_party = {"aio_pika", "aiormq", "orjson", "msgspec", "opentelemetry", "tenacity", *HEAVY}
    assert third_party.isdisjoint(name.partition(".")[0] for name in eval(done.stdout)), done.stderr


def test_the_command_says_what_to_install(installed: Installed) -> None:
    done = installed.run(installed.command, "--help")
    assert done.returncode == 1
    assert "pip install 'hookhare[server]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_over_postgresql_it_says_what_to_install(installed: Installed) -> None:
    code = "import hookhare; hookhare.EventPublisher('postgresql://localhost/x')"
    done = installed.run(installed.python, "-c", code)
    assert "ConfigurationError: publishing over PostgreSQL needs asyncpg: pip install 'hookhare[server]'" in done.stderr
