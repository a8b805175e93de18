"""The work in hand: its bounds, and how many POSTs run at once."""

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from dispatcher.core.gate import ATTEMPT, FULL, RESTING
from dispatcher.core.request import Content, Recipe
from dispatcher.core.settle import Claimed
from dispatcher.index import Endpoint
from dispatcher.lanes import Claim, Lanes
from schemas.deliveries import Answered
from schemas.subscriptions import DEFAULT_POLICY
from tests.support.waiting import eventually


def claim(subscription: UUID, data: bytes = b"{}", *, cycle: int = 0) -> Claim:
    now = datetime(2026, 1, 31, tzinfo=UTC)
    return Claim(
        uuid7(), uuid7(), subscription, Claimed(cycle, 1, 1), 0.0, Content("order.created", now, data, "shop", "1")
    )


def take(lanes: Lanes, one: Claim) -> None:
    lanes.place(one.subscription, len(one.content.data))
    lanes.take(one)


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_endpoint_has_so_many_posts_at_once_and_the_others_wait_their_turn() -> None:
    lanes = Lanes(max_in_hand=100, max_in_hand_bytes=10_000, endpoint_max_in_flight=2, first_in_flight=2)
    answers = asyncio.Event()
    begun: list[Claim] = []

    async def deliver(one: Claim) -> bool:
        begun.append(one)
        return await answers.wait()

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


async def test_each_answer_allows_one_more_post_at_once_and_silence_none() -> None:
    lanes = Lanes(max_in_hand=2000, max_in_hand_bytes=100_000, endpoint_max_in_flight=9, first_in_flight=2)
    under_way: list[asyncio.Future[bool]] = []

    async def deliver(_: Claim) -> bool:
        ends: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        under_way.append(ends)
        return await ends

    async def end(count: int, *, answered: bool) -> int:
        """The oldest of them all at once; how many are under way then."""
        for ends in under_way[:count]:
            ends.set_result(answered)
        del under_way[:count]
        await settle()
        return len(under_way)

    lanes.start(deliver)
    endpoint = uuid7()
    for one in [claim(endpoint) for _ in range(100)]:
        take(lanes, one)
        lanes.submit(one)
    await settle()
    assert len(under_way) == 2
    assert await end(2, answered=False) == 2
    assert await end(1, answered=True) == 3
    assert await end(3, answered=True) == 6
    assert await end(1, answered=False) == 6  # it began when fewer were allowed: that takes nothing back
    assert await end(6, answered=True) == 9  # as many as may be
    assert await end(9, answered=False) == 9


async def test_a_live_delivery_overtakes_the_replays_that_wait() -> None:
    lanes = Lanes(max_in_hand=100, max_in_hand_bytes=10_000, endpoint_max_in_flight=1, first_in_flight=1)
    answers = asyncio.Event()
    begun: list[Claim] = []

    async def deliver(one: Claim) -> bool:
        begun.append(one)
        return await answers.wait()

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


def endpoint(key: UUID, url: str = "https://example.com/hook") -> Endpoint:
    return Endpoint(key, "default", url, ("#",), 15, DEFAULT_POLICY, Recipe({}, ()), None, False, None)


def answer(status: int, *, retry_after: str | None = None, took_ms: int = 10) -> Answered:
    return Answered(status, b"", retry_after, took_ms, None)


async def test_an_endpoint_whose_post_gets_no_answer_is_at_its_cap_before_that_ends() -> None:
    """A quick one beside it has its whole share all the while, and it has its own again once its answers are quick."""
    lanes = Lanes(max_in_hand=330, max_in_hand_bytes=10_000, endpoint_max_in_flight=8, first_in_flight=8)
    hanging, quick, url = endpoint(uuid7()), endpoint(uuid7()), "https://example.com/hook"
    attempts = [uuid7() for _ in range(5)]
    for attempt in attempts:
        take(lanes, claim(hanging.id))
        lanes.caps.began(hanging.id, attempt)
    assert lanes.gate(hanging, 2) == ATTEMPT
    assert lanes.room_of(hanging) == 20 - 5

    async def capped() -> bool:
        return lanes.gate(hanging, 2) == FULL

    await eventually(capped)
    assert lanes.room_of(hanging) == 0
    assert (lanes.gate(quick, 2), lanes.room_of(quick)) == (ATTEMPT, 20)
    for attempt in attempts:
        lanes.caps.ended(hanging.id, attempt, url, answer(200))
    assert lanes.gate(hanging, 2) == ATTEMPT


async def test_an_endpoint_that_asks_for_less_gets_fewer_posts_at_once_and_more_again_when_it_is_well() -> None:
    lanes = Lanes(max_in_hand=16_000, max_in_hand_bytes=100_000, endpoint_max_in_flight=8, first_in_flight=8)
    busy, status = uuid7(), 503
    under_way: list[int] = []
    most: list[int] = []

    async def deliver(one: Claim) -> bool:
        attempt = uuid7()
        lanes.caps.began(busy, attempt)
        under_way.append(1)
        most.append(len(under_way))
        await asyncio.sleep(0.001)
        under_way.pop()
        lanes.caps.ended(busy, attempt, "https://example.com/hook", answer(status, took_ms=0))
        return True

    async def send(count: int) -> int:
        most.clear()
        for _ in range(count):
            one = claim(busy)
            take(lanes, one)
            lanes.submit(one)
        await eventually(lambda: done(lanes, busy))
        await lanes.finish(limit_s=10)
        return max(most[-10:])

    lanes.start(deliver)
    assert await send(100) == 1
    assert lanes.room_of(endpoint(busy)) == 0  # 100 in hand: nothing of these was settled
    status = 200
    assert await send(400) == 8


async def done(lanes: Lanes, subscription: UUID) -> bool:
    return lanes.waiting_of(subscription) == 0


async def test_nothing_is_taken_while_a_retry_after_runs_and_a_new_url_begins_anew() -> None:
    lanes = Lanes(max_in_hand=320, max_in_hand_bytes=10_000, endpoint_max_in_flight=8, first_in_flight=8)
    asked, attempt = endpoint(uuid7()), uuid7()
    lanes.caps.began(asked.id, attempt)
    lanes.caps.ended(asked.id, attempt, asked.url, answer(429, retry_after="86400"))
    assert (lanes.gate(asked, 2), lanes.room_of(asked), lanes.caps.rests(asked.id, asked.url)) == (RESTING, 0, True)
    moved = endpoint(asked.id, "https://example.org/")
    assert not lanes.caps.rests(moved.id, moved.url)
    assert (lanes.gate(moved, 2), lanes.room_of(moved)) == (ATTEMPT, 20)


async def test_an_endpoint_that_is_well_costs_no_memory() -> None:
    lanes = Lanes(max_in_hand=320, max_in_hand_bytes=10_000, endpoint_max_in_flight=8, first_in_flight=8)
    one = endpoint(uuid7())
    for status, took_ms in [(200, 10), (500, 10), (404, 10), (200, 700)] + [(200, 10)] * 10:
        attempt = uuid7()
        lanes.caps.began(one.id, attempt)
        lanes.caps.ended(one.id, attempt, one.url, answer(status, took_ms=took_ms))
    assert len(lanes.caps) == 0


async def test_places_and_bytes_are_given_back_when_the_outcome_is_committed() -> None:
    lanes = Lanes(max_in_hand=20, max_in_hand_bytes=100, endpoint_max_in_flight=2, first_in_flight=2)
    one = claim(uuid7(), b"x" * 60)
    take(lanes, one)
    assert (lanes.free, lanes.free_bytes, lanes.in_hand_of(one.subscription)) == (19, 40, 1)
    assert set(lanes.in_hand) == {one.delivery}
    lanes.done(one)
    assert (lanes.free, lanes.free_bytes, lanes.in_hand_of(one.subscription)) == (20, 100, 0)
    assert not lanes.in_hand


@pytest.mark.parametrize(("places", "size_bytes"), [(1, 1), (10, 95)])
async def test_room_is_waited_for(places: int, size_bytes: int) -> None:
    lanes = Lanes(max_in_hand=places, max_in_hand_bytes=100, endpoint_max_in_flight=2, first_in_flight=2)
    one = claim(uuid7(), b"x" * size_bytes)
    take(lanes, one)
    waiting = asyncio.create_task(lanes.room(10))
    await settle()
    assert not waiting.done()
    lanes.done(one)
    await asyncio.wait_for(waiting, 1)


async def test_a_held_endpoint_says_when_it_has_room() -> None:
    lanes = Lanes(max_in_hand=20, max_in_hand_bytes=100, endpoint_max_in_flight=2, first_in_flight=2)
    told: list[UUID] = []
    lanes.on_room = told.append
    one, other = claim(uuid7()), claim(uuid7())
    lanes.held.add(one.subscription)
    for each in (one, other):
        take(lanes, each)
        lanes.done(each)
    assert told == [one.subscription]


async def test_what_waits_is_taken_out_and_what_is_late_is_interrupted() -> None:
    lanes = Lanes(max_in_hand=20, max_in_hand_bytes=100, endpoint_max_in_flight=1, first_in_flight=1)
    interrupted: list[Claim] = []

    async def deliver(one: Claim) -> bool:
        try:
            return await asyncio.Event().wait()
        except asyncio.CancelledError:
            interrupted.append(one)
            return False

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
