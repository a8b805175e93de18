"""Which broker the settings name."""

import pytest

from infra.broker.open import open_broker
from infra.broker.postgres import PostgresBroker
from infra.broker.rabbitmq import RabbitBroker
from infra.settings import read_settings
from schemas.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BROKER_URL", "DATABASE_URL", "EVENT_BINDINGS"):
        monkeypatch.delenv(f"HOOKHARE_{name}", raising=False)


@pytest.mark.parametrize(
    ("broker_url", "database_url", "kind"),
    [
        ("amqp://localhost", None, RabbitBroker),
        ("amqps://localhost/vhost", "postgresql://localhost/a", RabbitBroker),
        ("postgresql://localhost/b", "postgresql://localhost/a", PostgresBroker),
        ("postgres://localhost/b", None, PostgresBroker),
        (None, "postgresql://localhost/a", PostgresBroker),
    ],
)
async def test_the_url_chooses(broker_url: str | None, database_url: str | None, kind: type) -> None:
    assert type(open_broker(read_settings(broker_url=broker_url, database_url=database_url))) is kind


@pytest.mark.parametrize(
    ("broker_url", "database_url", "named"),
    [
        (None, None, "HOOKHARE_BROKER_URL.*HOOKHARE_DATABASE_URL"),
        ("redis://:s3cret@localhost", None, "HOOKHARE_BROKER_URL"),
        (None, "amqp://:s3cret@localhost", "HOOKHARE_DATABASE_URL"),
        ("amqp://[s3cret", None, "HOOKHARE_BROKER_URL"),
    ],
)
async def test_what_names_no_broker_is_an_error_that_names_the_setting(
    broker_url: str | None, database_url: str | None, named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named) as caught:
        open_broker(read_settings(broker_url=broker_url, database_url=database_url))
    assert "s3cret" not in str(caught.value)


async def test_the_embedded_broker_has_no_exchanges_to_bind() -> None:
    with pytest.raises(ConfigurationError, match="HOOKHARE_EVENT_BINDINGS"):
        open_broker(read_settings(database_url="postgresql://localhost/a", event_bindings="shop:#"))
