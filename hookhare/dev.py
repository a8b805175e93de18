"""The all-in-one development server: database, broker, API and dispatcher in one process, nothing else installed.

The same code as in the fleet, with three differences, each of them said when it starts: PostgreSQL comes from a wheel
and keeps its data in HOOKHARE_HOME, keys that are not set are made and kept there (readable by their owner only), and
webhooks may go to this machine.
"""

import asyncio
import os
import shlex
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import typer
from pydantic import SecretStr

from consumer_api.bootstrap import open_api
from dispatcher.bootstrap import open_dispatcher
from hookhare.inbox import open_inbox
from hookhare.key_records import record_key
from hookhare.settings_list import log_unknown
from infra.crypto import new_key
from infra.embedded import make_home, open_embedded_postgres, read_or_make_key
from infra.settings import Settings
from infra.store import api_keys
from infra.store.migrate import migrate
from infra.store.store import open_store
from infra.telemetry import configure_logging

_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_ADMIN_FILE = "admin.key"


@dataclass(frozen=True, slots=True)
class DevServer:
    """A development server that is up.

    `broker_url` is where an `EventPublisher` of another process finds it; `failed` ends with an error if its dispatcher
    does.
    """

    api_url: str
    inbox_url: str
    admin_key: str = field(repr=False)
    admin_key_file: Path
    broker_url: str = field(repr=False)
    metrics_url: str
    failed: asyncio.Future[None] = field(repr=False)


def dev_settings(settings: Settings) -> Settings:
    """The settings of the embedded mode: webhooks may go to loopback, and not through a proxy.

    Where nothing else is set, they may go to any port over plain HTTP, as receivers under development are, logs are for
    a person, and the dispatcher's metrics take a free port, since 9090 is often Prometheus's own.
    """
    changes: dict[str, object] = {"log_format": "console", "dispatcher_port": 0}
    changes |= {"egress_http": True, "egress_ports": "1-65535"}
    changes = {name: value for name, value in changes.items() if name not in settings.model_fields_set}
    changes["egress_allow"] = (*settings.egress_allow, *_LOOPBACK)
    changes["egress_no_proxy"] = (*settings.egress_no_proxy, "localhost", *map(str, _LOOPBACK))
    return settings.model_copy(update=changes)


@asynccontextmanager
async def open_dev(settings: Settings) -> AsyncIterator[DevServer]:
    """Bring everything up, and down again in the opposite order. `settings` are those of `dev_settings`."""
    configure_logging(settings)
    log_unknown()
    home = _home(settings)
    make_home(home)
    async with AsyncExitStack() as stack:
        if settings.database_url is None:
            database_url = SecretStr(await stack.enter_async_context(open_embedded_postgres(home)))
        else:
            database_url = settings.database_url
        await migrate(database_url.get_secret_value())
        encryption_keys = settings.encryption_keys or SecretStr(read_or_make_key(home, new_key))
        settings = settings.model_copy(update={"database_url": database_url, "encryption_keys": encryption_keys})
        admin_key = await _admin_key(settings, home / _ADMIN_FILE)
        api = await stack.enter_async_context(open_api(settings))
        # Before the dispatcher, so that it is there until the dispatcher has drained.
        inbox_url = await stack.enter_async_context(
            open_inbox(settings.api_port + 1 if settings.api_port else 0, typer.echo)
        )
        dispatcher = await stack.enter_async_context(open_dispatcher(settings))
        yield DevServer(
            api_url=f"http://{api.host}:{api.port}",
            inbox_url=inbox_url,
            admin_key=admin_key,
            admin_key_file=home / _ADMIN_FILE,
            broker_url=(settings.broker_url or database_url).get_secret_value(),
            metrics_url=f"http://{settings.dispatcher_host}:{dispatcher.port}/metrics",
            failed=dispatcher.failed,
        )


def announce(server: DevServer) -> None:
    """Say where everything is, and what to try next: three commands that work as they are pasted."""
    authorization = shlex.quote(f"Authorization: Bearer {server.admin_key}")
    typer.echo(
        f"""
Hookhare is up.
  API          {server.api_url}
  admin key    {server.admin_key}
               kept in {server.admin_key_file}
  inbox        {server.inbox_url}
               a receiver for trying things out: what arrives is printed here
  metrics      {server.api_url}/metrics and {server.metrics_url}
  publish to   HOOKHARE_BROKER_URL={shlex.quote(server.broker_url)}
Webhooks may go to this machine (127.0.0.0/8 and ::1), over http:// and to any port, which only the development server
allows by itself.

Three commands to try next:

  curl -sS {server.api_url}/v1/subscriptions -H {authorization} \\
    -H 'Content-Type: application/json' -d '{{"url": "{server.inbox_url}", "event_types": ["order.#"]}}'

  curl -sS {server.api_url}/v1/events -H {authorization} \\
    -H 'Content-Type: application/json' -d '{{"type": "order.created", "data": {{"order": 4711, "total": 1.10}}}}'

  curl -sS {server.api_url}/v1/deliveries -H {authorization}

Ctrl-C stops it.
"""
    )


async def _admin_key(settings: Settings, path: Path) -> str:
    """The admin key in the home's file if the database knows it, or a new one."""
    async with open_store(settings) as store, store.transaction() as connection:
        kept = _read(path)
        if kept is not None and await api_keys.find(connection, kept) is not None:
            return kept  # one that the database does not know is of another database, or was revoked
        key, row = await api_keys.create(connection, "hookhare dev")
        await record_key(connection, "created", after=row)
        _write_private(path, key)
        return key


def _home(settings: Settings) -> Path:
    return Path(settings.home).expanduser().absolute()


def _read(path: Path) -> str | None:
    return path.read_text().strip() if path.exists() else None


def _write_private(path: Path, text: str) -> None:
    """Put a text into a file that only its owner can read, from its first byte on."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    draft.replace(path)
