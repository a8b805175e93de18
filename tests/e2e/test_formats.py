"""Every body format and signature, from the subscription to the recorded attempt; verified by libraries not of ours."""

import base64
import hashlib
import hmac
from typing import Any

import orjson
import pytest
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from producer.events import RawJSON
from tests.support.receivers import Behaviour, Receiver, Request
from tests.support.system import Api, System

DATA = b'{"n": 12345678901234567890123,  "s": "\\u00e9"}'
V1: dict[str, Any] = {"scheme": "standard", "versions": ["v1"]}
V1A: dict[str, Any] = {"scheme": "standard", "versions": ["v1a"]}
BOTH: dict[str, Any] = {"scheme": "standard", "versions": ["v1", "v1a"]}
GITHUB = {"scheme": "hmac", "algorithm": "sha256", "header": "X-Hub-Signature-256", "prefix": "sha256="}
LEGACY = {"scheme": "hmac", "algorithm": "sha1", "header": "x-old-signature"}
STRUCTURED = "application/cloudevents+json; charset=utf-8"


async def publish(system: System, count: int = 1) -> None:
    """Through the broker, of a source and a subject that no URI and no header could have as they are."""
    async with system.publisher() as publisher:
        for number in range(count):
            await publisher.publish(
                "order.created", RawJSON(DATA), id=f"ordér {number}", source="shop 1/bücher", subject="50% öff"
            )


def verified_v1(secret: str, request: Request) -> bool:
    try:
        Webhook(secret).verify(request.body, dict(request.headers), json_parse=False)
    except WebhookVerificationError:
        return False
    return True


def verified_v1a(public_key: str, request: Request) -> bool:
    """By `cryptography` alone: no library that we know of verifies v1a."""
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public_key.removeprefix("whpk_")))
    content = f"{request.webhook_id}.{request.headers['webhook-timestamp']}.".encode() + request.body
    for one in request.headers["webhook-signature"].split(" "):
        version, _, signature = one.partition(",")
        if version == "v1a":
            try:
                key.verify(base64.b64decode(signature), content)
            except InvalidSignature:
                continue
            return True
    return False


def versions(request: Request) -> list[str]:
    return [one.partition(",")[0] for one in request.headers["webhook-signature"].split(" ")]


def read_back(request: Request) -> BaseCloudEvent:
    """By the SDK of the CloudEvents project."""
    return from_http_event(HTTPMessage(dict(request.headers), request.body))


async def recorded(api: Api, subscription: dict[str, Any]) -> dict[str, Any]:
    """Its only attempt."""
    (delivery,) = await api.all(f"/v1/deliveries?subscription_id={subscription['id']}")
    (attempt,) = (await api.call("GET", f"/v1/deliveries/{delivery['id']}"))["attempts"]
    return dict(attempt)


@pytest.mark.parametrize("signature", [V1, V1A, BOTH], ids=lambda signature: "+".join(signature["versions"]))
@pytest.mark.parametrize("form", ["standard", "cloudevents_structured", "cloudevents_binary"])
async def test_standard_webhooks_in_every_format(
    system: System, api: Api, receiver: Receiver, form: str, signature: dict[str, Any]
) -> None:
    made = await api.subscribe(receiver.url("/hook"), format=form, signature=signature)
    async with system.dispatcher():
        await publish(system)
        (request,) = await receiver.wait_for(1)
        await system.settled({"delivered": 1})
    assert versions(request) == signature["versions"]
    shown = await api.call("GET", f"/v1/subscriptions/{made['id']}")
    for one, now in zip(made["secrets"], shown["secrets"], strict=True):
        if one["version"] == "v1":
            assert verified_v1(one["secret"], request)
        else:
            assert verified_v1a(now["public_key"], request)
    assert_format(form, request)
    attempt = await recorded(api, made)
    assert (attempt["outcome"], attempt["status_code"]) == ("delivered", 200)


def assert_format(form: str, request: Request) -> None:
    assert request.headers["content-type"] == (STRUCTURED if form == "cloudevents_structured" else "application/json")
    if form == "standard":
        assert request.body.endswith(b'"data":' + DATA + b"}")
        assert orjson.loads(request.body).keys() == {"type", "timestamp", "data"}
        return
    assert request.body == DATA if form == "cloudevents_binary" else request.body.endswith(b'"data":' + DATA + b"}")
    event = read_back(request)
    assert (event.get_specversion(), event.get_type(), event.get_id()) == ("1.0", "order.created", "ordér 0")
    assert (event.get_source(), event.get_subject()) == ("shop%201/b%C3%BCcher", "50% öff")
    assert event.get_datacontenttype() == "application/json"
    assert event.get_data() == {"n": 12345678901234567890123, "s": "é"}


@pytest.mark.parametrize("form", ["standard", "cloudevents_binary"])
async def test_github_s_form_and_an_older_one(system: System, api: Api, receiver: Receiver, form: str) -> None:
    """No library verifies these: a receiver does as GitHub's documentation says, by the standard library."""
    secret = "It's a Secret to Everybody"
    github = await api.subscribe(receiver.url("/github"), signature=GITHUB, secret=secret, format=form)
    legacy = await api.subscribe(receiver.url("/legacy"), signature=LEGACY, format=form)
    async with system.dispatcher():
        await publish(system)
        await receiver.wait_for(2)
        await system.settled({"delivered": 2})
    (new,) = receiver.to("/github")
    (old,) = receiver.to("/legacy")
    expected = hmac.new(secret.encode(), new.body, hashlib.sha256).hexdigest()
    assert new.headers["x-hub-signature-256"] == f"sha256={expected}"
    assert old.headers["x-old-signature"] == hmac.new(legacy["secret"].encode(), old.body, hashlib.sha1).hexdigest()
    for request in (new, old):
        assert request.webhook_id.startswith("evt_")
        assert request.headers.keys().isdisjoint({"webhook-signature", "webhook-timestamp"})
    for made in (github, legacy):
        assert (await recorded(api, made))["outcome"] == "delivered"


async def test_during_a_rotation_every_live_secret_signs(system: System, api: Api, receiver: Receiver) -> None:
    both = await api.subscribe(receiver.url("/both"), signature=BOTH)
    text = await api.subscribe(receiver.url("/text"), signature=GITHUB)
    rotated = await api.call("POST", f"/v1/subscriptions/{both['id']}/rotate-secret")
    new_text = await api.call("POST", f"/v1/subscriptions/{text['id']}/rotate-secret")
    async with system.dispatcher():
        await publish(system)
        await receiver.wait_for(2)
        await system.settled({"delivered": 2})
        (request,) = receiver.to("/both")
        assert versions(request) == ["v1", "v1a", "v1", "v1a"]
        for one in (*both["secrets"], *(one for one in rotated["secrets"] if "secret" in one)):
            if one["version"] == "v1":
                assert verified_v1(one["secret"], request)
            else:
                assert verified_v1a(one["public_key"], request)
        (request,) = receiver.to("/text")
        assert request.headers["x-hub-signature-256"] == ",".join(
            f"sha256={hmac.new(secret.encode(), request.body, hashlib.sha256).hexdigest()}"
            for secret in (new_text["secret"], text["secret"])
        )

        # Without grace, the others are gone with the next event.
        ended = await api.call("POST", f"/v1/subscriptions/{both['id']}/rotate-secret", {"grace_s": 0})
        await publish(system, 2)  # the first is known already
        await system.settled({"delivered": 4})
    request = receiver.to("/both")[-1]
    assert versions(request) == ["v1", "v1a"]
    assert verified_v1(ended["secret"], request)
    assert not verified_v1(rotated["secret"], request)
    assert not verified_v1(both["secret"], request)


async def test_a_changed_signature_and_format_are_in_force_for_retries_that_wait(
    system: System, api: Api, receiver: Receiver
) -> None:
    made = await api.subscribe(receiver.behave("/hook", Behaviour(fail_first=1)), retry_policy={"delays_s": [1.0, 1.0]})
    async with system.dispatcher():
        await publish(system)
        (first,) = await receiver.wait_for(1)
        changed = await api.call(
            "PATCH", f"/v1/subscriptions/{made['id']}", {"signature": GITHUB, "format": "cloudevents_structured"}
        )
        _, second = await receiver.wait_for(2)
        await system.settled({"delivered": 1})
    assert verified_v1(made["secret"], first)
    assert first.webhook_id == second.webhook_id
    assert second.headers["x-hub-signature-256"] == (
        f"sha256={hmac.new(changed['secret'].encode(), second.body, hashlib.sha256).hexdigest()}"
    )
    assert read_back(second).get_id() == "ordér 0"
