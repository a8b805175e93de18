"""The commands as far as they need no server: help, errors, keys, lists."""

import os
import re
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from hookhare.cli import app
from infra.crypto import Vault, new_key

COMMANDS = [
    ["dev"],
    ["demo"],
    ["api"],
    ["dispatcher"],
    ["migrate"],
    ["keys", "create"],
    ["keys", "list"],
    ["keys", "rotate"],
    ["keys", "revoke"],
    ["keys", "new-encryption-key"],
    ["keys", "rotate-encryption"],
    ["openapi"],
    ["topology"],
    ["settings"],
]
SECRET = "hunter2"
NOWHERE = f"postgresql://me:{SECRET}@127.0.0.1:1/x"
NO_DATABASE = "hookhare: HOOKHARE_DATABASE_URL: is not set; it is the postgresql:// URL of the database\n"
runner = CliRunner(env={"COLUMNS": "100", "TERM": "dumb"})


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("HOOKHARE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOOKHARE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOOKHARE_BROKER_TIMEOUT_S", "0.5")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_says_what_it_is_for(command: list[str]) -> None:
    said = runner.invoke(app, [*command, "--help"])
    assert said.exit_code == 0
    assert len(said.output.split()) > 20
    assert f"Usage: hookhare {' '.join(command)}" in said.output


def test_the_document_of_the_api_is_printed_as_json() -> None:
    said = runner.invoke(app, ["openapi"])
    assert said.exit_code == 0
    document = orjson.loads(said.output)
    assert document["openapi"] == "3.1.0"
    assert "/v1/events" in document["paths"]


def test_the_overview_names_every_command() -> None:
    said = runner.invoke(app, ["--help"]).output
    assert {command[0] for command in COMMANDS} == set(re.findall(r"^│ (\w+) {2,}\S", said, re.MULTILINE))


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        (["api"], {}, "hookhare: HOOKHARE_ENCRYPTION_KEYS: no key is set"),
        (["dispatcher"], {}, "hookhare: HOOKHARE_ENCRYPTION_KEYS: no key is set"),
        (["migrate"], {}, NO_DATABASE),
        (["keys", "create"], {}, NO_DATABASE),
        (["keys", "create", "--scope", "events:fly"], {}, "--scope: 'events:fly': there are events:read, "),
        (["keys", "create", "--tenant", "a b"], {}, "--tenant: must be 1 to 64 letters"),
        (["keys", "create", "--expires-in-days", "0"], {}, "--expires-in-days: must be more than 0"),
        (["keys", "list"], {}, NO_DATABASE),
        (["keys", "rotate", "sub_x"], {}, "KEY_ID: must be an id of the form key_"),
        (["keys", "revoke", "sub_x"], {}, "KEY_ID: must be an id of the form key_"),
        (["keys", "rotate-encryption"], {}, "hookhare: HOOKHARE_ENCRYPTION_KEYS: no key is set"),
        (["keys", "rotate-encryption"], {"ENCRYPTION_KEYS": new_key()}, NO_DATABASE),
        (["topology", "--declare"], {}, "hookhare: HOOKHARE_BROKER_URL"),
        (["migrate"], {"DATABASE_URL": SECRET}, "hookhare: HOOKHARE_DATABASE_URL"),
        (
            ["migrate"],
            {"DATABASE_URL": f"postgresql://me:{SECRET}@[::1/x"},
            "hookhare: HOOKHARE_DATABASE_URL",
        ),
        (["dev"], {"DATABASE_URL": SECRET}, "hookhare: HOOKHARE_DATABASE_URL"),
        (["migrate"], {"DATABASE_URL": NOWHERE}, "StoreUnavailable: "),
        (["keys", "create"], {"DATABASE_URL": NOWHERE}, "is HOOKHARE_DATABASE_URL right, and the database up?"),
        (["topology", "--declare"], {"BROKER_URL": f"amqp://me:{SECRET}@127.0.0.1:1/"}, "BrokerUnavailable: "),
        (["demo", "--broker", f"amqp://me:{SECRET}@127.0.0.1:1/"], {}, "; is --broker right, and the broker up?"),
        (["demo", "--broker", SECRET], {}, "hookhare: --broker must be"),
        (["api"], {"API_PORT": "99999"}, "hookhare: HOOKHARE_API_PORT"),
        (["settings"], {"RETENTION_DAYS": "many"}, "hookhare: HOOKHARE_RETENTION_DAYS"),
    ],
)
def test_what_is_set_wrongly_is_said_in_a_line(
    command: list[str], settings: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(f"HOOKHARE_{name}", value)
    said = runner.invoke(app, command)
    assert said.exit_code == 1
    assert message in said.stderr
    assert said.stderr.startswith("hookhare: ")
    assert said.stderr.count("\n") == 1
    assert SECRET not in said.output
    assert said.stdout == ""  # no list or table to look through for the error


@pytest.mark.parametrize(
    "command",
    [["api"], ["dispatcher"], ["migrate"], *COMMANDS[5:9], ["keys", "rotate-encryption"], ["topology"]],
    ids=" ".join,
)
def test_help_names_the_variable_that_a_command_needs(command: list[str]) -> None:
    needed = "HOOKHARE_BROKER_URL" if command == ["topology"] else "HOOKHARE_DATABASE_URL"
    assert needed in runner.invoke(app, [*command, "--help"]).output


@pytest.mark.parametrize("command", ["api", "dispatcher", "dev"])
def test_a_server_logs_what_is_set_but_is_no_setting(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKHARE_API_PRT", SECRET)
    monkeypatch.setenv("HOOKHARE_LOG_FORMAT", "json")
    monkeypatch.setenv("HOOKHARE_DATABASE_URL", "nonsense")  # so that it ends
    said = runner.invoke(app, [command])
    assert said.exit_code == 1
    (line,) = [line for line in said.output.splitlines() if "settings.unknown" in line]
    assert '"level":"warning"' in line
    assert '"ignored":["HOOKHARE_API_PRT"]' in line
    assert SECRET not in said.output


def test_the_list_of_settings_names_what_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKHARE_API_PRT", SECRET)
    said = runner.invoke(app, ["settings"])
    assert said.exit_code == 0
    assert said.stderr == "hookhare: HOOKHARE_API_PRT is set, but is no setting: it is ignored\n"
    assert SECRET not in said.output


def test_a_new_encryption_key_encrypts() -> None:
    key = runner.invoke(app, ["keys", "new-encryption-key"]).stdout.strip()
    assert Vault([key]).decrypt(Vault([key]).encrypt(b"secret")) == b"secret"


def test_the_settings_are_listed_with_what_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKHARE_RETENTION_DAYS", "7")
    monkeypatch.setenv("HOOKHARE_DATABASE_URL", NOWHERE)
    said = runner.invoke(app, ["settings"])
    assert re.search(r"HOOKHARE_RETENTION_DAYS +7 +30 +days that", said.output)
    assert re.search(r"HOOKHARE_DATABASE_URL +\(set, not shown\)", said.output)
    assert SECRET not in said.output


def test_the_topology_is_listed_with_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKHARE_EVENTS_DELIVERY_LIMIT", "77")
    monkeypatch.setenv("HOOKHARE_EVENT_BINDINGS", "shop.events:order.#")
    said = runner.invoke(app, ["topology"])
    assert said.exit_code == 0
    assert "x-delivery-limit: 77" in said.output
    assert "shop.events order.#" in said.output
    assert re.search(r"hookhare\.due +topic +alternate-exchange: hookhare\.unrouted", said.output)
