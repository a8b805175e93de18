"""Dead letters: replayed or discarded once, and messages that come back as they were."""

import asyncio
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from uuid_utils.compat import uuid7

from infra.store import dead_letters
from infra.store.dead_letters import DeadLetter, DeadLetterFilter, DeadLetterRow, pack_properties, unpack_message
from infra.store.outcomes import Missing, Refused
from infra.store.store import Store
from schemas.messages import HeaderValue, Message
from tests.support import rows

AWKWARD = Message(
    body=b"\x00\xff not text",
    headers={"cloudEvents_id": "1\x002", "n\x00me": 7, "raw": b"\xff", "none": None, "yes": True, "lone": "\udcff"},
    content_type="application/json",
    message_id="m\x001",
    type="order.created",
    timestamp=datetime(2026, 1, 31, 12, tzinfo=UTC),
    app_id="shop",
)


async def test_a_message_comes_back_from_the_database_as_it_was(store: Store) -> None:
    async with store.transaction() as conn:
        key = await rows.add_message_letter(conn, body=AWKWARD.body, headers=pack_properties(AWKWARD))
        letter = await dead_letters.get(conn, key)
    assert isinstance(letter, DeadLetter)
    assert letter.body is not None
    assert letter.properties is not None
    assert unpack_message(letter.body, letter.properties) == AWKWARD


async def test_the_body_of_a_deliverys_dead_letter_is_its_events_data(store: Store) -> None:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        event = await rows.add_event(conn, data=b'{"n":12345678901234567890123}')
        key = await rows.add_delivery(conn, subscription, "dead", event=event)
        (row,) = await rows.letters(conn, key)
        letter = await dead_letters.get(conn, row["id"])
        assert isinstance(letter, DeadLetter)
        assert letter.body == b'{"n":12345678901234567890123}'
        await conn.execute("DELETE FROM events")
        letter = await dead_letters.get(conn, row["id"])
        assert isinstance(letter, DeadLetter)
        assert letter.body is None


async def test_replaying_a_deliverys_dead_letter_replays_the_delivery(store: Store) -> None:
    async with store.transaction() as conn:
        key = await rows.add_delivery(conn, (await rows.add_subscription(conn)).id, "dead")
        (stored,) = await rows.letters(conn, key)
        letter = await dead_letters.get(conn, stored["id"])
        assert isinstance(letter, DeadLetter)
        row = await dead_letters.replay_delivery(conn, letter.row)
        assert isinstance(row, DeadLetterRow)
        assert row.state == "replayed"
        assert (await rows.delivery(conn, key))["status"] == "held"
        assert await dead_letters.replay_delivery(conn, row) == Refused("the dead letter was replayed already")


async def test_a_dead_letter_whose_delivery_is_not_replayable_stays_open(store: Store) -> None:
    async with store.transaction() as conn:
        key = await rows.add_delivery(conn, (await rows.add_subscription(conn)).id, "dead")
        await conn.execute("UPDATE subscriptions SET state = 'paused'")
        (stored,) = await rows.letters(conn, key)
        letter = await dead_letters.get(conn, stored["id"])
        assert isinstance(letter, DeadLetter)
        why = await dead_letters.replay_delivery(conn, letter.row)
        assert isinstance(why, Refused)
        assert "paused" in why.reason
        assert (await rows.letters(conn, key))[0]["state"] == "open"


async def test_a_message_is_locked_by_one_who_replays_it_and_refused_to_the_other(store: Store) -> None:
    async with store.transaction() as conn:
        key = await rows.add_message_letter(conn, identity="of its bytes")
    async with store.transaction() as one:
        assert isinstance(await dead_letters.lock_message(one, key), DeadLetter)
        async with asyncio.timeout(2), store.transaction() as two:
            why = await dead_letters.lock_message(two, key)
            assert why == Refused("the dead letter is being replayed or discarded just now")
        assert (await dead_letters.mark_replayed(one, key, None)).state == "replayed"
    async with store.transaction() as conn:  # it comes back, as what it was
        assert await conn.fetchval("SELECT identity FROM dead_letters WHERE id = $1", key) is None
    async with store.transaction() as conn:
        assert await dead_letters.lock_message(conn, key) == Refused("the dead letter was replayed already")
        assert await dead_letters.lock_message(conn, uuid7()) == Missing()


async def test_a_dead_letter_is_discarded_once(store: Store) -> None:
    async with store.transaction() as conn:
        key = await rows.add_message_letter(conn)
        row = await dead_letters.discard(conn, key)
        assert isinstance(row, DeadLetterRow)
        assert row.state == "discarded"
        assert row.settled_at is not None
        assert await dead_letters.discard(conn, key) == Refused("the dead letter was discarded already")
        assert await dead_letters.lock_message(conn, key) == Refused("the dead letter was discarded already")
        assert await dead_letters.discard(conn, uuid7()) == Missing()


async def test_lists_filter_by_what_is_known_of_a_dead_letter(store: Store) -> None:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        key = await rows.add_delivery(conn, subscription, "dead", tenant="acme")
        unreadable = await rows.add_message_letter(conn)
        await dead_letters.discard(conn, unreadable)
        event = (await rows.delivery(conn, key))["event_id"]
        ofs = [
            DeadLetterFilter(kind="delivery"),
            DeadLetterFilter(state="open"),
            DeadLetterFilter(tenant="acme"),
            DeadLetterFilter(subscription_id=subscription),
            DeadLetterFilter(delivery_id=key),
            DeadLetterFilter(event_id=event),
        ]
        for wanted in ofs:
            page = await dead_letters.list_page(conn, wanted, after=None, limit=9)
            assert [row.delivery_id for row in page.rows] == [key], wanted
        page = await dead_letters.list_page(conn, DeadLetterFilter(), after=None, limit=9)
        assert len(page.rows) == 2


_text = st.text(st.characters(exclude_categories=()), max_size=8)
_values: st.SearchStrategy[HeaderValue] = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=8), _text
)


@given(headers=st.dictionaries(_text, _values, max_size=4), name=st.none() | _text)
def test_any_message_survives_packing_as_json(headers: dict[str, HeaderValue], name: str | None) -> None:
    import orjson

    message = Message(b"", headers, content_type=name, message_id=name, type=name, app_id=name)
    packed = orjson.dumps(pack_properties(message))
    assert b"\\u0000" not in packed
    assert unpack_message(b"", orjson.loads(packed)) == message
