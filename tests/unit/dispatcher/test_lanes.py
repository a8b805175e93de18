"""The work in hand: its bounds, and how many POSTs run at once."""

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from dispatcher.core.settle import Claimed
from dispatcher.lanes import Claim, Lanes


def claim(subscription: UUID, data: bytes = b"{}", *, cycle: int = 0) -> Claim:
    now = datetime(2026, 1, 31, tzinfo=UTC)
    return Claim(uuid7(), uuid7(), subscription, Claimed(cycle, 1, 1), 0.0, "order.created", now, data, None)


def take(lanes: Lanes, one: Claim) -> None:
    lanes.place(one.subscription, len(one.data))
    lanes.take(one)


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_endpoint_has_so_many_posts_at_once_and_the_others_wait_their_turn() -> None:
    lanes = Lanes(max_in_hand=100, max_in_hand_bytes=10_000, endpoint_max_in_flight=2)
    answers = asyncio.Event()
    begun: list[Claim] = []

    async def deliver(one: Claim) -> None:
        begun.append(one)
        await answers.wait()

    lanes.start(deliver)
    slow, other = uuid7(), uuid7()
    claims = [claim(slow) for _ in range(5)]
    for one in (*claims, claim(other)):
        take(lanes, one)
        lanes.submit(one)
    await settle()
    assert [one.subscription for one in begun] == [slow, slow, other]
    answers.set()
    await settle()
    assert [one.delivery for one in begun if one.subscription == slow] == [one.delivery for one in claims]


async def test_a_live_delivery_overtakes_the_replays_that_wait() -> None:
    lanes = Lanes(max_in_hand=100, max_in_hand_bytes=10_000, endpoint_max_in_flight=1)
    answers = asyncio.Event()
    begun: list[Claim] = []

    async def deliver(one: Claim) -> None:
        begun.append(one)
        await answers.wait()

    lanes.start(deliver)
    endpoint = uuid7()
    replays = [claim(endpoint, cycle=1) for _ in range(3)]
    live = [claim(endpoint) for _ in range(2)]
    for some in (replays, live):
        for one in some:
            take(lanes, one)
            lanes.submit(one)
        await settle()
    assert lanes.waiting_of(endpoint) == 4
    answers.set()
    await settle()
    assert begun == [replays[0], *live, *replays[1:]]


async def test_places_and_bytes_are_given_back_when_the_outcome_is_committed() -> None:
    lanes = Lanes(max_in_hand=20, max_in_hand_bytes=100, endpoint_max_in_flight=2)
    one = claim(uuid7(), b"x" * 60)
    take(lanes, one)
    assert (lanes.free, lanes.free_bytes, lanes.in_hand_of(one.subscription)) == (19, 40, 1)
    assert set(lanes.in_hand) == {one.delivery}
    lanes.done(one)
    assert (lanes.free, lanes.free_bytes, lanes.in_hand_of(one.subscription)) == (20, 100, 0)
    assert not lanes.in_hand


@pytest.mark.parametrize(("places", "size_bytes"), [(1, 1), (10, 95)])
async def test_room_is_waited_for(places: int, size_bytes: int) -> None:
    lanes = Lanes(max_in_hand=places, max_in_hand_bytes=100, endpoint_max_in_flight=2)
    one = claim(uuid7(), b"x" * size_bytes)
    take(lanes, one)
    waiting = asyncio.create_task(lanes.room(10))
    await settle()
    assert not waiting.done()
    lanes.done(one)
    await asyncio.wait_for(waiting, 1)


async def test_a_held_endpoint_says_when_it_has_room() -> None:
    lanes = Lanes(max_in_hand=20, max_in_hand_bytes=100, endpoint_max_in_flight=2)
    told: list[UUID] = []
    lanes.on_room = told.append
    one, other = claim(uuid7()), claim(uuid7())
    lanes.held.add(one.subscription)
    for each in (one, other):
        take(lanes, each)
        lanes.done(each)
    assert told == [one.subscription]


async def test_what_waits_is_taken_out_and_what_is_late_is_interrupted() -> None:
    lanes = Lanes(max_in_hand=20, max_in_hand_bytes=100, endpoint_max_in_flight=1)
    interrupted: list[Claim] = []

    async def deliver(one: Claim) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            interrupted.append(one)

    lanes.start(deliver)
    subscription = uuid7()
    first, second = claim(subscription), claim(subscription)
    for one in (first, second):
        take(lanes, one)
        lanes.submit(one)
    await settle()
    assert lanes.take_waiting() == [second]
    await lanes.finish(limit_s=0.01)
    assert interrupted == [first]
