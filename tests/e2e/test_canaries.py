"""Marked secrets in every field that can hold one, and then a search of everything that is told or stored.

The servers run as an operator runs them, at the level debug, with spans exported and metrics scraped; deliveries
succeed and fail in every way; every call of the API is made, good ones and bad ones. Then no mark may be found in any
log line, span, metric, answer or table, in clear or in any usual encoding.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any, Final
from urllib.parse import quote, urlsplit

import orjson
import pytest
from standardwebhooks.webhooks import Webhook

from infra.crypto import new_key
from schemas.signatures import format_keypair
from tests.support.canaries import Canaries, dump, secret_fields
from tests.support.certificates import Authority
from tests.support.commands import run
from tests.support.marked import MADE, MarkedInstallation, Witness, with_password
from tests.support.rabbit_server import RabbitServer
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually

# Every field that is typed as a secret, and the slots whose marks are put there. The first test holds it to the models.
MARKED: Final[Mapping[str, tuple[str, ...]]] = {
    "Settings.broker_url": ("the password of the broker's URL", "the password of a broker that refuses"),
    "Settings.database_url": ("the password of the database's URL", "the password of a database that is away"),
    "Settings.encryption_keys": ("the first encryption key", "the second encryption key"),
    "Settings.egress_proxy": ("the password of the outbound proxy",),
    "Settings.otlp_endpoint": ("the password of the collector's URL",),
    "SubscriptionCreate.secret": ("a given whsec_", "a given whsk_", "a given text", "a whsec_ that is refused"),
    "SecretRotation.secret": ("a whsec_ rotated to", "a text rotated to", "a whsec_ rotated to and refused"),
    "BasicAuth.password": ("a password", "a password that is refused"),
    "BearerAuth.token": ("a bearer token", "a bearer token that is refused"),
    "ApiKeyAuth.value": ("an API key", "an API key that is refused"),
    "OAuth2Auth.client_secret": ("a client's secret", "a client's secret that is refused"),
    "Tls.client_key": ("a client's key", "a client's key that is refused"),
    "HeaderInput.value": ("a header", "a header as an object", "a header patched in", "a header that is refused"),
}
# What is secret and no such field: made here, or sent as a header to the API.
OTHERS: Final = frozenset({MADE, "an access token", "the admin key", "an admin key that is none"})
HMAC: Final[Mapping[str, object]] = {"scheme": "hmac", "algorithm": "sha256", "header": "X-Signature"}
ONCE: Final[Mapping[str, object]] = {"delays_s": []}
AUTHORITY: Final = Authority()
OUTCOMES: Final = {"delivered": 4, "dead": 5}
# What would be in a log if the net at its end had caught something: nothing may have come so far.
CAUGHT: Final = (b"whsec_***", b"whsk_***", b":***@")


def test_every_field_that_is_typed_as_a_secret_has_a_mark() -> None:
    assert secret_fields() == set(MARKED)


def test_a_secret_is_found_in_whatever_form() -> None:
    canaries = Canaries()
    secret = canaries.text("there")
    for told in (
        f"Bearer {secret}.".encode(),
        quote(secret, safe="").encode(),
        secret.encode().hex().upper().encode(),
        *(base64.b64encode(f"{before}{secret}!".encode()) for before in ("", "a", "ab", "abc")),
        base64.urlsafe_b64encode(f"user:{secret}".encode()).rstrip(b"="),
        orjson.dumps({"a": f'"{secret}'}),
    ):
        assert canaries.found_in(told), told
    assert not canaries.found_in(secret[:-1])
    key = canaries.add("a key", new_key())
    assert canaries.found_in(b"\x00" + base64.urlsafe_b64decode(key) + b"\x00")


@pytest.fixture
async def collector() -> AsyncIterator[Receiver]:
    async with Receiver() as one:
        yield one


@pytest.fixture(params=["rabbitmq", "postgres"])
def rabbit(request: pytest.FixtureRequest) -> RabbitServer | None:
    """The RabbitMQ that carries the events; None where the database does."""
    return request.getfixturevalue("rabbit_server") if request.param == "rabbitmq" else None


@pytest.fixture
async def installation(
    rabbit: RabbitServer | None, database_url: str, collector: Receiver, tmp_path: Path
) -> AsyncIterator[MarkedInstallation]:
    canaries = Canaries()
    password = canaries.text("the password of the broker's URL")
    if rabbit is None:
        system = System(database_url, database_url)
        yield MarkedInstallation(system, with_password(database_url, password), canaries, collector, tmp_path)
        return
    await asyncio.to_thread(rabbit.ctl, "add_user", "canary", password)
    await asyncio.to_thread(rabbit.ctl, "set_permissions", "canary", ".*", ".*", ".*")
    place = urlsplit(rabbit.url)
    broker_url = f"amqp://canary:{quote(password, safe='')}@{place.hostname}:{place.port}/"
    yield MarkedInstallation(System(database_url, rabbit.url), broker_url, canaries, collector, tmp_path)
    await asyncio.to_thread(rabbit.ctl, "delete_user", "canary")


async def test_no_secret_is_found_in_anything_that_is_told_or_stored(
    installation: MarkedInstallation, receiver: Receiver, collector: Receiver
) -> None:
    canaries, system = installation.canaries, installation.system
    told: dict[str, bytes] = {}
    async with installation.serve() as (api, dispatcher):
        by_name = await subscribe(api, receiver, canaries)
        await deliver(api, system, OUTCOMES)
        await change(api, system, by_name["given"], canaries)
        await refuse(api, by_name["given"], canaries)
        await operate(api, system, by_name)
        await look_at_everything(api)
        for name, base in (("api", api.base), ("dispatcher", dispatcher)):
            assert await api.raw("GET", f"{base}/metrics") == 200
            told[f"metrics of the {name}"] = api.answers[-1]
    told |= {"answers": b"\n".join(api.answers)} | installation.logs
    told["bodies that were sent"] = b"\n".join(request.body for request in receiver.requests)
    told["spans"] = b"\n".join(request.body for request in collector.to("/v1/traces"))
    told |= {f"table {name}": content for name, content in (await dump(system.database_url)).items()}
    told |= await commands(installation)

    arrived(by_name, receiver, collector, canaries)
    assert canaries.slots == OTHERS.union(*MARKED.values())
    there_is_something_in(told)
    assert {where: found for where, content in told.items() if (found := canaries.found_in(content))} == {}
    assert [name for name, log in installation.logs.items() if any(mark in log for mark in CAUGHT)] == []


async def subscribe(api: Api, receiver: Receiver, canaries: Canaries) -> dict[str, dict[str, Any]]:
    """Subscriptions with a mark in each of their fields, to endpoints that answer well and in every other way."""
    headers = {
        "X-Key": canaries.text("a header"),
        "X-Token": {"value": canaries.text("a header as an object"), "secret": True},
    }
    raw = base64.b64encode(canaries.text("a given whsec_").encode()).decode()
    pair = format_keypair(canaries.add("a given whsk_", f"{token_hex(16)}").encode())
    password = canaries.text("a password")
    echo = f"who are you? X-Key: {headers['X-Key']} and {password}"
    granted = {"access_token": canaries.text("an access token"), "token_type": "Bearer", "expires_in": 3600}
    token_url = receiver.behave("/token", Behaviour(body=orjson.dumps(granted)))
    client = AUTHORITY.issue("client")
    canaries.add("a client's key", client.key.splitlines()[1])
    refuses = receiver.behave("/refuses", Behaviour(status=401, body=echo.encode(), headers={"Server": echo}))
    slow = receiver.behave("/slow", Behaviour(delay_s=3))
    flaky = receiver.behave("/flaky", Behaviour(fail_first=1))
    no_tls = f"https://127.0.0.1:{receiver.port}/tls"
    return {
        "given": await api.subscribe(receiver.url("/given"), headers=headers, secret=f"whsec_{raw}"),
        "pair": await api.subscribe(
            flaky,
            headers=headers,
            secret=pair,
            signature={"scheme": "standard", "versions": ["v1a", "v1"]},
            retry_policy={"delays_s": [0]},
        ),
        "text": await api.subscribe(
            receiver.url("/text"), "order.#", secret=canaries.text("a given text"), signature=HMAC
        ),
        "made": await api.subscribe(
            receiver.behave("/made", Behaviour(body=f"you sent {granted['access_token']}".encode())),
            auth={
                "type": "oauth2",
                "token_url": token_url,
                "client_id": "c",
                "client_secret": canaries.text("a client's secret"),
            },
        ),
        "refuses": await api.subscribe(
            refuses,
            headers=headers,
            retry_policy=ONCE,
            auth={"type": "basic", "username": "u", "password": password},
        ),
        "slow": await api.subscribe(
            slow,
            headers=headers,
            retry_policy=ONCE,
            timeout_s=1,
            auth={"type": "api_key", "header": "X-Api-Key", "value": canaries.text("an API key")},
        ),
        "no tls": await api.subscribe(
            no_tls,
            headers=headers,
            retry_policy=ONCE,
            tls={"client_certificate": client.certificate, "client_key": client.key},
        ),
        "nobody": await api.subscribe(
            "http://127.0.0.1:9/",
            headers=headers,
            retry_policy=ONCE,
            auth={"type": "bearer", "token": canaries.text("a bearer token")},
        ),
        "proxied": await api.subscribe("http://proxied.example/", headers=headers, retry_policy=ONCE),
        "operational": await api.subscribe(receiver.url("/operational"), "hookhare.#"),
    }


async def deliver(api: Api, system: System, outcomes: Mapping[str, int]) -> None:
    """Publish an event to all of them, over the API, and wait until each delivery has come to its end."""
    await api.call("POST", "/v1/events", {"type": "order.created", "data": {"n": 1}, "headers": {"X-Region": "eu"}})

    async def ended() -> bool:
        rows = await system.fetch(
            "SELECT status, count(*) AS number FROM deliveries WHERE event_type = 'order.created' GROUP BY status"
        )
        return {row["status"]: row["number"] for row in rows} == outcomes

    await eventually(ended, system.statuses, deadline_s=60)


async def change(api: Api, system: System, subscription: dict[str, Any], canaries: Canaries) -> None:
    one = f"/v1/subscriptions/{subscription['id']}"
    await api.call("PATCH", one, {"headers": {"X-Key": canaries.text("a header patched in")}, "description": "new"})
    raw = base64.b64encode(canaries.text("a whsec_ rotated to").encode()).decode()
    await api.call("POST", f"{one}/rotate-secret", {"secret": f"whsec_{raw}"})
    await api.call("POST", f"{one}/rotate-secret")
    tested = await api.call("POST", f"{one}/test?wait_s=0", expect=202)

    async def delivered() -> bool:
        return bool((await api.call("GET", f"/v1/deliveries/{tested['id']}"))["status"] == "delivered")

    await eventually(delivered, deadline_s=60)
    await api.call("PATCH", one, {"signature": HMAC})  # what signs no more is kept
    await api.call("POST", f"{one}/rotate-secret", {"secret": canaries.text("a text rotated to")})


async def refuse(api: Witness, subscription: dict[str, Any], canaries: Canaries) -> None:
    """Requests that are refused, with marks where a caller may have put them."""
    one = f"/v1/subscriptions/{subscription['id']}"
    least = {"url": "https://example.com/", "event_types": ["#"]}
    header = canaries.text("a header that is refused")
    secret = f"whsec_{canaries.text('a whsec_ that is refused')}"  # no base64
    rotated = f"whsec_{canaries.text('a whsec_ rotated to and refused')}"
    bodies: list[tuple[str, str, object]] = [
        ("POST", "/v1/subscriptions", least | {"headers": {"X-Key": f"{header}\n"}}),
        ("POST", "/v1/subscriptions", least | {"headers": {"X-Key": [header]}}),
        ("POST", "/v1/subscriptions", least | {"headers": {"X-Key": {"value": f" {header}"}}}),
        ("POST", "/v1/subscriptions", least | {"headers": {"X-Key": {"value": header, "secret": header}}}),
        ("POST", "/v1/subscriptions", least | {"headers": header}),
        ("POST", "/v1/subscriptions", least | {"headers": {"Host": header}}),
        ("POST", "/v1/subscriptions", least | {"secret": secret}),
        ("POST", "/v1/subscriptions", least | {"secret": [secret]}),
        ("POST", "/v1/subscriptions", least | {"secret": {"text": secret}}),
        ("POST", "/v1/subscriptions", least | {"url": "nowhere", "secret": secret, "headers": {"X-Key": header}}),
        ("POST", "/v1/subscriptions", least | {"credentials": secret}),
        ("POST", "/v1/subscriptions", least | {"secret": f"{secret}\n", "signature": HMAC}),
        ("POST", "/v1/subscriptions", least | {"secret": secret, "signature": {**HMAC, "prefix": "\n"}}),
        ("PATCH", one, {"signature": {**HMAC, "key": secret}}),
        ("POST", f"{one}/rotate-secret", {"secret": f"{rotated}\n"}),
        ("PATCH", one, {"headers": {"X-Key": f"{header}\x00"}}),
        ("PATCH", one, {"secret": secret}),
        ("POST", f"{one}/rotate-secret", {"secret": rotated, "version": "v1a"}),
        ("POST", f"{one}/rotate-secret", {"secret": f"whsec_{raw_of(rotated)}", "grace_s": rotated}),
        ("POST", "/v1/subscriptions/sub_00000000000000000000000000/rotate-secret", {"secret": rotated}),
    ]
    bodies += [("POST", "/v1/subscriptions", least | {"auth": auth}) for auth in refused_auth(canaries)]
    key = canaries.text("a client's key that is refused")
    certificate = AUTHORITY.issue("client").certificate
    for tls in (
        {"client_key": key},
        {"client_key": key, "client_certificate": key},
        {"client_key": key, "client_certificate": certificate},
        {"client_key": [key], "client_certificate": certificate, "key": key},
    ):
        bodies.append(("PATCH", one, {"tls": tls}))
    for method, path, body in bodies:
        status, answer = await api.ask(method, path, body)
        assert status in {400, 404}, (path, status, answer)
    url = f"{api.base}/v1/subscriptions"
    broken = f'{{"url": "https://example.com/", "secret": "{secret}", "headers": {{"X-Key": "{header}"'
    assert await api.raw("POST", url, data=broken.encode()) == 400
    stranger = "hh_" + canaries.text("an admin key that is none")
    assert await api.raw("GET", url, headers={"Authorization": f"Bearer {stranger}"}) == 401
    assert await api.raw("GET", url, headers={"Authorization": stranger}) == 401


def refused_auth(canaries: Canaries) -> list[dict[str, Any]]:
    password = canaries.text("a password that is refused")
    token = canaries.text("a bearer token that is refused")
    value = canaries.text("an API key that is refused")
    secret = canaries.text("a client's secret that is refused")
    oauth2: dict[str, Any] = {"type": "oauth2", "token_url": "https://example.com/", "client_id": "c"}
    return [
        {"type": "basic", "username": "u", "password": f"{password}\n"},
        {"type": "basic", "username": ["u"], "password": [password], "pass": password},
        {"type": "bearer", "token": f" {token}"},
        {"type": token, "token": token},
        {"type": "api_key", "header": "Host", "value": value},
        {"type": "api_key", "header": "X-Key", "value": {"value": value}},
        oauth2 | {"client_secret": f"{secret} "},
        oauth2 | {"client_secret": secret, "token_url": "http://169.254.169.254/"},
        oauth2 | {"client_secret": secret, "client_auth": secret},
    ]


def raw_of(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def operate(api: Api, system: System, by_name: Mapping[str, dict[str, Any]]) -> None:
    """What an operator does with what has failed."""
    letters = {one["subscription_id"]: one for one in await api.all("/v1/dead-letters")}
    dead = {one["subscription_id"]: one for one in await api.all("/v1/deliveries?status=dead")}
    await api.call("POST", f"/v1/dead-letters/{letters[by_name['slow']['id']]['id']}/replay")
    await api.call("POST", f"/v1/dead-letters/{letters[by_name['no tls']['id']]['id']}/discard")
    await api.call("POST", f"/v1/deliveries/{dead[by_name['nobody']['id']]['id']}/replay")
    replay = await api.call("POST", "/v1/replays", {"subscription_id": by_name["refuses"]["id"], "status": ["dead"]})
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    await api.call("POST", f"/v1/subscriptions/{by_name['refuses']['id']}/recover", {"since": since})
    (event,) = await api.all("/v1/events?type=order.created")
    await api.call("POST", f"/v1/events/{event['id']}/redeliver")
    await api.call("POST", "/v1/deliveries/retry", {"event_type": "order.created"})

    async def quiet() -> bool:
        state = (await api.call("GET", f"/v1/replays/{replay['id']}"))["state"]
        waiting = {name for name in await system.statuses() if name in {"pending", "held", "retrying"}}
        return state == "completed" and not waiting

    await eventually(quiet, system.statuses, deadline_s=60)
    for action in ("pause", "resume", "disable", "enable"):
        await api.call("POST", f"/v1/subscriptions/{by_name['slow']['id']}/{action}")
    await api.call("POST", "/v1/deliveries/cancel", {"event_type": "order.created"})
    await api.call("DELETE", f"/v1/subscriptions/{by_name['no tls']['id']}", expect=204)


async def look_at_everything(api: Api) -> None:
    for kind in ("subscriptions", "events", "deliveries", "dead-letters", "replays", "audit-log"):
        items = await api.all(f"/v1/{kind}")
        assert items, kind
        for item in items:
            await api.call("GET", f"/v1/{kind}/{item['id']}")
    for path in ("/healthz", "/readyz"):
        await api.call("GET", path)


async def commands(installation: MarkedInstallation) -> dict[str, bytes]:
    """What the commands say, those that fail over a mark among them."""
    canaries, environment = installation.canaries, installation.environment
    refused = quote(canaries.text("the password of a broker that refuses"), safe="")
    away = quote(canaries.text("the password of a database that is away"), safe="")
    broker = urlsplit(installation.system.broker_url)
    there = f"{broker.hostname}:{broker.port}" if broker.scheme == "amqp" else "127.0.0.1:9"
    broken = {
        "HOOKHARE_BROKER_URL": f"amqp://canary:{refused}@{there}/",
        "HOOKHARE_DATABASE_URL": f"postgresql://me:{away}@127.0.0.1:9/x",
    }
    keys = {"HOOKHARE_ENCRYPTION_KEYS": f"{installation.keys[0]},{installation.keys[1]}*"}
    said: dict[str, bytes] = {}
    for expected, command, changes in (
        (0, "settings", {}),
        (0, "topology", {}),
        (0, "keys rotate-encryption", {}),
        (1, "migrate", broken),
        (1, "topology --declare", broken),
        (1, "api", broken),
        (1, "dispatcher", {"HOOKHARE_BROKER_URL": broken["HOOKHARE_BROKER_URL"]}),
        (1, "migrate", {"HOOKHARE_DATABASE_URL": away}),
        (1, "dispatcher", {"HOOKHARE_BROKER_URL": refused}),
        (1, "keys rotate-encryption", keys),
    ):
        code, output = await run(environment | {"HOOKHARE_BROKER_TIMEOUT_S": "2"} | changes, *command.split())
        assert code == expected, (command, output)
        said[f"hookhare {command}, {len(said)}"] = output.encode()
    return said


def arrived(by_name: Mapping[str, dict[str, Any]], receiver: Receiver, collector: Receiver, canaries: Canaries) -> None:
    """The marks were in use: the endpoints got them, and their signatures are from them."""
    assert canaries.found_in(collector.to("/v1/traces")[0].headers["authorization"])
    first, last = receiver.to("/given")[0], receiver.to("/given")[-1]
    Webhook(by_name["given"]["secret"]).verify(first.body, dict(first.headers))
    sent = set(canaries.found_in(str(first.all_headers)))
    assert {"a header, as it is", "a header as an object, as it is"} <= sent
    assert "a header patched in, as it is" in canaries.found_in(str(last.all_headers))
    assert "v1a," in receiver.to("/flaky")[0].headers["webhook-signature"]
    assert len(receiver.to("/text")[0].headers["x-signature"]) == 64
    assert "an access token, as it is" in canaries.found_in(str(receiver.to("/made")[0].all_headers))
    assert "a password, base64 after 2" in canaries.found_in(str(receiver.to("/refuses")[0].all_headers))
    assert "an API key, as it is" in canaries.found_in(str(receiver.to("/slow")[0].all_headers))
    shown = base64.b64decode(receiver.to("/token")[0].headers["authorization"].removeprefix("Basic "))
    assert "a client's secret, form-encoded" in canaries.found_in(shown)
    assert {"/refuses", "/slow", "/operational"} <= {request.path for request in receiver.requests}


def there_is_something_in(told: Mapping[str, bytes]) -> None:
    """What is searched is what it is taken for."""
    for where, mark in (
        ("api.log", b'"event":"api.request"'),
        ("dispatcher.log", b'"event":"delivery.attempted"'),
        ("spans", b"hookhare.events"),
        ("metrics of the api", b"hookhare_"),
        ("metrics of the dispatcher", b"hookhare_"),
        ("answers", b"[redacted]"),
        ("table subscriptions", b"gAAAAA"),  # what Fernet's tokens begin with
        ("table attempts", b"who are you?"),
        ("table dead_letters", b"attempts used up"),
        ("bodies that were sent", b"hookhare.subscription.updated"),
        ("hookhare settings, 0", b"(set, not shown)"),
    ):
        assert mark in told[where], (where, told[where][-2000:])
