"""The broker loses everything, again and again: what was admitted is finished all the same, and it is told."""

import asyncio
import itertools
import re
from collections import Counter
from contextlib import ExitStack

import aiohttp
import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from dispatcher.bootstrap import Dispatcher
from schemas.errors import BrokerError
from tests.support.accounting import Accounting
from tests.support.books import in_queues
from tests.support.points import Moment, Point, Step, Trap, trap
from tests.support.rabbitmq import delete_topology
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually

EVENTS = 10
numbers = itertools.count()


async def wipe(system: System) -> None:
    if system.broker_url.startswith("amqp"):
        await delete_topology(system.broker_url)
    else:
        await system.fetch("DELETE FROM queue_messages")


async def test_what_is_pending_held_retrying_unacked_or_dead_and_untold_is_finished(
    system: System, api: Api, receiver: Receiver
) -> None:
    """Wiped three times: with work items on the ladder, before an event's ack, before a dead letter is published."""
    answers = asyncio.Event()
    retries = receiver.behave("/retries", Behaviour(fail_first=EVENTS))
    held = receiver.behave("/held", Behaviour(hold=answers))
    dies = receiver.behave("/dies", Behaviour(status=500))
    await api.subscribe(retries, "order.created", retry_policy={"delays_s": [6.0] * 5})
    await api.subscribe(held, "order.#", timeout_s=60)
    await api.subscribe(dies, "order.canceled", retry_policy={"delays_s": []})
    books = Accounting(system, [receiver])
    with structlog.testing.capture_logs() as logs, ExitStack() as traps:
        async with system.dispatcher(max_in_hand=80, reconcile_grace_s=1) as dispatcher:
            await publish(system, books, EVENTS, "order.created", retries, held)
            await eventually(lambda: in_every_state(system), system.statuses)
            assert sum((await in_queues(system)).values()) >= EVENTS  # the work items
            await wipe(system)
            before_ack = Point(Moment.BEFORE, Step.ACK, "hookhare.events")
            before_letter = Point(Moment.BEFORE, Step.PUBLISH, "ToDead")
            wiped = [traps.enter_context(trap(point, lambda: wipe(system))) for point in (before_ack, before_letter)]
            await publish(system, books, 1, "order.canceled", dies, held)
            await sprung(*wiped)
            answers.set()
            await books.settled()
            # Publishing goes on too, once a dispatcher has declared the queues again.
            await publish(system, books, 1, "order.created", retries, held)
            await books.settled()
            await books.check()
            counted = await reconciled(dispatcher)
    expected = {"overdue_retries": EVENTS}
    if system.broker_url.startswith("amqp"):  # the embedded broker has nothing that could be missing at a publish
        expected["dead_letters"] = 1
    told: Counter[str] = Counter()
    for one in logs:
        if one["event"] == "reconciled":
            told[one["what"]] += one["number"]
    assert (told | expected, counted | expected) == (told, counted)


async def publish(system: System, books: Accounting, count: int, event_type: str, *urls: str) -> None:
    """Publish events that these endpoints have to get; a broker that has just lost its queues is asked again."""
    async with system.publisher() as publisher:
        for _ in range(count):
            external_id = f"order-{next(numbers)}"
            again = AsyncRetrying(
                stop=stop_after_delay(120), wait=wait_fixed(0.1), retry=retry_if_exception_type(BrokerError)
            )
            async for attempt in again:
                with attempt:
                    await publisher.publish(event_type, {}, id=external_id)
            books.published(external_id, *urls)


async def in_every_state(system: System) -> bool:
    """What `/retries` should have got waits on the ladder; of the other's, some hang and some are held."""
    number = await system.statuses()
    waiting = number.get("held", 0), number.get("pending", 0)
    return number.get("retrying") == EVENTS and all(waiting) and sum(waiting) == EVENTS


async def sprung(*traps: Trap) -> None:
    async with asyncio.timeout(30):
        for one in traps:
            await one.sprung.wait()


async def reconciled(dispatcher: Dispatcher) -> dict[str, int]:
    """The counter, as Prometheus would read it."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{dispatcher.port}/metrics") as answer,
    ):
        text = await answer.text()
    found = re.findall(r'^hookhare_reconciled_total\{[^}]*what="(\w+)"[^}]*\} (\d+)', text, re.MULTILINE)
    return {what: int(number) for what, number in found}
