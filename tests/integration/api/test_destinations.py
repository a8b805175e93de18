"""`auth` and `tls` over the API: stored encrypted, shown without secrets, replaced whole, refused by field."""

import threading
from datetime import datetime, timedelta
from typing import Any

import orjson
import pytest

import consumer_api.destinations
from consumer_api.destinations import check_certificates
from infra.crypto import Vault, new_key
from infra.settings import Settings
from infra.store.store import Store
from schemas.certificates import check_tls
from schemas.destination_auth import Tls
from schemas.ids import SUBSCRIPTION, parse_id
from tests.support.api import ApiClient
from tests.support.certificates import Authority

SUBSCRIPTIONS = "/v1/subscriptions"
LEAST: dict[str, Any] = {"url": "https://example.com/hook", "event_types": ["#"]}
BASIC: dict[str, Any] = {"type": "basic", "username": "u", "password": "c4nary"}
OAUTH2: dict[str, Any] = {
    "type": "oauth2",
    "token_url": "https://id.example.com/t",
    "client_id": "c",
    "client_secret": "c4nary",
}
AUTHORITY = Authority()
CLIENT = AUTHORITY.issue("client")
TLS = {"client_certificate": CLIENT.certificate, "client_key": CLIENT.key, "ca": AUTHORITY.pem}


async def stored(store: Store, public: str, column: str) -> bytes | None:
    async with store.connection() as conn:
        value: bytes | None = await conn.fetchval(
            f"SELECT {column} FROM subscriptions WHERE id = $1", parse_id(SUBSCRIPTION, public)
        )
        return value


async def test_they_are_stored_encrypted_as_the_dispatcher_reads_them(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    created = await api.post(SUBSCRIPTIONS, LEAST | {"auth": BASIC, "tls": TLS}, status=201)
    vault = Vault.from_settings(settings)
    for column, given in (("auth", BASIC), ("tls", TLS)):
        sealed = await stored(store, created["id"], column)
        assert sealed is not None
        assert b"c4nary" not in sealed
        assert orjson.loads(vault.decrypt(sealed)) == given


async def test_without_them_there_is_nothing(api: ApiClient, store: Store) -> None:
    created = await api.post(SUBSCRIPTIONS, LEAST, status=201)
    assert (created["auth"], created["tls"]) == (None, None)
    assert await stored(store, created["id"], "auth") is None
    assert await stored(store, created["id"], "tls") is None


async def test_a_patch_replaces_them_whole_and_null_takes_them_away(api: ApiClient, store: Store) -> None:
    created = await api.post(SUBSCRIPTIONS, LEAST | {"auth": BASIC, "tls": TLS}, status=201)
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    assert (await api.patch(path, {"description": "x"}))["auth"] == created["auth"]
    shown = (await api.patch(path, {"auth": OAUTH2}))["auth"]
    assert shown == OAUTH2 | {"client_secret": "[redacted]", "client_auth": "basic"}
    shown = (await api.patch(path, {"tls": {"ca": AUTHORITY.pem}}))["tls"]
    assert (shown["client_certificate"], shown["client_key"], len(shown["ca"])) == (None, None, 1)
    gone = await api.patch(path, {"auth": None, "tls": None})
    assert (gone["auth"], gone["tls"]) == (None, None)
    assert await stored(store, created["id"], "auth") is None
    assert await stored(store, created["id"], "tls") is None


async def test_deleting_forgets_them(api: ApiClient, store: Store) -> None:
    created = await api.post(SUBSCRIPTIONS, LEAST | {"auth": BASIC, "tls": TLS}, status=201)
    assert (await api.call("DELETE", f"{SUBSCRIPTIONS}/{created['id']}")).status == 204
    assert await stored(store, created["id"], "auth") is None
    assert await stored(store, created["id"], "tls") is None


CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"auth": {"type": "digest"}}, "auth", "a type: basic, bearer, api_key or oauth2"),
    ({"auth": BASIC | {"username": "c4nary:"}}, "auth.username", "without a colon"),
    ({"auth": BASIC, "headers": {"Authorization": "c4nary"}}, "auth", "headers or the signature set too"),
    ({"auth": OAUTH2 | {"token_url": "http://169.254.169.254/t"}}, "auth.token_url", "HOOKHARE_EGRESS_ALLOW"),
    (
        {
            "auth": {"type": "api_key", "header": "x-hub", "value": "c4nary"},
            "signature": {"scheme": "hmac", "algorithm": "sha256", "header": "X-Hub"},
        },
        "auth",
        "the signature",
    ),
    ({"tls": TLS, "url": "http://example.com/"}, "tls", "https://"),
    ({"tls": TLS | {"client_key": AUTHORITY.issue("x").key}}, "tls.client_key", "of the first certificate"),
    ({"tls": TLS | {"client_key": CLIENT.key + CLIENT.certificate}}, "tls.client_key", "one private key"),
    ({"tls": {"ca": "c4nary"}}, "tls.ca", "PEM"),
    ({"tls": {"ca": AUTHORITY.issue("old", valid=timedelta(hours=-1)).certificate}}, "tls.ca", "CN=old"),
]


@pytest.mark.parametrize(("changes", "field", "why"), CASES, ids=[case[1] for case in CASES])
async def test_what_is_wrong_is_refused_with_the_field_named_and_no_value(
    api: ApiClient, changes: dict[str, Any], field: str, why: str
) -> None:
    answer = await api.call("POST", SUBSCRIPTIONS, LEAST | changes)
    assert (answer.status, answer.code, list(answer.fields)) == (400, "validation_failed", [field])
    assert why in answer.fields[field]
    assert b"c4nary" not in answer.raw
    path = f"{SUBSCRIPTIONS}/{(await api.post(SUBSCRIPTIONS, LEAST, status=201))['id']}"
    before = await api.get(path)
    patched = await api.call("PATCH", path, changes)
    assert list(patched.fields) == [field]
    assert await api.get(path) == before


async def test_what_a_patch_leaves_is_part_of_the_whole(api: ApiClient) -> None:
    """Each half is right by itself."""
    created = await api.post(SUBSCRIPTIONS, LEAST | {"headers": {"authorization": "x"}, "tls": TLS}, status=201)
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    assert list((await api.call("PATCH", path, {"auth": BASIC})).fields) == ["auth"]
    plain = {"url": "http://example.com/", "headers": {}, "tls": TLS}
    assert list((await api.call("PATCH", path, plain)).fields) == ["tls"]
    await api.patch(path, {"auth": BASIC, "headers": {}})
    assert list((await api.call("PATCH", path, {"headers": {"Authorization": "x"}})).fields) == ["auth"]
    assert await api.patch(path, {"headers": {"Authorization": "x"}, "auth": None})


async def test_keys_are_read_away_from_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def noting(tls: Tls, *, now: datetime) -> None:
        threads.append(threading.get_ident())
        check_tls(tls, now=now)

    monkeypatch.setattr(consumer_api.destinations, "check_tls", noting)
    await check_certificates(Tls.model_validate(TLS))
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


async def test_what_openssl_would_not_use_is_refused(api: ApiClient) -> None:
    """A key of 1,024 bits can be read, and is the certificate's; OpenSSL finds it too small."""
    from datetime import UTC

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65_537, 1024)
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "weak")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(hours=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    weak = {"client_certificate": certificate.decode(), "client_key": pem.decode()}
    answer = await api.call("POST", SUBSCRIPTIONS, LEAST | {"tls": weak})
    assert list(answer.fields) == ["tls"]
    assert "ee key too small" in answer.fields["tls"]


async def test_what_cannot_be_decrypted_is_shown_as_such(api: ApiClient, store: Store) -> None:
    created = await api.post(SUBSCRIPTIONS, LEAST | {"auth": BASIC, "tls": TLS}, status=201)
    async with store.transaction() as conn:
        await conn.execute("UPDATE subscriptions SET auth = $1", Vault([new_key()]).encrypt(b"{}"))
    shown = await api.get(f"{SUBSCRIPTIONS}/{created['id']}")
    assert (shown["decryptable"], shown["auth"], shown["tls"]) == (False, None, None)


@pytest.mark.parametrize("elsewhere", ["https://example.org/hook", "https://example.com:8443/hook"])
async def test_credentials_go_to_another_origin_only_when_they_are_given_again(api: ApiClient, elsewhere: str) -> None:
    headers = {"X-Key": "c4nary", "X-Region": {"value": "eu", "secret": False}}
    created = await api.post(SUBSCRIPTIONS, LEAST | {"headers": headers, "auth": BASIC, "tls": TLS}, status=201)
    path = f"{SUBSCRIPTIONS}/{created['id']}"
    kept = await api.get(path)
    answer = await api.call("PATCH", path, {"url": elsewhere})
    assert (answer.status, answer.code, sorted(answer.fields)) == (400, "validation_failed", ["auth", "headers", "tls"])
    assert all("must be given again" in message for message in answer.fields.values())
    assert await api.get(path) == kept
    answer = await api.call("PATCH", path, {"url": elsewhere, "auth": BASIC, "headers": {}})
    assert sorted(answer.fields) == ["tls"]
    assert (await api.patch(path, {"url": "https://EXAMPLE.com:443/other"}))["auth"] is not None  # the same origin
    moved = await api.patch(path, {"url": elsewhere, "auth": None, "headers": headers, "tls": None})
    assert (moved["url"], moved["auth"], moved["tls"]) == (elsewhere, None, None)


async def test_what_is_no_secret_goes_along(api: ApiClient) -> None:
    public = {"X-Region": {"value": "eu", "secret": False}}
    created = await api.post(SUBSCRIPTIONS, LEAST | {"headers": public, "tls": {"ca": AUTHORITY.pem}}, status=201)
    moved = await api.patch(f"{SUBSCRIPTIONS}/{created['id']}", {"url": "https://example.org/"})
    assert (moved["headers"], moved["tls"] is None) == (public, False)


async def test_what_cannot_be_decrypted_does_not_go_along(api: ApiClient, store: Store) -> None:
    created = await api.post(SUBSCRIPTIONS, LEAST | {"headers": {"X-Key": "c4nary"}}, status=201)
    async with store.transaction() as conn:
        await conn.execute("UPDATE subscriptions SET secrets = 'x', headers = 'x'")
    answer = await api.call("PATCH", f"{SUBSCRIPTIONS}/{created['id']}", {"url": "https://example.org/"})
    assert list(answer.fields) == ["headers"]


async def test_a_token_url_changes_only_with_its_client_secret(api: ApiClient) -> None:
    created = await api.post(SUBSCRIPTIONS, LEAST | {"auth": OAUTH2}, status=201)
    without = {name: value for name, value in OAUTH2.items() if name != "client_secret"}
    answer = await api.call(
        "PATCH", f"{SUBSCRIPTIONS}/{created['id']}", {"auth": without | {"token_url": "https://evil.example/t"}}
    )
    assert list(answer.fields) == ["auth.client_secret"]
