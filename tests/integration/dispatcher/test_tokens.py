"""Tokens, over a real token server and the real egress: fetched once, kept until they are nearly over, by client."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import dispatcher.tokens
from dispatcher.core.credentials import MAX_ANSWER_BYTES
from dispatcher.tokens import Token, Tokens
from infra.egress import open_egress
from infra.settings import read_settings
from schemas.deliveries import Failure, NoAnswer
from schemas.destination_auth import OAuth2Auth
from tests.support.certificates import NO_TLS
from tests.support.system import ANY_URL
from tests.support.token_server import TokenServer
from tests.support.waiting import eventually

SETTINGS = read_settings(egress_allow="127.0.0.1/32", **ANY_URL)


@pytest.fixture
async def server() -> AsyncIterator[TokenServer]:
    async with TokenServer({"c": {"s", "s2"}, "d": {"s"}}) as one:
        yield one


@pytest.fixture
async def tokens() -> AsyncIterator[Tokens]:
    async with open_egress(SETTINGS, tls=NO_TLS) as egress:
        made = Tokens(egress, kept=2)
        yield made
        await made.close()


class Clock:
    """Boot time as a test has it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr(dispatcher.tokens, "boot_s", lambda: self.now_s)


def client(server: TokenServer, client_id: str = "c", secret: str = "s", **more: Any) -> OAuth2Auth:
    return OAuth2Auth.model_validate(server.auth(client_id, secret, **more))


async def text(tokens: Tokens, asked: OAuth2Auth) -> str:
    got = await tokens.get(asked, within_s=5)
    assert isinstance(got, Token), got
    return got.grant.token


async def held(server: TokenServer) -> None:
    async def waiting() -> bool:
        return server.waiting > 0

    await eventually(waiting)


async def test_a_token_is_used_until_a_tenth_before_it_expires(
    server: TokenServer, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    server.expires_in = 100
    first = await text(tokens, client(server))
    clock.now_s += 89.9
    assert await text(tokens, client(server)) == first
    clock.now_s += 0.1
    assert await text(tokens, client(server)) != first
    assert len(server.fetches) == 2


async def test_a_hundred_at_once_make_one_fetch(server: TokenServer, tokens: Tokens) -> None:
    server.hold = asyncio.Event()
    asking = [asyncio.create_task(text(tokens, client(server))) for _ in range(100)]
    await held(server)
    server.hold.set()
    assert len(set(await asyncio.gather(*asking))) == 1
    assert len(server.fetches) == 1


async def test_who_asked_first_and_goes_leaves_the_fetch_to_the_others(server: TokenServer, tokens: Tokens) -> None:
    server.hold = asyncio.Event()
    first = asyncio.create_task(text(tokens, client(server)))
    await held(server)
    second = asyncio.create_task(text(tokens, client(server)))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    server.hold.set()
    assert await second
    assert len(server.fetches) == 1


async def test_who_has_more_time_outlives_the_fetch_of_who_had_less(server: TokenServer, tokens: Tokens) -> None:
    server.hold = asyncio.Event()
    hasty = asyncio.create_task(tokens.get(client(server), within_s=0.3))
    await held(server)
    patient = asyncio.create_task(tokens.get(client(server), within_s=20))
    came = await hasty
    assert isinstance(came, NoAnswer)
    assert "within 0.3" in came.reason
    server.hold.set()
    assert isinstance(await patient, Token)


async def test_each_part_of_a_client_makes_another_one(server: TokenServer, tokens: Tokens) -> None:
    asked = [
        client(server),
        client(server, secret="s2"),
        client(server, client_id="d"),
        client(server, scope="x"),
        client(server, audience="x"),
        client(server, client_auth="post"),
    ]
    assert len({await text(tokens, one) for one in asked}) == len(server.fetches) == len(asked)


async def test_a_dropped_token_is_fetched_anew_and_one_that_came_since_is_kept(
    server: TokenServer, tokens: Tokens
) -> None:
    old = await tokens.get(client(server), within_s=5)
    assert isinstance(old, Token)
    tokens.drop(client(server), old)
    new = await tokens.get(client(server), within_s=5)
    assert new is not old
    tokens.drop(client(server), old)  # by another attempt, whose answer came later
    assert await tokens.get(client(server), within_s=5) is new


async def test_no_more_are_kept_than_may_be(server: TokenServer, tokens: Tokens) -> None:
    clients = [client(server), client(server, client_id="d"), client(server, scope="x")]
    for one in [*clients, clients[2], clients[1]]:
        await text(tokens, one)
    assert len(server.fetches) == 3
    await text(tokens, clients[0])
    assert len(server.fetches) == 4


async def test_a_failure_is_not_kept(server: TokenServer, tokens: Tokens) -> None:
    server.answer, server.status = {"error": "temporarily_unavailable"}, 503
    came = await tokens.get(client(server), within_s=5)
    assert isinstance(came, NoAnswer)
    assert came.failure is Failure.AUTH
    assert came.reason == f"the token server at 127.0.0.1:{server.port} answered 503: temporarily_unavailable"
    server.answer, server.status = None, 200
    assert await text(tokens, client(server))


async def test_a_long_answer_is_taken_up_to_what_is_kept(server: TokenServer, tokens: Tokens) -> None:
    """Far more than of an endpoint's answer."""
    server.padding = " " * 60_000
    assert SETTINGS.response_keep_bytes < 60_000 < MAX_ANSWER_BYTES
    assert await text(tokens, client(server))


async def test_more_of_an_answer_than_may_be_kept_is_not_waited_for(server: TokenServer, tokens: Tokens) -> None:
    server.unended_bytes = MAX_ANSWER_BYTES
    came = await tokens.get(client(server), within_s=20)
    assert isinstance(came, NoAnswer)
    assert came.reason == f"the token server at 127.0.0.1:{server.port} answered with 65536 bytes or more"


async def test_a_token_server_that_is_not_there_is_told(tokens: Tokens) -> None:
    async with TokenServer() as gone:
        asked = client(gone)
    came = await tokens.get(asked, within_s=5)
    assert isinstance(came, NoAnswer)
    assert came.reason == (
        f"the token server at 127.0.0.1:{gone.port} gave no token: "
        f"no connection to 127.0.0.1:{gone.port}: connection refused"
    )


async def test_a_token_url_is_behind_the_guard(tokens: Tokens) -> None:
    async with TokenServer({"c": {"s"}}, host="127.0.0.2") as forbidden:
        came = await tokens.get(client(forbidden), within_s=5)
        assert isinstance(came, NoAnswer)
        assert "HOOKHARE_EGRESS_ALLOW" in came.reason
        assert not forbidden.fetches
