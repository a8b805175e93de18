"""Certificates of a subscription's own, from `POST /v1/subscriptions` to the attempt that is recorded."""

import asyncio
from pathlib import Path
from typing import Any

from tests.support.attempts import ONCE, attempts, try_out
from tests.support.certificates import Authority, Issued
from tests.support.system import Api, System
from tests.support.tls_receiver import TlsReceiver, tls_receiver
from tests.support.waiting import eventually

AUTHORITY = Authority()
SERVER = AUTHORITY.issue("server")


def client(issued: Issued) -> dict[str, str]:
    return {"client_certificate": issued.certificate, "client_key": issued.key, "ca": AUTHORITY.pem}


async def test_a_client_certificate_lets_a_delivery_in_and_its_key_is_never_shown(
    system: System, api: Api, tmp_path: Path
) -> None:
    issued = AUTHORITY.issue("client-one")
    with tls_receiver(SERVER.server_tls(tmp_path, clients_of=AUTHORITY)) as receiver:
        created = await api.subscribe(receiver.url, tls=client(issued))
        async with system.dispatcher(), system.publisher() as publisher:
            for n in range(3):
                await publisher.publish("order.created", {"n": n})
            await system.settled({"delivered": 3})
        assert receiver.clients == ["client-one"] * 3
    assert {attempt["status_code"] for attempt in await attempts(api)} == {200}
    shown: dict[str, Any] = (await api.call("GET", f"/v1/subscriptions/{created['id']}"))["tls"]
    assert shown == created["tls"]
    (certificate,), (authority,) = shown["client_certificate"], shown["ca"]
    assert (certificate["subject"], authority["subject"]) == ("CN=client-one", "CN=hookhare test authority")
    assert set(certificate) == {"subject", "not_after", "sha256"}
    assert shown["client_key"] == "[redacted]"
    assert issued.key.splitlines()[1] not in str(await api.all("/v1/subscriptions"))


async def test_a_handshake_shows_the_client_certificate_too(system: System, api: Api, tmp_path: Path) -> None:
    with tls_receiver(SERVER.server_tls(tmp_path, clients_of=AUTHORITY)) as receiver:
        tls = client(AUTHORITY.issue("client-one"))
        subscription = await api.subscribe(receiver.url, tls=tls, format="cloudevents_binary", handshake=True)
        async with system.dispatcher():
            assert (await try_out(api, subscription))["status_code"] == 200
        assert receiver.clients == ["client-one"] * 2


async def test_the_test_call_tells_that_a_client_certificate_is_missing_and_then_that_it_is_taken(
    system: System, api: Api, tmp_path: Path
) -> None:
    with tls_receiver(SERVER.server_tls(tmp_path, clients_of=AUTHORITY)) as receiver:
        subscription = await api.subscribe(receiver.url, tls={"ca": AUTHORITY.pem}, retry_policy=ONCE)
        async with system.dispatcher():
            missing = await try_out(api, subscription)
            assert missing["failure"] == "tls"
            assert "127.0.0.1 refused TLS: tlsv13 alert certificate required" in missing["reason"]
            change = {"tls": client(AUTHORITY.issue("client-two"))}
            await api.call("PATCH", f"/v1/subscriptions/{subscription['id']}", change)
            assert (await try_out(api, subscription))["status_code"] == 200
        assert receiver.clients == ["client-two"]


async def test_the_test_call_tells_that_an_authority_is_unknown_and_a_private_one_is_taken(
    system: System, api: Api, tmp_path: Path
) -> None:
    with tls_receiver(SERVER.server_tls(tmp_path)) as receiver:
        subscription = await api.subscribe(receiver.url, retry_policy=ONCE)
        path = f"/v1/subscriptions/{subscription['id']}"
        async with system.dispatcher():
            for tls in (None, {"ca": Authority("another").pem}):
                await api.call("PATCH", path, {"tls": tls})
                unknown = await try_out(api, subscription)
                assert unknown["failure"] == "tls"
                assert "the certificate of 127.0.0.1 is not trusted" in unknown["reason"]
            await api.call("PATCH", path, {"tls": {"ca": AUTHORITY.pem}})
            assert (await try_out(api, subscription))["status_code"] == 200
        assert receiver.clients == [None]


async def test_a_client_certificate_is_replaced_under_load_without_a_failed_attempt(
    system: System, api: Api, tmp_path: Path
) -> None:
    """And no connection that the old one opened is used for what comes after."""
    with tls_receiver(SERVER.server_tls(tmp_path, clients_of=AUTHORITY)) as receiver:
        subscription = await api.subscribe(receiver.url, tls=client(AUTHORITY.issue("old")), retry_policy=ONCE)
        async with system.dispatcher(), system.publisher() as publisher:
            published = [asyncio.create_task(publisher.publish("order.created", {"n": n})) for n in range(60)]
            await _came(receiver, 10)
            change = {"tls": client(AUTHORITY.issue("new"))}
            await api.call("PATCH", f"/v1/subscriptions/{subscription['id']}", change)
            await asyncio.gather(*published)
            await system.settled({"delivered": 60})
            for n in range(5):
                await publisher.publish("order.created", {"n": n})
            await system.settled({"delivered": 65})
        assert receiver.clients[-5:] == ["new"] * 5
        assert set(receiver.clients) == {"old", "new"}
        assert receiver.refused == []
    assert {attempt["status_code"] for attempt in await attempts(api)} == {200}


async def _came(receiver: TlsReceiver, count: int) -> None:
    async def come() -> bool:
        return len(receiver.clients) >= count

    await eventually(come)
