"""A deadline does what `asyncio.timeout` does, a moment later."""

import asyncio
from time import monotonic

import pytest

from infra.deadlines import TICK_S, Deadlines


async def test_a_block_that_takes_longer_ends_by_a_timeout() -> None:
    deadline = Deadlines().within(0.05)
    began_s = monotonic()
    with pytest.raises(TimeoutError), deadline:
        await asyncio.sleep(30)
    assert deadline.has_passed
    assert monotonic() - began_s >= 0.05
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_each_ends_by_its_own() -> None:
    deadlines = Deadlines()
    ended: list[float] = []

    async def wait(timeout_s: float) -> None:
        with pytest.raises(TimeoutError), deadlines.within(timeout_s):
            await asyncio.sleep(30)
        ended.append(timeout_s)

    async with asyncio.timeout(10):
        await asyncio.gather(wait(0.3), wait(0.1), wait(0.2))
    assert ended == [0.1, 0.2, 0.3]


async def test_a_later_one_is_looked_at_after_all_have_ended() -> None:
    deadlines = Deadlines()
    with deadlines.within(30):
        pass
    await asyncio.sleep(2 * TICK_S)
    with pytest.raises(TimeoutError), deadlines.within(0):
        await asyncio.sleep(30)


async def test_what_ends_in_time_leaves_the_task_alone() -> None:
    deadline = Deadlines().within(0)
    with deadline:
        pass
    await asyncio.sleep(2 * TICK_S)
    assert not deadline.has_passed


async def test_an_error_of_the_block_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="of the block"), Deadlines().within(30):
        raise ValueError("of the block")


async def test_one_that_comes_of_being_late_does_too() -> None:
    async def end_badly() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            raise ValueError("while it ended")

    deadline = Deadlines().within(0)
    with pytest.raises(ValueError, match="while it ended"), deadline:
        await end_badly()
    assert deadline.has_passed
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_who_is_canceled_meanwhile_leaves_as_canceled() -> None:
    async def wait() -> None:
        with Deadlines().within(0):
            try:
                await asyncio.sleep(30)
            finally:
                task.cancel()

    task = asyncio.create_task(wait())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_is_canceled_before_it_is_canceled() -> None:
    deadline = Deadlines().within(30)

    async def wait() -> None:
        with deadline:
            await asyncio.sleep(30)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not deadline.has_passed


async def test_who_was_canceled_long_before_may_be_late() -> None:
    late: list[bool] = []

    async def go_on() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            try:
                with Deadlines().within(0):
                    await asyncio.sleep(30)
            except TimeoutError:
                late.append(True)

    task = asyncio.create_task(go_on())
    await asyncio.sleep(0)
    task.cancel()
    await task
    assert late
