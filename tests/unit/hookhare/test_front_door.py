"""`import hookhare`, and the command's first steps."""

import subprocess
import sys
from datetime import UTC, datetime

import pytest

import hookhare
from hookhare import InvalidSignature, verify_webhook
from schemas.signatures import format_secret, parse_secret, sign

NOW = datetime(2025, 6, 15, 12, tzinfo=UTC)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_every_name_is_there() -> None:
    assert set(hookhare.__all__) - {"__version__"} == set(hookhare._HOMES)
    for name in hookhare.__all__:
        assert getattr(hookhare, name) is not None
    assert dir(hookhare) == sorted(hookhare.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Publisher'"):
        _ = hookhare.Publisher


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = (
        "pydantic",
        "aiohttp",
        "sqlalchemy",
        "asyncpg",
        "aio_pika",
        "alembic",
        "cryptography",
        "opentelemetry",
        "rich",
    )
    done = run_python(f"import sys, hookhare; print([name for name in {heavy!r} if name in sys.modules])")
    assert done.stdout.strip() == "[]"


def test_the_publisher_needs_nothing_of_the_server() -> None:
    server = (
        "pydantic",
        "aiohttp",
        "sqlalchemy",
        "asyncpg",
        "alembic",
        "cryptography",
        "opentelemetry.sdk",
        "structlog",
    )
    done = run_python(
        "import sys, hookhare; hookhare.EventPublisher('amqp://localhost'); "
        f"print([name for name in {server!r} if name in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_development_server_starts_without_what_only_a_migration_or_a_collector_needs() -> None:
    slow = ("alembic", "google.protobuf", "requests")
    done = run_python(f"import sys, hookhare.dev; print([name for name in {slow!r} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_without_the_server_the_command_says_what_to_install() -> None:
    done = run_python("import sys; sys.modules['typer'] = None; from hookhare.__main__ import main; main()")
    assert done.returncode == 1
    assert done.stderr.startswith("hookhare: typer is not installed.")
    assert "pip install 'hookhare[server]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("command", "missing"), [("dev", "psutil"), ("demo", "standardwebhooks")])
def test_without_the_embedded_extra_the_command_says_what_to_install(command: str, missing: str) -> None:
    done = run_python(
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['hookhare', {command!r}]; "
        "from hookhare.__main__ import main; main()"
    )
    assert done.returncode == 1
    assert done.stderr == f"hookhare: {missing} is not installed: pip install 'hookhare[embedded]'\n"


def test_a_broken_installation_is_not_taken_for_a_light_one() -> None:
    done = run_python("import sys; sys.modules['infra.settings'] = None; from hookhare.__main__ import main; main()")
    assert "ModuleNotFoundError" in done.stderr


def test_verify_webhook_takes_what_was_signed_and_nothing_else() -> None:
    secret = format_secret(b"k" * 32)
    body = '{"type":"a.b","data":"é"}'.encode()
    timestamp = int(NOW.timestamp())
    headers = {
        "Webhook-Id": "evt_1",
        "Webhook-Timestamp": str(timestamp),
        "Webhook-Signature": sign([parse_secret(secret)], webhook_id="evt_1", timestamp=timestamp, body=body),
    }
    verify_webhook(secret, headers=headers, body=body, now=NOW)
    with pytest.raises(InvalidSignature):
        verify_webhook(secret, headers=headers, body=body + b" ", now=NOW)
    with pytest.raises(InvalidSignature):
        verify_webhook(secret, headers=headers, body=body)  # the present is far from 2025-06-15
