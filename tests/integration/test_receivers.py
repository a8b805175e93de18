"""The receivers that other tests rely on: what they record, how they fail, and what they verify."""

import asyncio
from datetime import UTC, datetime

import aiohttp
import pytest
from standardwebhooks.webhooks import Webhook

from tests.support.receivers import Behaviour, Receiver, threaded_receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


async def post(url: str, *, body: bytes = b"{}", headers: dict[str, str] | None = None) -> int:
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as response:
        return response.status


async def test_requests_are_recorded_as_they_came(receiver: Receiver) -> None:
    await post(receiver.url("/a"), body=b"\x00\xff", headers={"Webhook-Id": "evt_1"})
    await post(receiver.url("/b"))
    one, other = await receiver.wait_for(2)
    assert (one.path, one.body, one.webhook_id, one.status, one.verified) == ("/a", b"\x00\xff", "evt_1", 200, None)
    assert one.at_s <= other.at_s
    assert receiver.to("/b") == [other]


async def test_waiting_ends_at_the_deadline_and_says_what_is_missing(receiver: Receiver) -> None:
    await post(receiver.url())
    with pytest.raises(AssertionError, match=r"1 requests came within 0\.05 s, wanted 2"):
        await receiver.wait_for(2, deadline_s=0.05)


async def test_the_first_fail_and_then_a_fraction_that_is_the_same_each_time(receiver: Receiver) -> None:
    for path in ("/a", "/b"):
        receiver.behave(path, Behaviour(fail_first=2, fail_fraction=0.5, fail_status=500, seed=7))
    statuses = [[await post(receiver.url(path)) for _ in range(30)] for path in ("/a", "/b")]
    assert statuses[0] == statuses[1]
    assert statuses[0][:2] == [500, 500]
    assert 5 < statuses[0][2:].count(500) < 23


async def test_signatures_are_verified_by_the_official_library(receiver: Receiver) -> None:
    url = receiver.behave("/signed", Behaviour(secret=SECRET))
    now = datetime.now(UTC)
    headers = {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(SECRET).sign("evt_1", now, '{"a":1}'),
    }
    assert await post(url, body=b'{"a":1}', headers=headers) == 200
    assert await post(url, body=b'{"a":2}', headers=headers) == 401
    assert await post(url, body=b'{"a":1}', headers={**headers, "webhook-signature": "malformed"}) == 401
    assert await post(url, body=b'{"a":1}') == 401
    assert [one.verified for one in receiver.requests] == [True, False, False, False]


async def test_answers_can_be_held_back(receiver: Receiver) -> None:
    hold = asyncio.Event()
    url = receiver.behave("/held", Behaviour(hold=hold))
    task = asyncio.create_task(post(url))
    await receiver.wait_for(1)
    assert not task.done()
    hold.set()
    assert await asyncio.wait_for(task, 5) == 200


async def test_a_receiver_can_go_away_and_come_back(receiver: Receiver) -> None:
    await receiver.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await post(receiver.url())
    await receiver.start()
    assert await post(receiver.url()) == 200


async def test_a_receiver_in_a_thread_answers_while_the_test_blocks() -> None:
    with threaded_receiver(Behaviour(status=202)) as receiver:
        assert await asyncio.to_thread(lambda: asyncio.run(post(receiver.url("/x")))) == 202
        assert await post(receiver.url("/x")) == 202
        assert len(await receiver.wait_for(2, path="/x")) == 2
