"""Egress through a subscription and a real delivery, not only through the checking function."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from ipaddress import ip_network

import pytest
from hypothesis import given, settings

import consumer_api.bootstrap
import dispatcher.bootstrap
from infra.early_check import open_early_check
from infra.egress import open_egress
from infra.egress_rules import EgressRules
from tests.support.nameserver import Changing, name_server
from tests.support.receivers import Behaviour, Receiver
from tests.support.spellings import forbidden_urls
from tests.support.system import Api, System

ONCE: dict[str, list[float]] = {"delays_s": []}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_forbidden_address_is_not_reached_and_the_attempt_says_why(
    system: System, api: Api, receiver: Receiver, host: str
) -> None:
    """The API that took the subscription allowed loopback; this dispatcher does not."""
    await api.subscribe(f"http://{host}:{receiver.port}/hook", retry_policy=ONCE)
    async with system.dispatcher(egress_allow=""), system.publisher() as publisher:
        await publisher.publish("order.created", {"n": 1})
        await system.settled({"dead": 1})
    assert not receiver.requests
    (delivery,) = await api.all("/v1/deliveries")
    (attempt,) = (await api.call("GET", f"/v1/deliveries/{delivery['id']}"))["attempts"]
    assert attempt["failure"] == "forbidden_address"
    assert "HOOKHARE_EGRESS_ALLOW" in attempt["reason"]


def told_by_an_api(allow: str, url: str) -> bool:
    """Whether an API that allows these networks takes the URL."""
    ports = (range(1, 65_536),)
    return EgressRules(allow=tuple(map(ip_network, allow.split(","))), http=True, ports=ports).refusal(url) is None


EVERYTHING = "0.0.0.0/0,::/0"


async def test_forbidden_addresses_that_a_lax_api_took_are_not_reached_in_any_spelling(
    system: System, receiver: Receiver
) -> None:
    """What passes when all is allowed, in hundreds of spellings, and a dispatcher that allows nothing."""
    urls: set[str] = set()

    @settings(max_examples=1000, database=None, deadline=None)
    @given(forbidden_urls(port=receiver.port))
    def collect(url: str) -> None:
        if told_by_an_api(EVERYTHING, url):
            urls.add(url)

    collect()
    taken = sorted(urls)[:150]
    assert len(taken) > 50
    async with system.api(egress_allow=EVERYTHING) as api:
        for url in taken:
            await api.subscribe(url, retry_policy=ONCE)
        async with system.dispatcher(egress_allow=""), system.publisher() as publisher:
            await publisher.publish("order.created", {"n": 1})
            await system.settled({"dead": len(taken)})
        deliveries = await api.all("/v1/deliveries")
        for delivery in deliveries[:10]:
            (attempt,) = (await api.call("GET", f"/v1/deliveries/{delivery['id']}"))["attempts"]
            assert attempt["failure"] == "forbidden_address"
            assert "HOOKHARE_EGRESS_ALLOW" in attempt["reason"]
    told = await system.value("SELECT count(*) FROM attempts WHERE failure = 'forbidden_address'")
    assert told == len(taken)
    assert not receiver.requests


async def test_a_new_user_who_subscribes_the_metadata_service_is_told_why_not(
    system: System, receiver: Receiver
) -> None:
    """By address, by a name that leads there, and by one that changes its answer once it was looked at."""
    names: dict[str, Sequence[str] | Changing] = {
        "metadata.test": ["169.254.169.254"],
        "changing.test": Changing(["127.0.0.1"], ["127.0.0.1"], ["169.254.169.254"]),
        "both.test": ["127.0.0.1", "169.254.169.254"],  # one of them will do
    }
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(name_server(names))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(dispatcher.bootstrap, "open_egress", partial(open_egress, nameservers=[server]))
        patch.setattr(consumer_api.bootstrap, "open_early_check", partial(open_early_check, nameservers=[server]))
        api = await stack.enter_async_context(system.api())
        is_why = "169.254.169.254 is a link-local address, where clouds keep their metadata"
        remedy = "an operator may allow its network with HOOKHARE_EGRESS_ALLOW"
        for host, leads in (("169.254.169.254", ""), ("metadata.test", "metadata.test leads to a forbidden address: ")):
            answer = await api.call(
                "POST", "/v1/subscriptions", {"url": f"http://{host}/", "event_types": ["#"]}, expect=400
            )
            (detail,) = answer["error"]["details"]
            assert detail["field"] == "url"
            assert detail["message"] == f"must lead to a public address: {leads}{is_why}; {remedy}"
        for name in ("both.test", "nowhere.test"):
            made = await api.subscribe(f"http://{name}:{receiver.port}/", "nothing")
            await api.call("PATCH", f"/v1/subscriptions/{made['id']}", {"url": "http://metadata.test/"}, expect=400)
        await api.subscribe(f"http://changing.test:{receiver.port}/", retry_policy=ONCE)
        publisher = await stack.enter_async_context(system.publisher())
        async with system.dispatcher():
            await publisher.publish("order.created", {"n": 1})
            await system.settled({"delivered": 1})  # it led to where it may
        async with system.dispatcher():  # one that keeps no connection, and looks up again
            await publisher.publish("order.created", {"n": 2})
            await system.settled({"dead": 1, "delivered": 1})
        reasons = await system.value(
            "SELECT array_agg(DISTINCT reason) FROM attempts WHERE failure = 'forbidden_address'"
        )
    assert len(receiver.requests) == 1
    why = f"changing.test leads to a forbidden address: {is_why}; {remedy}"
    assert reasons == [f"attempts used up (1); the last: {why}"]


async def test_a_setting_that_is_tightened_is_obeyed_for_subscriptions_that_there_are(
    system: System, api: Api, receiver: Receiver
) -> None:
    await api.subscribe(receiver.url("/hook"), retry_policy=ONCE)
    tight = {"egress_http": False, "egress_ports": "443"}
    async with system.dispatcher(**tight), system.publisher() as publisher:
        await publisher.publish("order.created", {"n": 1})
        await system.settled({"dead": 1})
    reason = await system.value("SELECT reason FROM attempts")
    assert "HOOKHARE_EGRESS_HTTP=true" in reason
    assert "HOOKHARE_EGRESS_PORTS" in reason
    assert not receiver.requests


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "http://[::ffff:10.0.0.1]/", "http://10.1:80/"])
async def test_a_forbidden_literal_is_refused_when_the_subscription_is_made(system: System, api: Api, url: str) -> None:
    answer = await api.call("POST", "/v1/subscriptions", {"url": url, "event_types": ["#"]}, expect=400)
    assert answer["error"]["details"][0]["field"] == "url"


async def test_a_redirect_is_a_failure_and_is_not_followed(system: System, api: Api, receiver: Receiver) -> None:
    target = receiver.url("/target")
    await api.subscribe(
        receiver.behave("/hook", Behaviour(status=302, headers={"Location": target})), retry_policy=ONCE
    )
    async with system.dispatcher(), system.publisher() as publisher:
        await publisher.publish("order.created", {"n": 1})
        await system.settled({"dead": 1})
    assert [request.path for request in receiver.requests] == ["/hook"]
