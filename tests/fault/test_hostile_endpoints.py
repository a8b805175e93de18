"""Slow and hostile endpoints, all of them at once, from a published event to what the API says of each attempt.

One dispatcher in a process of its own delivers to all of them and to a healthy one. Which broker brought the events
does not matter here.
"""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

import dispatcher.bootstrap
from infra.egress import open_egress
from producer.events import NewEvent
from tests.support import hostile as scripts
from tests.support.hostile import Hostile, Script, hostile
from tests.support.memory import watch_memory
from tests.support.nameserver import SILENCE, name_server
from tests.support.receivers import Receiver
from tests.support.system import Api, DispatcherProcess, System

EVENTS: Final = 6  # to each endpoint, so that six of each misbehave at the same time
HEALTHY_EVENTS: Final = 300
LATE_MS: Final = 30_000  # the deadline is a second, or 15; what does not keep to it hangs for good
ONCE: Final[dict[str, list[float]]] = {"delays_s": []}
# A response may keep about a megabyte of a dispatcher (infra/response_guard.py), and most keep a few kilobytes. One
# bomb unpacked is 100 MB, and each of the endless answers is as much in a fraction of a second.
GROWTH_BYTES: Final = 48 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Told:
    """What the API tells of an attempt; `{port}` stands for the endpoint's."""

    outcome: str
    status_code: int | None = None
    failure: str | None = None
    reason: str | None = None


def late(reason: str) -> Told:
    return Told("dead", failure="timeout", reason=reason)


def no_http(reason: str) -> Told:
    return Told("dead", failure="invalid_response", reason=reason)


async def drips_a_byte_a_second(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, scripts.HEAD + b"Content-Length: 1000000\r\n\r\n")
    while True:
        await it.send(writer, b"x")
        await asyncio.sleep(1)


NEVER_ANSWERED: Final = "no answer came from 127.0.0.1:{port} within 1 s"
CUT: Final = "the connection ended within the answer (status 200)"
DELIVERED: Final = Told("delivered", 200)  # it said 200; the rest of its body is nobody's business

ENDPOINTS: Final[Mapping[str, tuple[Script, Told]]] = {
    "drips a byte a second": (drips_a_byte_a_second, late("the answer (status 200) did not end within 1 s")),
    "drips a head": (scripts.drips_its_head, late(NEVER_ANSWERED)),
    "hangs after accept": (scripts.accepts_and_hangs, late(NEVER_ANSWERED)),
    "never reads": (scripts.never_reads, late(NEVER_ANSWERED)),
    "an endless body": (scripts.sends_a_body_without_end, DELIVERED),
    "10 GB announced": (scripts.announces_ten_gigabytes, DELIVERED),
    "a gzip bomb": (scripts.sends_a_compressed_bomb, DELIVERED),
    "endless headers": (
        scripts.sends_headers_without_end,
        no_http("the endpoint's answer is not HTTP: Too many headers received"),
    ),
    "one endless header": (
        scripts.sends_one_header_without_end,
        no_http("the endpoint's answer is not HTTP: Got more than 8190 bytes"),
    ),
    "endless interim answers": (
        scripts.sends_interim_answers_without_end,
        no_http("the endpoint sent many answers to one request"),
    ),
    "invalid HTTP": (scripts.speaks_no_http, no_http("the endpoint's answer is not HTTP: ")),
    "reset within the body": (scripts.resets_within_its_body, Told("dead", failure="disconnected", reason=CUT)),
    "a redirect loop": (scripts.redirects_to_itself, Told("dead", 307, reason="the endpoint answered 307")),
}
TLS: Final = "TLS that never finishes"
NAME: Final = "a name that never resolves"


def ask_name_server(where: str) -> None:
    """In the dispatcher's process: names are looked up at the test's own name server."""
    patch = pytest.MonkeyPatch()
    patch.setattr(dispatcher.bootstrap, "open_egress", partial(open_egress, nameservers=[where]))


@asynccontextmanager
async def endpoints(api: Api) -> AsyncIterator[dict[str, tuple[dict[str, Any], Told]]]:
    """All of them, listening and subscribed, by name: the subscription, and what is to be told of each attempt."""
    made: dict[str, tuple[dict[str, Any], Told]] = {}

    async def subscribe(name: str, url: str, told: Told) -> None:
        # What ends by itself has the time that it takes, on a machine that does other things besides.
        timeout_s = 1 if told.failure == "timeout" else 15
        subscription = await api.subscribe(url, "hostile", timeout_s=timeout_s, retry_policy=ONCE)
        made[name] = (subscription, told)

    async with AsyncExitStack() as stack:
        for name, (script, told) in ENDPOINTS.items():
            server = await stack.enter_async_context(hostile(script))
            reason = told.reason and told.reason.format(port=server.port)
            await subscribe(name, server.url(), Told(told.outcome, told.status_code, told.failure, reason))
        deaf = await stack.enter_async_context(hostile(scripts.accepts_and_hangs))
        where = f"127.0.0.1 at 127.0.0.1:{deaf.port}"
        reason = f"TLS with {where} did not finish its handshake within 1 s"
        await subscribe(TLS, f"https://127.0.0.1:{deaf.port}/", late(reason))
        await subscribe(NAME, "http://silent.test/", late("the look-up of silent.test got no answer within 1 s"))
        yield made


async def test_each_ends_in_time_and_is_explained_while_a_healthy_one_gets_all_of_its_events(
    database_url: str, receiver: Receiver, tmp_path: Path
) -> None:
    scripts.bomb()
    system = System(database_url, database_url)
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(system.api())
        names = await stack.enter_async_context(name_server({"silent.test": SILENCE}))
        hostiles = await stack.enter_async_context(endpoints(api))
        await api.subscribe(receiver.url("/healthy"), "healthy")
        dispatcher = DispatcherProcess(system, tmp_path / "log", prepare=partial(ask_name_server, names))
        await stack.enter_async_context(dispatcher)
        publisher = await stack.enter_async_context(system.publisher())
        await publisher.publish("healthy", {"warm": True})
        await receiver.wait_for(1)
        async with watch_memory(dispatcher.pid) as memory:
            await publisher.publish_many(NewEvent("hostile", {"filler": "x" * 100_000}) for _ in range(EVENTS))
            await publisher.publish_many(NewEvent("healthy", {"n": number}) for number in range(HEALTHY_EVENTS))
            delivered = sum(told.outcome == "delivered" for _, told in hostiles.values())
            dead = len(hostiles) - delivered
            await system.settled(
                {"delivered": 1 + HEALTHY_EVENTS + EVENTS * delivered, "dead": EVENTS * dead}, deadline_s=120
            )
        assert memory.grown_bytes < GROWTH_BYTES
        assert {request.status for request in receiver.requests} == {200}
        assert len({request.webhook_id for request in receiver.requests}) == 1 + HEALTHY_EVENTS
        for name, (subscription, told) in hostiles.items():
            await check(api, name, subscription, told)


async def check(api: Api, name: str, subscription: Mapping[str, Any], told: Told) -> None:
    """Each of an endpoint's deliveries has one attempt, and the API tells of it what it should."""
    deliveries = await api.all(f"/v1/deliveries?subscription_id={subscription['id']}")
    assert len(deliveries) == EVENTS
    for delivery in deliveries:
        (attempt,) = (await api.call("GET", f"/v1/deliveries/{delivery['id']}"))["attempts"]
        seen = (attempt["outcome"], attempt["status_code"], attempt["failure"])
        assert seen == (told.outcome, told.status_code, told.failure), (name, attempt)
        assert attempt["duration_ms"] < LATE_MS, name
        reason = attempt["reason"]
        if told.reason is None:
            assert reason is None, (name, attempt)
            assert len(attempt["response_body"]) <= 4096, name
            assert attempt["response_body"].strip("\x00"), name  # the bomb is not unpacked: it is all zeros
            continue
        reason = reason.removeprefix("attempts used up (1); the last: ")
        assert reason.startswith(told.reason), (name, reason)
        assert delivery["reason"] == attempt["reason"]
