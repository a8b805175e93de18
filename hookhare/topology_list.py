"""RabbitMQ's topology for a person, and its declaration by hand."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from infra.broker.ladder import RUNGS_MS
from infra.broker.open import open_broker
from infra.broker.topology import TopologyOptions, rung_queue, topology
from infra.settings import Settings
from schemas.errors import ConfigurationError


def show_topology(settings: Settings, console: Console) -> None:
    """Print the topology that these settings lead to. All of it is durable."""
    whole = topology(TopologyOptions(settings.events_delivery_limit, settings.event_bindings))
    routes: dict[str, list[str]] = {}
    for binding in whole.bindings:
        routes.setdefault(binding.queue, []).append(f"{binding.exchange} {binding.routing_key or '(any key)'}")
    exchanges = Table("exchange", "type", "arguments", box=SIMPLE_HEAD)
    for exchange in whole.exchanges:
        exchanges.add_row(exchange.name, exchange.kind, _arguments(exchange.arguments))
    queues = Table("queue", "bound to exchange and key", "arguments", box=SIMPLE_HEAD)
    hidden = {rung_queue(ms) for ms in RUNGS_MS[1:-1]}
    for queue in whole.queues:
        if queue.name not in hidden:
            queues.add_row(queue.name, "\n".join(routes.get(queue.name, [])), _arguments(queue.arguments))
        elif queue.name == rung_queue(RUNGS_MS[1]):
            queues.add_row(f"… and {len(hidden)} like these two", "", "each TTL 19 % longer than the one before")
    console.print(exchanges)
    console.print(queues)


async def declare_topology(settings: Settings) -> None:
    """Declare it. Raises ConfigurationError when the broker is not RabbitMQ, or has one of the names otherwise."""
    url = settings.broker_url.get_secret_value() if settings.broker_url is not None else ""
    if not url.startswith(("amqp://", "amqps://")):
        raise ConfigurationError("HOOKHARE_BROKER_URL: must be an amqp:// URL to declare anything there")
    async with open_broker(settings):  # declares on entry
        pass


def _arguments(arguments: Mapping[str, str | int]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in arguments.items())
