"""What a person is shown of an attempt, from the endpoint's answer to the API."""

from asyncio import StreamReader, StreamWriter

from tests.support.hostile import Hostile, hostile
from tests.support.system import Api, System

ANSWER = (
    b"HTTP/1.1 503 Busy\r\nX-Request-Id: 7f3a\r\nRetry-After: 1\r\nSet-Cookie: session=c00kie\r\n"
    b"Server: caf\xe9\x1b[31m\r\nContent-Length: 15\r\n\r\ncome back later"
)


async def is_busy(it: Hostile, reader: StreamReader, writer: StreamWriter) -> None:
    await it.request(reader)
    await it.send(writer, ANSWER)


async def test_an_attempt_shows_the_answers_head_its_beginning_and_where_the_time_went(
    system: System, api: Api
) -> None:
    async with hostile(is_busy) as busy:
        await api.subscribe(busy.url("/hook"), retry_policy={"delays_s": []})
        async with system.dispatcher(), system.publisher() as publisher:
            await publisher.publish("order.created", {"n": 1})
            await system.settled({"dead": 1})
    (delivery,) = await api.all("/v1/deliveries")
    (attempt,) = (await api.call("GET", f"/v1/deliveries/{delivery['id']}"))["attempts"]
    assert (attempt["status_code"], attempt["response_body"]) == (503, "come back later")
    assert attempt["reason"] == "attempts used up (1); the last: the endpoint answered 503"
    assert attempt["remote_address"] == f"127.0.0.1:{busy.port}"
    assert attempt["response_headers"] == {
        "x-request-id": "7f3a",
        "retry-after": "1",
        "server": "caf\ufffd\ufffd[31m",
        "content-length": "15",
    }
    timings = attempt["timings"]
    assert {name for name, part in timings.items() if part is None} == {"dns_ms", "tls_ms"}
    assert 0 <= timings["first_byte_ms"] <= attempt["duration_ms"]
