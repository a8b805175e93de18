"""Which broker the settings name. An adapter is imported only when it is used: RabbitMQ needs no database driver."""

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from infra.broker.base import Broker
from schemas.errors import ConfigurationError

if TYPE_CHECKING:
    from infra.settings import Settings

_AMQP: Final = frozenset({"amqp", "amqps"})
_POSTGRESQL: Final = frozenset({"postgres", "postgresql"})


def open_broker(settings: "Settings") -> Broker:
    """The broker of the settings, to be entered by the caller. Raises ConfigurationError that names the setting."""
    secret = settings.broker_url or settings.database_url
    if secret is None:
        raise ConfigurationError(
            "HOOKHARE_BROKER_URL: must be set to RabbitMQ's amqp:// URL, or HOOKHARE_DATABASE_URL to a postgresql:// "
            "URL for the database to be the broker"
        )
    url = secret.get_secret_value()
    scheme = _scheme(url)
    if scheme in _AMQP and settings.broker_url is not None:
        from infra.broker.rabbitmq import RabbitBroker  # noqa: PLC0415
        from infra.broker.topology import TopologyOptions  # noqa: PLC0415

        options = TopologyOptions(settings.events_delivery_limit, settings.event_bindings)
        return RabbitBroker(url, topology=options, timeout_s=settings.broker_timeout_s)
    if scheme in _POSTGRESQL:
        if settings.event_bindings:
            raise ConfigurationError("HOOKHARE_EVENT_BINDINGS: needs RabbitMQ; the embedded broker has no exchanges")
        from infra.broker.postgres import PostgresBroker  # noqa: PLC0415

        return PostgresBroker(
            url,
            delivery_limit=settings.events_delivery_limit,
            timeout_s=settings.broker_timeout_s,
            lease_s=settings.broker_lease_s,
        )
    name = "HOOKHARE_BROKER_URL" if settings.broker_url is not None else "HOOKHARE_DATABASE_URL"
    expected = "amqp://, amqps:// or postgresql://" if settings.broker_url is not None else "postgresql://"
    raise ConfigurationError(f"{name}: must begin with {expected}")  # never shown: it may hold a password


def messaging_system(settings: "Settings") -> str:
    """The name of the broker that the settings name, by OpenTelemetry's messaging conventions."""
    url = settings.broker_url.get_secret_value() if settings.broker_url is not None else ""
    return "rabbitmq" if _scheme(url) in _AMQP else "postgresql"


def _scheme(url: str) -> str:
    try:
        return urlsplit(url).scheme
    except ValueError:
        return ""
