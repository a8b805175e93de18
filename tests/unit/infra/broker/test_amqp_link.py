"""How aiormq's errors, and its cancellations, come out of it."""

import asyncio

import pytest
from aiormq.exceptions import AMQPConnectionError, ChannelInvalidStateError

from infra.broker.amqp_link import amqp_faults, end
from schemas.errors import BrokerUnavailable


@pytest.mark.parametrize(
    "error",
    [
        AMQPConnectionError("gone"),
        ChannelInvalidStateError("closed"),
        ConnectionResetError("reset"),
        TimeoutError(),
        StopAsyncIteration(),  # the peer had hung up before it was heard for the first time
        asyncio.CancelledError(),  # which nobody asked for: aiormq's way to end those who wait for a dead connection
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_fault_is_an_unavailable_broker_that_says_what_was_being_done(error: BaseException) -> None:
    with pytest.raises(BrokerUnavailable, match=r"^doing this: .+") as caught, amqp_faults("doing this"):
        raise error
    assert caught.value.__cause__ is error


async def test_a_cancellation_stays_one() -> None:
    async def work() -> None:
        with amqp_faults("doing this"):
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("fault", [None, AMQPConnectionError("gone"), TimeoutError()], ids=repr)
async def test_a_cancellation_that_is_swallowed_or_changed_below_still_is_one(fault: Exception | None) -> None:
    async def swallow() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if fault is not None:
                raise fault from None

    went_on = False

    async def work() -> None:
        nonlocal went_on
        with amqp_faults("doing this"):
            await swallow()
        went_on = True

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not went_on


async def test_an_error_of_ours_comes_through_as_it_is() -> None:
    with pytest.raises(KeyError), amqp_faults("doing this"):
        raise KeyError


async def test_ending_a_task_waits_until_it_is_over() -> None:
    over = False

    async def work() -> None:
        nonlocal over
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            over = True

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await end(task)
    assert over
    await end(task)  # and again does nothing
