"""Promise 6, first half: no request leaves for an address that it should not reach, whatever leads there."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from infra import egress_connector
from infra.addresses import Network
from infra.egress import Egress, open_egress
from infra.settings import Settings, read_settings
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer
from tests.support import hostile as scripts
from tests.support.certificates import NO_TLS
from tests.support.hostile import Hostile, hostile
from tests.support.nameserver import SILENCE, Changing, name_server
from tests.support.receivers import Receiver
from tests.support.system import ANY_URL

LOOPBACK = read_settings(egress_allow="127.0.0.0/8", **ANY_URL)
NOTHING = read_settings(egress_allow="", **ANY_URL)


async def post(egress: Egress, url: str, timeout_s: float = 2.0) -> AttemptResult:
    return await egress.post(url, headers={"webhook-id": "evt_1"}, body=b"{}", timeout_s=timeout_s)


@asynccontextmanager
async def resolving(settings: Settings, **names: Sequence[str] | Changing) -> AsyncIterator[Egress]:
    """An egress that asks a name server which knows `names` (as `name.test`)."""
    async with AsyncExitStack() as stack:
        served = {f"{name}.test": addresses for name, addresses in names.items()}
        server = await stack.enter_async_context(name_server(served))
        yield await stack.enter_async_context(open_egress(settings, tls=NO_TLS, nameservers=[server]))


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1.", "127.1", "127.0.1", "2130706433", "017700000001", "0x7f000001", "0x7f.1"),
        *("0177.0.0.1", "0.0.0.0", "0", "localhost", "LOCALHOST", "[::1]", "[::]", "[::ffff:127.0.0.1]"),
        *("[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[fe80::1%25lo]", "[::1%25lo]"),
    ],
)
async def test_loopback_is_out_of_reach_in_every_notation(host: str, receiver: Receiver) -> None:
    async with open_egress(NOTHING, tls=NO_TLS) as egress:
        result = await post(egress, f"http://{host}:{receiver.port}/")
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.FORBIDDEN_ADDRESS, result
    assert not receiver.requests


@pytest.mark.parametrize("host", ["localhost.", "%31%32%37.0.0.1", "①②⑦.⓪.⓪.①", "127.0.0.1%00.example", "x@127.0.0.1"])
async def test_nor_is_it_reached_by_what_is_no_name_or_no_url(host: str, receiver: Receiver) -> None:
    async with open_egress(NOTHING, tls=NO_TLS) as egress:
        result = await post(egress, f"http://{host}:{receiver.port}/")
    assert isinstance(result, NoAnswer)
    assert not receiver.requests


@pytest.mark.parametrize(
    "host",
    [
        *("10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "168.63.129.16", "192.0.0.8"),
        *("224.0.0.1", "255.255.255.255", "[fd00::1]", "[fe80::1]", "[ff02::1]", "[2002:a9fe:a9fe::]"),
        *("[64:ff9b::a9fe:a9fe]", "[::ffff:169.254.169.254]", "[3fff::1]", "[fec0::1]", "[64:ff9b:1::1]"),
    ],
)
async def test_allowing_loopback_allows_nothing_else(host: str) -> None:
    async with open_egress(LOOPBACK, tls=NO_TLS) as egress:
        result = await post(egress, f"http://{host}/latest/meta-data")
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.FORBIDDEN_ADDRESS
    assert host.strip("[]") in result.reason or "::ffff:a9fe:a9fe" in result.reason
    assert "HOOKHARE_EGRESS_ALLOW" in result.reason


async def test_what_an_operator_allows_is_reached(receiver: Receiver) -> None:
    async with open_egress(LOOPBACK, tls=NO_TLS) as egress:
        result = await post(egress, receiver.url("/hook"))
    assert isinstance(result, Answered)
    assert result.remote_address == f"127.0.0.1:{receiver.port}"
    assert [one.path for one in receiver.requests] == ["/hook"]


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.5", "169.254.169.254", "fd00::1", "::ffff:127.0.0.1"])
async def test_a_name_is_judged_by_what_it_resolves_to(address: str, receiver: Receiver) -> None:
    async with resolving(NOTHING, inside=[address]) as egress:
        result = await post(egress, f"http://inside.test:{receiver.port}/")
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.FORBIDDEN_ADDRESS
    assert result.reason.startswith("inside.test leads to a forbidden address: ")
    assert address in result.reason
    assert "HOOKHARE_EGRESS_ALLOW" in result.reason
    assert not receiver.requests


async def test_of_several_addresses_only_the_allowed_one_is_connected_to(receiver: Receiver) -> None:
    async with resolving(LOOPBACK, several=["10.0.0.5", "169.254.169.254", "127.0.0.1"]) as egress:
        result = await post(egress, f"http://several.test:{receiver.port}/")
    assert isinstance(result, Answered)
    assert result.remote_address == f"127.0.0.1:{receiver.port}"


async def test_a_forbidden_address_is_told_also_when_the_allowed_one_refuses(receiver: Receiver) -> None:
    await receiver.stop()
    async with resolving(LOOPBACK, several=["127.0.0.1", "10.0.0.5"]) as egress:
        result = await post(egress, f"http://several.test:{receiver.port}/")
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.FORBIDDEN_ADDRESS
    assert "10.0.0.5" in result.reason


async def test_a_name_with_very_many_addresses_is_not_tried_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []

    def count(address: str, allow: Sequence[Network]) -> str | None:
        judged.append(address)
        return "forbidden"

    monkeypatch.setattr(egress_connector, "forbidden_reason", count)
    async with resolving(LOOPBACK, crowd=[f"10.0.0.{last}" for last in range(1, 61)]) as egress:
        result = await post(egress, "http://crowd.test/")
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.FORBIDDEN_ADDRESS
    assert 0 < len(set(judged)) <= 8
    assert len(judged) <= 20  # aiohttp tries a list again without its first, and again


async def test_a_name_that_does_not_exist_does_not_resolve() -> None:
    async with resolving(LOOPBACK) as egress:
        result = await post(egress, "http://nowhere.test/")
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.DNS
    assert result.reason.startswith("nowhere.test does not resolve: ")


async def test_a_name_that_is_never_answered_ends_at_the_deadline() -> None:
    async with resolving(LOOPBACK, silent=SILENCE) as egress:
        result = await post(egress, "http://silent.test/", timeout_s=0.4)
    assert isinstance(result, NoAnswer)
    assert (result.failure, result.reason) == (Failure.TIMEOUT, "the look-up of silent.test got no answer within 0.4 s")
    assert 390 <= result.duration_ms < 900


async def test_a_slow_name_does_not_keep_others_waiting(receiver: Receiver) -> None:
    async with resolving(LOOPBACK, silent=SILENCE, quick=["127.0.0.1"]) as egress:
        slow = [asyncio.create_task(post(egress, f"http://silent.test:{port}/", 1.5)) for port in range(1, 40)]
        result = await post(egress, f"http://quick.test:{receiver.port}/", timeout_s=1.0)
        assert isinstance(result, Answered)
        assert not any(task.done() for task in slow)
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)


@asynccontextmanager
async def two_neighbours() -> AsyncIterator[tuple[Hostile, Hostile]]:
    """A server on 127.0.0.1, which the tests here allow, and one on the same port of 127.0.0.2, which they do not."""

    async def answer(it: Hostile, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await it.request(reader)
            await it.send(writer, scripts.OK)

    async with hostile(answer) as allowed:
        forbidden = Hostile(port=allowed.port)

        async def come(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            forbidden.connections += 1
            writer.transport.abort()

        server = await asyncio.start_server(come, "127.0.0.2", allowed.port)
        try:
            yield allowed, forbidden
        finally:
            server.close()


ONE = read_settings(egress_allow="127.0.0.1/32", **ANY_URL)


async def test_a_name_that_changes_its_answer_is_connected_to_where_it_was_checked() -> None:
    """Each look-up gets the other answer: were an answer checked, and another one connected to, it would show."""
    name = Changing(["127.0.0.1"], ["127.0.0.2"])
    async with two_neighbours() as (allowed, forbidden), resolving(ONE, rebinding=name) as egress:
        results = []
        for _ in range(10):
            egress._connector.clear_dns_cache()  # as time would
            result = await post(egress, f"http://rebinding.test:{allowed.port}/")
            results.append(result)
            egress._connector._conns.clear()  # as time would
        reached = [one.remote_address for one in results if isinstance(one, Answered)]
        refused = [one.reason for one in results if isinstance(one, NoAnswer)]
    assert name.asked == 10
    assert reached == [f"127.0.0.1:{allowed.port}"] * 5
    assert len(refused) == 5
    assert all(reason.startswith("rebinding.test leads to a forbidden address: 127.0.0.2 is") for reason in refused)
    assert forbidden.connections == 0


async def test_a_connection_that_is_kept_goes_only_where_it_was_allowed_to() -> None:
    """Kept, it may be used although its name leads elsewhere by now; what is forbidden never gets one to keep."""
    names: dict[str, Sequence[str]] = {"moving.test": ["127.0.0.1"], "never.test": ["127.0.0.2"]}
    async with AsyncExitStack() as stack:
        allowed, forbidden = await stack.enter_async_context(two_neighbours())
        server = await stack.enter_async_context(name_server(names))
        egress = await stack.enter_async_context(open_egress(ONE, tls=NO_TLS, nameservers=[server]))
        moving, never = (f"http://{name}.test:{allowed.port}/" for name in ("moving", "never"))
        assert isinstance(await post(egress, moving), Answered)
        names["moving.test"] = ["127.0.0.2"]
        egress._connector.clear_dns_cache()  # as time would
        kept = await post(egress, moving)
        assert isinstance(kept, Answered)
        assert kept.remote_address == f"127.0.0.1:{allowed.port}"
        assert allowed.connections == 1
        refused = [await post(egress, never)]  # a connection to its port is kept, but it is another name's
        kept_ones = [await post(egress, moving) for _ in range(2)]
        egress._connector._conns.clear()  # as time would
        refused.append(await post(egress, moving))
    assert all(isinstance(one, Answered) for one in kept_ones)
    assert [one.failure for one in refused if isinstance(one, NoAnswer)] == [Failure.FORBIDDEN_ADDRESS] * 2
    assert forbidden.connections == 0
    assert allowed.connections == 1


TIGHT = read_settings(egress_allow="127.0.0.0/8")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (
            "http://127.0.0.1:8080/",
            "must begin with https://, because http:// sends events in the clear; an",
        ),
        (
            "https://127.0.0.1:{port}/",
            "must have a port that webhooks may go to (80, 443, 8080, 8443), and not {port}",
        ),
        ("https://xn--a.test/", "must not have xn--a in its host, which is not the punycode of any name"),
        ("https://hooks.test/#part", "must not have a fragment"),
        ("https://me@127.0.0.1/", "must not hold a user name or password"),
    ],
)
async def test_the_rules_are_asked_at_each_request(url: str, told: str, receiver: Receiver) -> None:
    """A subscription may be older than the setting."""
    async with open_egress(TIGHT, tls=NO_TLS) as egress:
        result = await post(egress, url.format(port=receiver.port))
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.FORBIDDEN_ADDRESS
    assert result.reason.startswith(f"the URL {told.format(port=receiver.port)}")
    assert not receiver.requests
