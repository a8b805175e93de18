"""The keeper: what each message at the dead letters becomes, and that it is stored once."""

import asyncio
from collections.abc import Sequence

import pytest

from dispatcher.keeper import Keeper
from infra.broker.base import Queue, Received
from infra.store.store import Store
from infra.telemetry import Telemetry
from schemas.messages import Message
from tests.support.waiting import eventually


class Handed:
    """A consumer with these messages, and nothing after them."""

    def __init__(self, *messages: Received) -> None:
        self._messages = list(messages)
        self.acked: list[Received] = []

    async def receive(self, limit: int) -> Sequence[Received]:
        if not self._messages:
            await asyncio.Event().wait()
        taken, self._messages = self._messages[:limit], self._messages[limit:]
        return taken

    async def ack(self, received: Sequence[Received]) -> None:
        self.acked += received

    async def release(self, received: Sequence[Received]) -> None:
        raise AssertionError("the keeper keeps")

    def holds(self, received: Received) -> bool:
        return received not in self.acked


def letter(key: str, dead_lettered_from: str | None = None, **headers: str) -> Received:
    message = Message(b"\x00\xff bytes", headers=headers, message_id=f"id-{key}")
    return Received(message, key, 0, redelivered=False, dead_lettered_from=dead_lettered_from, token=None)


async def keep(store: Store, telemetry: Telemetry, queue: Queue, *messages: Received) -> list[tuple[str, str, bytes]]:
    handed = Handed(*messages)
    task = asyncio.create_task(Keeper(store, telemetry).run(handed, queue))

    async def all_acked() -> bool:
        return len(handed.acked) == len(messages)

    await eventually(all_acked)
    task.cancel()
    async with store.connection() as connection:
        rows = await connection.fetch("SELECT kind, reason, body FROM dead_letters")
    return [(row["kind"], row["reason"], row["body"]) for row in rows]


@pytest.mark.parametrize(
    ("queue", "received", "kind", "reason"),
    [
        (Queue.DEAD_LETTERS, letter("unreadable", **{"hookhare-reason": "type: is required"}), "unreadable", "type: "),
        (Queue.DEAD_LETTERS, letter("events", "hookhare.events"), "over_delivery_limit", "it came back more often"),
        (Queue.DEAD_LETTERS, letter("anything"), "unreadable", "dead-lettered without a reason"),
        (Queue.UNROUTED, letter("events"), "unroutable", "the broker had no queue for the routing key 'events'"),
    ],
)
async def test_it_becomes_a_row_with_its_reason_and_bytes(
    store: Store, telemetry: Telemetry, queue: Queue, received: Received, kind: str, reason: str
) -> None:
    ((found_kind, found_reason, body),) = await keep(store, telemetry, queue, received)
    assert found_kind == kind
    assert found_reason.startswith(reason)
    assert body == received.message.body


@pytest.mark.parametrize("received", [letter("work", "hookhare.work"), letter("delivery")])
async def test_what_a_deliverys_row_speaks_for_is_acked_and_dropped(
    store: Store, telemetry: Telemetry, received: Received
) -> None:
    assert await keep(store, telemetry, Queue.DEAD_LETTERS, received) == []


async def test_a_letter_that_comes_twice_is_kept_once(store: Store, telemetry: Telemetry) -> None:
    twice = [letter("unreadable"), letter("unreadable")]
    assert len(await keep(store, telemetry, Queue.DEAD_LETTERS, *twice)) == 1
