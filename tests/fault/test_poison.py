"""Messages that are no events, mixed one in three with good ones: these flow, those end in the dead letters, each once.

What kills the process that handles it is in `test_lethal.py`.
"""

import asyncio
import base64
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import aio_pika
import pytest

from infra.broker.base import Broker, Outgoing, ToDead, ToEvents
from infra.broker.postgres import PostgresBroker
from infra.broker.rabbitmq import RabbitBroker
from schemas.errors import BrokerError, PublishRefused
from schemas.messages import Message
from tests.support.accounting import Accounting
from tests.support.points import Moment, Point, Step, trap
from tests.support.receivers import Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually

MAX_EVENT_BYTES = 4096
CLOUD = {"cloudEvents_specversion": "1.0", "cloudEvents_type": "order.created"}
CLOUD_JSON = "application/cloudevents+json"


def plain(members: bytes) -> Message:
    """A plain JSON object that is an event but for what these members say."""
    return Message(b'{"type": "order.created", "data": {}, %b}' % members)


# What an AMQP client may send that is no event, and how the reason begins.
KINDS: Mapping[str, tuple[Message, str]] = {
    "no JSON": (Message(b"order 17 was created", type="order.created"), "body: must be JSON"),
    "nothing": (Message(b""), "body: must be JSON"),
    "binary": (Message(bytes(range(256)), type="order.created"), "body: must be JSON in UTF-8"),
    "invalid UTF-8 within": (Message(b'{"type": "a.b", "data": "\xff\xfe"}'), "body: must be JSON in UTF-8"),
    "half a surrogate pair": (Message(b'{"type": "a.b", "data": "\\ud800"}'), "body: must be JSON"),
    "a byte order mark": (Message(b'\xef\xbb\xbf{"type": "a.b", "data": 1}'), "body: must be JSON"),
    "two values": (Message(b'{"type": "a.b", "data": 1}{}'), "body: must be JSON"),
    "cut off": (Message(b'{"type": "a.b", "data": {"n": '), "body: must be JSON"),
    "not a number": (Message(b'{"type": "a.b", "data": NaN}'), "body: must be JSON"),
    "an array": (Message(b"[1, 2, 3]"), "type: is required"),
    "a string": (Message(b'"order.created"'), "type: is required"),
    "null": (Message(b"null"), "type: is required"),
    "no type": (Message(b'{"data": {"n": 1}}'), "type: is required"),
    "no data": (Message(b'{"type": "order.created"}'), "data: is required"),
    "members that belong into data": (plain(b'"amount": 1'), "body: must not have a member 'amount'"),
    "a type that is a list": (Message(b'{"type": ["a.b"], "data": 1}'), "type: must be a string"),
    "a type that is no topic": (Message(b'{"type": "order created", "data": 1}'), "type: must be words"),
    "a type that is too long": (Message(b'{"type": "%b", "data": 1}' % (b"a" * 201)), "type: must be words"),
    "an id that is an object": (plain(b'"id": {"n": 1}'), "id: must be a string"),
    "an id with a NUL": (plain(b'"id": "a\\u0000b"'), "id: must be 1 to 512 bytes of text without control"),
    "an id that is too long": (plain(b'"id": "%b"' % (b"x" * 513)), "id: must be 1 to 512 bytes"),
    "a source with a line break": (plain(b'"source": "a\\nb"'), "source: must be 1 to 512 bytes"),
    "a subject that is too long": (plain(b'"subject": "%b"' % (b"x" * 1025)), "subject: must be 1 to 1024 bytes"),
    "a tenant that is a path": (plain(b'"tenant": "../x"'), "tenant: must be 1 to 64 letters"),
    "a time that is a number": (plain(b'"time": 1700000000'), "time: must be a time of RFC 3339"),
    "a time without a zone": (plain(b'"time": "2026-01-31T12:00:00"'), "time: must be a time of RFC 3339"),
    "nested too deep": (plain(b'"subject": ' + b"[" * 1900 + b"]" * 1900), "body: must be JSON that is nested at most"),
    "too large": (Message(b'{"type": "a.b", "data": "%b"}' % (b"x" * MAX_EVENT_BYTES)), "body: must be at most 4096"),
    "another version of CloudEvents": (
        Message(b"{}", headers={**CLOUD, "cloudEvents_specversion": "0.3"}),
        'specversion: must be "1.0"',
    ),
    "a CloudEvent without a version": (Message(b"{}", headers={"cloudEvents:type": "a.b"}), "specversion: must be"),
    "a CloudEvent without a type": (Message(b"{}", headers={"cloudEvents:specversion": "1.0"}), "type: is required"),
    "a CloudEvent of bytes": (Message(b"{}", headers={**CLOUD, "cloudEvents_id": b"\xff"}), "id: must be text"),
    "a CloudEvent of XML": (
        Message(b"<a/>", headers=CLOUD, content_type="application/xml"),
        "content_type: must be application/json",
    ),
    "a CloudEvent in base64": (
        Message(b'{"specversion": "1.0", "type": "a.b", "data_base64": "AA=="}', content_type=CLOUD_JSON),
        "data_base64: is not supported",
    ),
    "a batch of CloudEvents": (
        Message(b"[]", content_type="application/cloudevents-batch+json"),
        "content_type: must be application/cloudevents+json",
    ),
    "a structured CloudEvent that is none": (Message(b"7", content_type=CLOUD_JSON), "body: must be"),
}
# What only another client than ours can send: headers that ours would refuse, or has no type for.
FOREIGN: Mapping[str, tuple[bytes, Mapping[str, Any], str]] = {
    "a type that is a table": (b"{}", {**CLOUD, "cloudEvents_type": {"a": ["b", {}]}}, "type: must be words"),
    "a version that is a number": (b"{}", {"cloudEvents:specversion": 1.5}, 'specversion: must be "1.0"'),
    "a header with a NUL": (b"{}", {**CLOUD, "cloudEvents_id": "a\x00b"}, "id: must be 1 to 512"),
    "headers that fill their frame": (b"no JSON", {"x": "x" * 129_000}, "body: must be JSON"),
    "headers that mimic a broker's": (b"no JSON", {"x-death": "x", "x-delivery-count": 99, "CC": []}, "body: must be"),
}


def good(number: int) -> Message:
    return Message(b'{"type": "order.created", "data": {"n": %d}, "id": "good-%d"}' % (number, number))


def one_in_three(bad: Sequence[Message]) -> list[Message]:
    """Each bad one between two good ones, numbered from 0."""
    pairs = [(good(2 * number), one, good(2 * number + 1)) for number, one in enumerate(bad)]
    return [message for pair in pairs for message in pair]


async def publish(broker: Broker, messages: Sequence[Message]) -> None:
    errors = await broker.publish_many([Outgoing(ToEvents("order.created"), one) for one in messages], timeout_s=30)
    assert set(errors) <= {None}


async def publish_foreign(system: System) -> list[tuple[bytes, str]]:
    """By another client, where there can be one; their bodies and how the reasons begin."""
    if not system.broker_url.startswith("amqp"):
        return []
    async with await aio_pika.connect(system.broker_url) as connection:
        exchange = await (await connection.channel()).get_exchange("hookhare.events")
        for body, headers, _ in FOREIGN.values():
            await exchange.publish(aio_pika.Message(body, headers=dict(headers)), "order.created")
    return [(body, reason) for body, _, reason in FOREIGN.values()]


async def test_each_kind_ends_in_the_dead_letters_once_and_each_good_event_is_delivered_once(
    system: System, api: Api, receiver: Receiver
) -> None:
    """With a reason for a person and the exact bytes, as the API shows them too."""
    hook = receiver.url("/hook")
    await api.subscribe(hook)
    books = Accounting(system, [receiver])
    bad = [message for message, _ in KINDS.values()]
    async with system.dispatcher(max_event_bytes=MAX_EVENT_BYTES), system.broker() as broker:
        await publish(broker, one_in_three(bad))
        foreign = await publish_foreign(system)
        for number in range(2 * len(bad)):
            books.published(f"good-{number}", hook)
        expected = [(message.body, reason) for message, reason in KINDS.values()] + foreign
        for body, _ in expected:
            books.buried("unreadable", body)
        await books.settled(deadline_s=30)
        shown = [await api.call("GET", f"/v1/dead-letters/{one['id']}") for one in await api.all("/v1/dead-letters")]
    await books.check()
    assert len(receiver.requests) == 2 * len(bad)
    told = sorted((base64.b64decode(one["body_base64"]), one["reason"]) for one in shown)
    for (body, reason), (expected_body, beginning) in zip(told, sorted(expected), strict=True):
        assert body == expected_body
        assert reason.startswith(beginning), (body[:100], reason)
        assert re.fullmatch(r"[ -~]{10,200}", reason), reason


async def test_good_events_do_not_wait_for_the_burial_of_bad_ones(system: System, api: Api, receiver: Receiver) -> None:
    """No dead letter is confirmed until every good event of a stream far longer than the prefetch is delivered."""
    await api.subscribe(receiver.url("/hook"))
    prefetch = 200
    bad = [Message(b"poison %d" % number) for number in range(prefetch - 1)]
    let_go = asyncio.Event()

    async def wait() -> None:
        await let_go.wait()

    held = trap(Point(Moment.BEFORE, Step.PUBLISH, "ToDead"), wait, every=True)
    with held as burials:
        async with system.dispatcher(prefetch=prefetch, batch_rows=10), system.broker() as broker:
            await publish(broker, one_in_three(bad))
            await system.settled({"delivered": 2 * len(bad)}, deadline_s=60)
            assert burials.seen > 0
            assert await letters(system) == []
            let_go.set()
            await eventually(lambda: kept(system, [one.body for one in bad]), deadline_s=60)
    assert len(receiver.requests) == 2 * len(bad)


async def test_what_waits_for_its_burial_is_bounded_by_the_prefetch(
    system: System, api: Api, receiver: Receiver
) -> None:
    await api.subscribe(receiver.url("/hook"))
    prefetch = 10
    bad = [Message(b"poison %d" % number) for number in range(5 * prefetch)]
    async with system.dispatcher(prefetch=prefetch, batch_rows=10), system.broker() as broker:
        with gate() as burials:
            await publish(broker, [*bad, good(1)])

            async def full() -> bool:
                return burials.waiting == prefetch

            await eventually(full)
            burials.open.set()
            await system.settled({"delivered": 1}, deadline_s=60)
            await eventually(lambda: kept(system, [one.body for one in bad]), deadline_s=60)
        assert burials.most == prefetch


async def test_a_broker_that_refuses_dead_letters_holds_up_no_good_event(
    system: System, api: Api, receiver: Receiver
) -> None:
    """As RabbitMQ does in an alarm. What is bad is kept and tried again; given back, it would come alone in the end."""
    await api.subscribe(receiver.url("/hook"))
    async with system.dispatcher(), system.broker() as broker:
        with gate() as burials:
            burials.refusal = PublishRefused("an alarm")
            burials.open.set()
            await publish(broker, [Message(b"poison")])
            await eventually(lambda: refused(burials, 5), deadline_s=60)  # a suspect is what came back three times
            await publish(broker, [good(number) for number in range(100)])
            await system.settled({"delivered": 100})
            burials.refusal = None
            await eventually(lambda: kept(system, [b"poison"]))


class Gate:
    """Before the publish of dead letters, in this process: they wait until it is open, and may be refused then."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.refusal: BrokerError | None = None
        self.refused = 0
        self.waiting = 0
        self.most = 0

    def around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        async def publish_many(broker: object, outgoing: Sequence[Outgoing], **options: Any) -> Any:
            if not all(isinstance(one.to, ToDead) for one in outgoing):
                return await original(broker, outgoing, **options)
            self.waiting += len(outgoing)
            self.most = max(self.most, self.waiting)
            try:
                await self.open.wait()
                if self.refusal is not None:
                    self.refused += 1
                    return [self.refusal] * len(outgoing)
                return await original(broker, outgoing, **options)
            finally:
                self.waiting -= len(outgoing)

        return publish_many


@contextmanager
def gate() -> Iterator[Gate]:
    one = Gate()
    with pytest.MonkeyPatch.context() as patch:
        for broker in (RabbitBroker, PostgresBroker):
            patch.setattr(broker, "publish_many", one.around(broker.publish_many))
        yield one


async def refused(burials: Gate, times: int) -> bool:
    return burials.refused >= times


async def letters(system: System) -> list[bytes]:
    return sorted([row["body"] for row in await system.fetch("SELECT body FROM dead_letters")])


async def kept(system: System, bodies: Sequence[bytes]) -> bool:
    return await letters(system) == sorted(bodies)
