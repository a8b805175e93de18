"""Which version of its type's schema an event names."""

from datetime import UTC, datetime

import pytest

from schemas.dataschema import dataschema_of, named_version
from schemas.events import Event, event_message, read_event
from schemas.messages import Message

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("dataschema", "version"),
    [
        (None, None),
        ("", None),
        ("/v1/event-types/order.created/versions/2", 2),
        ("https://hooks.example.com/v1/event-types/order.created/versions/12", 12),
        ("https://hooks.example.com/below/v1/event-types/order.created/versions/1", 1),
        ("/v1/event-types/order.changed/versions/2", None),
        ("/v1/event-types/order.created/versions/0", None),
        ("/v1/event-types/order.created/versions/2/", None),
        ("/v1/event-types/order.created/versions/2?x", None),
        ("https://schemas.example.com/order/2", None),
        ("xv1/event-types/order.created/versions/2", None),
    ],
)
def test_the_address_of_a_version_names_it(dataschema: str | None, version: int | None) -> None:
    assert named_version(dataschema, "order.created") == version


def test_a_type_with_slashes_is_named_too() -> None:
    assert named_version(dataschema_of("com/example:x", 3), "com/example:x") == 3


@pytest.mark.parametrize(
    "message",
    [
        Message(b'{"type":"a.b","data":1,"dataschema":"/v1/event-types/a.b/versions/3"}'),
        Message(
            b'{"specversion":"1.0","id":"1","source":"s","type":"a.b","data":1,"dataschema":"http://h/v1/event-types/a.b/versions/3"}'
        ),
        Message(
            b"1",
            headers={
                "cloudEvents:specversion": "1.0",
                "cloudEvents:type": "a.b",
                "cloudEvents:dataschema": "/v1/event-types/a.b/versions/3",
            },
        ),
    ],
)
def test_it_is_read_in_every_form_and_travels_along(message: Message) -> None:
    event = read_event(message, now=NOW, fresh_id="x", max_bytes=1000)
    assert isinstance(event, Event)
    assert event.schema_version == 3
    again = read_event(event_message(event), now=NOW, fresh_id="y", max_bytes=1000)
    assert again == event
