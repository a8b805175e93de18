"""TLS of a subscription's own: a client certificate, a private authority, and contexts that are made once."""

import gc
import ssl
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

import infra.tls
from infra.egress import open_egress
from infra.settings import read_settings
from infra.tls import Contexts, Unusable, make_context
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer
from schemas.destination_auth import Tls
from tests.support.certificates import Authority
from tests.support.system import ANY_URL
from tests.support.tls_receiver import tls_receiver

SETTINGS = read_settings(egress_allow="127.0.0.0/8", **ANY_URL)
AUTHORITY = Authority()
SERVER = AUTHORITY.issue("server")
CLIENT = AUTHORITY.issue("client-one")


def tls(**fields: object) -> Tls:
    return Tls.model_validate(fields)


TRUSTING = tls(ca=AUTHORITY.pem)
WHOLE = tls(ca=AUTHORITY.pem, client_certificate=CLIENT.certificate, client_key=CLIENT.key)


async def post(url: str, asked: Tls) -> AttemptResult:
    context = make_context(asked)
    assert not isinstance(context, Unusable)
    async with open_egress(SETTINGS) as egress:
        return await egress.post(url, headers={}, body=b"{}", timeout_s=5, tls=context)


async def test_a_client_certificate_lets_a_request_in(tmp_path: Path) -> None:
    with tls_receiver(SERVER.server_tls(tmp_path, clients_of=AUTHORITY)) as receiver:
        result = await post(receiver.url, WHOLE)
    assert isinstance(result, Answered)
    assert receiver.clients == ["client-one"]
    assert result.timings.tls_ms is not None


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_that_it_is_missing_is_told(tmp_path: Path, newest: ssl.TLSVersion) -> None:
    """By TLS 1.3 the endpoint says so only after the handshake, when the request may have been sent."""
    context = SERVER.server_tls(tmp_path, clients_of=AUTHORITY)
    context.maximum_version = newest
    with tls_receiver(context) as receiver:
        result = await post(receiver.url, TRUSTING)
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.TLS, result
    assert ("certificate required" if newest is ssl.TLSVersion.TLSv1_3 else "handshake failure") in result.reason
    assert receiver.clients == []


async def test_that_another_authoritys_is_refused_is_told(tmp_path: Path) -> None:
    stranger = Authority("another").issue("stranger")
    asked = tls(ca=AUTHORITY.pem, client_certificate=stranger.certificate, client_key=stranger.key)
    with tls_receiver(SERVER.server_tls(tmp_path, clients_of=AUTHORITY)) as receiver:
        result = await post(receiver.url, asked)
    assert isinstance(result, NoAnswer)
    assert result.failure is Failure.TLS, result
    assert "unknown ca" in result.reason


async def test_a_private_authority_is_the_only_one(tmp_path: Path) -> None:
    context = make_context(TRUSTING)
    assert isinstance(context, ssl.SSLContext)
    assert len(context.get_ca_certs()) == 1
    with tls_receiver(SERVER.server_tls(tmp_path)) as receiver:
        assert isinstance(await post(receiver.url, TRUSTING), Answered)
        other = await post(receiver.url, tls(ca=Authority("another").pem))
    assert isinstance(other, NoAnswer)
    assert "is not trusted" in other.reason


async def test_a_context_is_made_once_and_another_for_other_content() -> None:
    contexts = Contexts(kept=2)
    first = await contexts.get(WHOLE)
    assert await contexts.get(tls(**WHOLE.model_dump())) is first
    assert await contexts.get(TRUSTING) is not first
    await contexts.close()


async def test_the_oldest_context_is_forgotten() -> None:
    contexts = Contexts(kept=1)
    first = await contexts.get(TRUSTING)
    await contexts.get(WHOLE)
    assert await contexts.get(TRUSTING) is not first


@pytest.mark.parametrize("memory", [True, False])
def test_a_key_is_left_in_no_file(memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if not memory:
        monkeypatch.setattr(infra.tls, "_OPEN_FILES", tmp_path / "nowhere")
    before = {path.name for path in Path("/proc/self/fd").iterdir()}
    assert isinstance(make_context(WHOLE), ssl.SSLContext)
    assert list(tmp_path.iterdir()) == []
    assert {path.name for path in Path("/proc/self/fd").iterdir()} == before


def test_what_openssl_would_not_use_is_a_reason_and_not_an_error() -> None:
    assert CLIENT.key != SERVER.key
    mismatched = replace(CLIENT, key=SERVER.key)
    made = make_context(tls(client_certificate=mismatched.certificate, client_key=mismatched.key))
    assert isinstance(made, Unusable)
    assert made.reason == "OpenSSL refuses its certificates or its key: key values mismatch"


def test_an_encrypted_key_asks_nobody_for_a_password() -> None:
    from cryptography.hazmat.primitives import serialization as form

    key = form.load_pem_private_key(CLIENT.key.encode(), password=None)
    locked = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"x"))
    assert isinstance(make_context(tls(client_certificate=CLIENT.certificate, client_key=locked.decode())), Unusable)


async def test_contexts_that_are_used_no_more_are_let_go() -> None:
    async with open_egress(SETTINGS) as egress:
        url = "https://127.0.0.1:1/"
        first = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        gone = weakref.ref(first)
        await egress.post(url, headers={}, body=b"", timeout_s=5, tls=first)
        del first
        for _ in range(300):
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            await egress.post(url, headers={}, body=b"", timeout_s=5, tls=tls)
        gc.collect()
        assert gone() is None
