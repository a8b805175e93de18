"""`hookhare dev` and `hookhare demo` as a newcomer runs them: whole processes, in folders of their own."""

import json
import shlex
import stat
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hookhare.demo.run import run_demo
from hookhare.demo.samples import Sample, samples
from producer.publisher import EventPublisher
from tests.support.commands import COMMAND
from tests.support.dev import LIMIT_S, environment, running


def pasted(command: list[str]) -> Any:
    """What curl would do with such a line."""
    assert command[:2] == ["curl", "-sS"]
    options = dict.fromkeys(("-d",), None) | {"-H": []}
    url, rest = command[2], iter(command[3:])
    for option in rest:
        if option == "-H":
            options["-H"].append(next(rest))  # type: ignore[union-attr]
        else:
            options[option] = next(rest)
    headers = dict(line.split(": ", 1) for line in options["-H"] or [])
    data = options["-d"].encode() if options["-d"] else None
    request = urllib.request.Request(url, data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
        return json.loads(answer.read())


def test_the_three_commands_work_as_pasted_and_everything_is_still_there_after_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as dev:
        subscribe, publish, look = dev.commands()
        subscription = pasted(subscribe)
        event = pasted(publish)
        # The inbox shows the data byte for byte: 1.10 and not 1.1.
        dev.wait_for(rf'inbox: {event["id"]} .*"total": 1\.10')
        (delivery,) = pasted(look)["data"]
        assert (delivery["event_id"], delivery["subscription_id"]) == (event["id"], subscription["id"])
        key = dev.wait_for(r"admin key +(hh_\S+)").group(1)
        assert "127.0.0.0/8" in dev.text()  # that webhooks may go to this machine is said
    home = tmp_path / ".hookhare"
    for name in ("admin.key", "encryption.key"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert (home / "admin.key").read_text().strip() == key

    with running(tmp_path) as dev:
        assert dev.wait_for(r"admin key +(hh_\S+)").group(1) == key
        (again,) = pasted(dev.commands()[2])["data"]
        assert (again["id"], again["status"]) == (delivery["id"], "delivered")


async def test_a_service_publishes_to_the_url_that_is_printed(tmp_path: Path) -> None:
    with running(tmp_path) as dev:
        subscribe, _, _ = dev.commands()
        pasted(subscribe)
        line = dev.wait_for(r"publish to +(HOOKHARE_BROKER_URL=\S+)").group(1)
        (assignment,) = shlex.split(line)
        async with EventPublisher(assignment.partition("=")[2], source="shop") as events:
            event = await events.publish("order.created", {"order": 1})
        dev.wait_for(rf"inbox: {event.id} ")


def test_over_the_real_engines(tmp_path: Path, rabbit_url: str, database_url: str) -> None:
    with running(tmp_path, broker_url=rabbit_url, database_url=database_url) as dev:
        subscribe, publish, _ = dev.commands()
        pasted(subscribe)
        dev.wait_for(rf"inbox: {pasted(publish)['id']} ")
    assert not (tmp_path / ".hookhare" / "postgres").exists()


@pytest.mark.parametrize("broker", ["embedded", "rabbitmq"])
def test_the_demo_passes(broker: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    options = [] if broker == "embedded" else ["--broker", str(request.getfixturevalue("rabbit_url"))]
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are too deep for a socket's path
        done = subprocess.run(
            # The caller's own database and folder must not be touched, whatever is set.
            [COMMAND, "demo", *options],
            env=environment(database_url="postgresql://127.0.0.1:1/nowhere", home="/nonexistent") | {"TMPDIR": folder},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=2 * LIMIT_S,
            check=False,
        )
        left_over = [*Path(folder).iterdir(), *tmp_path.iterdir()]
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All well" in done.stdout
    assert time.monotonic() - started_s < LIMIT_S
    assert left_over == []


async def test_the_demo_fails_when_something_is_not_as_published(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one_is_wrong() -> Sequence[Sample]:
        first, *others = samples()
        return [replace(first, text=b"{}"), *others]  # it is published from its Python form

    monkeypatch.setattr("hookhare.demo.run.samples", one_is_wrong)
    assert await run_demo(broker_url=None, force=False) == 1
    said = capsys.readouterr().out
    assert "Not as it should be: 2 faults" in said  # two receivers get it
    assert "healthy: evt_" in said
    assert "has other data" in said


def test_the_demo_keeps_away_from_a_rabbitmq_that_is_in_use(tmp_path: Path, rabbit_url: str) -> None:
    with running(tmp_path, broker_url=rabbit_url) as dev:
        dev.wait_for("Hookhare is up")
        done = subprocess.run(
            [COMMAND, "demo", "--broker", rabbit_url],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    assert done.returncode == 1
    assert "this RabbitMQ is in use: hookhare.events has " in done.stderr
    assert "Traceback" not in done.stderr
