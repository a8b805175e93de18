"""How rows look from outside: public ids, bytes as they are, nothing secret."""

import base64
from datetime import UTC, datetime
from uuid import UUID

import orjson
import pytest

from consumer_api.dead_letters import routing_key
from consumer_api.presentation import (
    Opened,
    ShownSecret,
    dead_letter_with_body_view,
    event_view,
    subscription_view,
)
from infra.store.dead_letters import DeadLetter, DeadLetterRow
from infra.store.history import EventRow
from infra.store.subscriptions import SubscriptionRow
from schemas.events import read_event
from schemas.ids import EVENT, SUBSCRIPTION, event_key, parse_id
from schemas.messages import Message
from schemas.subscription_headers import Header

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
KEY = event_key(1_700_000_000_123, "t", "s", "i")


def _letter(**given: object) -> DeadLetterRow:
    values: dict[str, object] = dict.fromkeys(DeadLetterRow.__dataclass_fields__)
    values |= {"id": UUID(int=1), "kind": "unreadable", "reason": "r", "state": "open", "created_at": NOW}
    return DeadLetterRow(**values | given)  # type: ignore[arg-type]


def test_an_events_data_is_spliced_in_as_it_is() -> None:
    data = b'{"n": 12345678901234567890123,\n "x":1.10}'
    row = EventRow(KEY, "t", "s", "i", "a.b", None, NOW, data, None, NOW, None)
    text = orjson.dumps(event_view(row))
    assert b'"data":' + data in text
    view = orjson.loads(text)
    assert parse_id(EVENT, view["id"]) == KEY
    assert datetime.fromisoformat(view["accepted_at"]).timestamp() == 1_700_000_000.123


@pytest.mark.parametrize(
    ("body", "text"), [(b"plain", "plain"), (b"\xc3\xa9", "é"), (b"\xff", None), (b"", ""), (None, None)]
)
def test_a_body_is_shown_in_base64_and_as_text_when_it_is_text(body: bytes | None, text: str | None) -> None:
    view = dead_letter_with_body_view(DeadLetter(_letter(), body, None))
    assert view["body_text"] == text
    assert (None if view["body_base64"] is None else base64.b64decode(view["body_base64"])) == body


def test_a_subscription_shows_which_headers_it_has_and_no_secret_value() -> None:
    row = SubscriptionRow(
        KEY,
        "t",
        "https://x",
        "",
        ["#"],
        "enabled",
        None,
        15,
        {},
        None,
        None,
        False,
        b"sealed-h",
        b"sealed-s",
        1,
        NOW,
        NOW,
        "open",
        None,
        None,
        0,
    )
    view = subscription_view(
        row,
        Opened(
            {"X-A": Header("hush"), "X-B": Header("b", secret=False)},
            (ShownSecret("v1", None), ShownSecret("v1a", NOW, "whpk_x"), ShownSecret(None, None, None, "new")),
        ),
    )
    assert (view["headers"], view["secrets"]) == (
        {"X-A": "[redacted]", "X-B": {"value": "b", "secret": False}},
        [
            {"id": None, "version": "v1", "expires_at": None},
            {"id": None, "version": "v1a", "expires_at": NOW, "public_key": "whpk_x"},
            {"id": None, "version": None, "expires_at": None, "secret": "new"},
        ],
    )
    assert parse_id(SUBSCRIPTION, view["id"]) == KEY
    assert "sealed" not in repr(view)
    assert "hush" not in repr(view)
    assert "sealed" not in repr(row)
    closed = subscription_view(row, None)
    assert (closed["headers"], closed["secrets"], closed["decryptable"]) == (None, None, False)


@pytest.mark.parametrize(
    ("message", "stored", "key"),
    [
        (Message(b'{"type":"a.b","data":1}'), "events", "a.b"),
        (Message(b"1", type="c"), "events", "c"),
        (Message(b"junk"), "order.created", "order.created"),
        (Message(b"junk"), "no word", "unreadable"),
        (Message(b"junk"), "x" * 300, "unreadable"),
        (Message(b"junk"), None, "unreadable"),
    ],
)
def test_a_message_goes_back_under_its_type_or_the_key_it_came_with(
    message: Message, stored: str | None, key: str
) -> None:
    event = read_event(message, now=NOW, fresh_id="x", max_bytes=1000)
    assert routing_key(event, _letter(routing_key=stored)) == key
