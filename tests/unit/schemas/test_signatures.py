"""Standard Webhooks: the published vectors, agreement with the official library both ways, and everything refused.

The vectors' source is named in their file: the specification's own Python and Rust libraries.
"""

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from schemas.errors import InvalidInput
from schemas.signatures import (
    Ed25519Key,
    HmacKey,
    InvalidSignature,
    SigningKey,
    format_keypair,
    format_secret,
    parse_public_key,
    parse_secret,
    public_key,
    sign,
    verify,
)

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "standard-webhooks.json").read_text())
FIRST = VECTORS["sign_and_verify"][0]
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
NOW_S = int(NOW.timestamp())
SECRET = format_secret(bytes(range(32)))
KEYPAIR = format_keypair(bytes(range(32)))


def key_pair() -> Ed25519Key:
    key = parse_secret(KEYPAIR)
    assert isinstance(key, Ed25519Key)
    return key


def headers_of(signatures: str, *, webhook_id: str = "evt_1", timestamp: object = NOW_S) -> dict[str, str]:
    return {"webhook-id": webhook_id, "webhook-timestamp": str(timestamp), "webhook-signature": signatures}


def vector_headers(vector: Mapping[str, Any], signature: str) -> dict[str, str]:
    return headers_of(signature, webhook_id=vector["id"], timestamp=vector["timestamp"])


def at(timestamp_s: int) -> datetime:
    return datetime.fromtimestamp(timestamp_s, UTC)


class TestVectors:
    @pytest.mark.parametrize("vector", VECTORS["sign_and_verify"])
    def test_signs_as_published(self, vector: dict[str, Any]) -> None:
        signature = sign(
            [parse_secret(vector["secret"])],
            webhook_id=vector["id"],
            timestamp=vector["timestamp"],
            body=vector["payload"].encode(),
        )
        assert signature == vector["signature"]

    @pytest.mark.parametrize("vector", VECTORS["sign_and_verify"])
    def test_verifies_as_published(self, vector: dict[str, Any]) -> None:
        verify(
            parse_secret(vector["secret"]),
            headers=vector_headers(vector, vector["signature"]),
            body=vector["payload"].encode(),
            now=at(vector["timestamp"]),
        )

    @pytest.mark.parametrize("signature", VECTORS["accept_for_first_vector"])
    def test_accepts_one_among_several(self, signature: str) -> None:
        verify(
            parse_secret(FIRST["secret"]),
            headers=vector_headers(FIRST, signature),
            body=FIRST["payload"].encode(),
            now=at(FIRST["timestamp"]),
        )

    @pytest.mark.parametrize("signature", VECTORS["reject_for_first_vector"])
    def test_rejects_as_published(self, signature: str) -> None:
        with pytest.raises(InvalidSignature):
            verify(
                parse_secret(FIRST["secret"]),
                headers=vector_headers(FIRST, signature),
                body=FIRST["payload"].encode(),
                now=at(FIRST["timestamp"]),
            )

    @pytest.mark.parametrize("off_s", [VECTORS["tolerance_s"], -VECTORS["tolerance_s"]])
    def test_takes_the_tolerance_to_the_second(self, off_s: int) -> None:
        key, body = parse_secret(FIRST["secret"]), FIRST["payload"].encode()
        headers = vector_headers(FIRST, FIRST["signature"])
        verify(key, headers=headers, body=body, now=at(FIRST["timestamp"] + off_s))
        with pytest.raises(InvalidSignature, match=r"too (old|new)"):
            verify(key, headers=headers, body=body, now=at(FIRST["timestamp"] + off_s + (1 if off_s > 0 else -1)))

    def test_ed25519_is_as_rfc_8032(self) -> None:
        """RFC 8032 section 7.1, test 2: what the library below us makes of the seed, and so of our `whsk_`."""
        seed = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
        public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
        key = parse_secret(format_keypair(seed))
        assert isinstance(key, Ed25519Key)
        assert base64.b64decode(public_key(key).removeprefix("whpk_")).hex() == public
        assert key.signature(b"\x72").hex() == (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        )


class TestOfficialLibrary:
    """It reads the clock itself, so what is verified there is signed now. Its time argument must be in UTC."""

    @given(raw=st.binary(min_size=24, max_size=64), body=st.text().map(str.encode), ago_s=st.integers(0, 200))
    def test_verifies_what_we_sign(self, raw: bytes, body: bytes, ago_s: int) -> None:
        secret = format_secret(raw)
        timestamp = int(datetime.now(UTC).timestamp()) - ago_s
        signature = sign([parse_secret(secret)], webhook_id="evt_1", timestamp=timestamp, body=body)
        Webhook(secret).verify(body, headers_of(signature, timestamp=timestamp), json_parse=False)

    @given(raw=st.binary(min_size=24, max_size=64), body=st.text())
    def test_signs_what_we_verify(self, raw: bytes, body: str) -> None:
        secret = format_secret(raw)
        signature = Webhook(secret).sign("evt_1", NOW, body)
        verify(parse_secret(secret), headers=headers_of(signature), body=body.encode(), now=NOW)
        assert signature == sign([parse_secret(secret)], webhook_id="evt_1", timestamp=NOW_S, body=body.encode())

    def test_finds_its_signature_while_secrets_rotate(self) -> None:
        old, new = format_secret(b"o" * 32), format_secret(b"n" * 32)
        timestamp = int(datetime.now(UTC).timestamp())
        keys = [parse_secret(new), parse_secret(KEYPAIR), parse_secret(old)]
        headers = headers_of(sign(keys, webhook_id="evt_1", timestamp=timestamp, body=b"{}"), timestamp=timestamp)
        for secret in (old, new):
            Webhook(secret).verify(b"{}", headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(format_secret(b"x" * 32)).verify(b"{}", headers)


class TestSignAndVerify:
    @pytest.mark.parametrize("secret", [SECRET, KEYPAIR])
    @given(body=st.binary(), timestamp=st.integers(0, 10**11), name=st.sampled_from(["webhook-id", "Webhook-Id"]))
    def test_round_trip_of_any_bytes(self, secret: str, body: bytes, timestamp: int, name: str) -> None:
        key = parse_secret(secret)
        signature = sign([key], webhook_id="evt_1", timestamp=timestamp, body=body)
        headers = headers_of(signature, timestamp=timestamp)
        headers[name] = headers.pop("webhook-id")
        verify(key, headers=headers, body=body, now=at(timestamp))

    @pytest.mark.parametrize("secret", [SECRET, KEYPAIR])
    @given(body=st.binary(min_size=1), where=st.integers(0), flip=st.integers(1, 255))
    def test_any_changed_byte_is_noticed(self, secret: str, body: bytes, where: int, flip: int) -> None:
        key = parse_secret(secret)
        headers = headers_of(sign([key], webhook_id="evt_1", timestamp=NOW_S, body=body))
        changed = bytearray(body)
        changed[where % len(body)] ^= flip
        with pytest.raises(InvalidSignature, match="no signature"):
            verify(key, headers=headers, body=bytes(changed), now=NOW)

    @pytest.mark.parametrize("secret", [SECRET, KEYPAIR])
    def test_id_and_timestamp_are_signed(self, secret: str) -> None:
        key = parse_secret(secret)
        signature = sign([key], webhook_id="evt_1", timestamp=NOW_S, body=b"{}")
        for headers in (headers_of(signature, webhook_id="evt_2"), headers_of(signature, timestamp=NOW_S - 1)):
            with pytest.raises(InvalidSignature, match="no signature"):
                verify(key, headers=headers, body=b"{}", now=NOW)

    def test_public_key_verifies_and_another_does_not(self) -> None:
        key = key_pair()
        headers = headers_of(sign([key], webhook_id="evt_1", timestamp=NOW_S, body=b"{}"))
        assert headers["webhook-signature"].startswith("v1a,")
        verify(parse_public_key(public_key(key)), headers=headers, body=b"{}", now=NOW)
        other = parse_secret(format_keypair(b"o" * 32))
        with pytest.raises(InvalidSignature):
            verify(other, headers=headers, body=b"{}", now=NOW)

    @pytest.mark.parametrize("secret", [SECRET, KEYPAIR])
    @pytest.mark.parametrize("before", ["", "v1", "v1,", "v1,***", "v1a,***", "v1a,eHh4", "v9,eHh4", ",", " "])
    def test_what_stands_before_the_right_signature_does_not_matter(self, secret: str, before: str) -> None:
        key = parse_secret(secret)
        signature = sign([key], webhook_id="evt_1", timestamp=NOW_S, body=b"{}")
        verify(key, headers=headers_of(f"{before} {signature}"), body=b"{}", now=NOW)

    def test_every_live_secret_signs_in_order(self) -> None:
        keys: list[SigningKey] = [parse_secret(SECRET), key_pair(), parse_secret(format_secret(b"z" * 24))]
        signatures = sign(keys, webhook_id="evt_1", timestamp=NOW_S, body=b"{}")
        assert [part.partition(",")[0] for part in signatures.split(" ")] == ["v1", "v1a", "v1"]
        for key in keys:
            verify(key, headers=headers_of(signatures), body=b"{}", now=NOW)

    def test_a_signature_does_not_pass_under_another_version(self) -> None:
        """The bytes of a `v1` signature under the name `v1a`, and the other way round."""
        for secret, name in ((SECRET, "v1a"), (KEYPAIR, "v1")):
            key = parse_secret(secret)
            signature = sign([key], webhook_id="evt_1", timestamp=NOW_S, body=b"{}").partition(",")[2]
            with pytest.raises(InvalidSignature):
                verify(key, headers=headers_of(f"{name},{signature}"), body=b"{}", now=NOW)

    @pytest.mark.parametrize("webhook_id", ["", "evt.1", "evt 1", "evt\n1", "évt"])
    def test_an_id_that_could_be_read_in_two_ways_is_not_signed(self, webhook_id: str) -> None:
        with pytest.raises(ValueError, match="webhook id"):
            sign([parse_secret(SECRET)], webhook_id=webhook_id, timestamp=NOW_S, body=b"{}")

    @pytest.mark.parametrize(
        "timestamp",
        ["", "now", "1.5", "1e9", "-1", " 1", "1_0", "٣", "9" * 13, "9" * 5000, f"{NOW_S}.0", f"+{NOW_S}"],
    )
    def test_a_malformed_timestamp_is_an_invalid_signature(self, timestamp: str) -> None:
        key = parse_secret(SECRET)
        signature = sign([key], webhook_id="evt_1", timestamp=NOW_S, body=b"{}")
        with pytest.raises(InvalidSignature, match="webhook-timestamp"):
            verify(key, headers=headers_of(signature, timestamp=timestamp), body=b"{}", now=NOW)

    @pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
    def test_a_missing_or_doubled_header_is_named(self, missing: str) -> None:
        key = parse_secret(SECRET)
        headers = headers_of(sign([key], webhook_id="evt_1", timestamp=NOW_S, body=b"{}"))
        with pytest.raises(InvalidSignature, match=f"{missing} is there more than once"):
            verify(key, headers={**headers, missing.title(): "x"}, body=b"{}", now=NOW)
        del headers[missing]
        with pytest.raises(InvalidSignature, match=f"{missing} is missing"):
            verify(key, headers=headers, body=b"{}", now=NOW)

    @pytest.mark.parametrize("secret", [SECRET, KEYPAIR])
    @given(
        webhook_id=st.text(),
        signatures=st.one_of(st.text(), st.text("v1a, =AZaz09+/").map(lambda text: f"v1,{text} v1a,{text} {text}")),
    )
    def test_junk_is_an_invalid_signature_and_nothing_else(self, secret: str, webhook_id: str, signatures: str) -> None:
        with pytest.raises(InvalidSignature):
            verify(parse_secret(secret), headers=headers_of(signatures, webhook_id=webhook_id), body=b"{}", now=NOW)

    def test_the_number_of_signatures_is_bounded(self) -> None:
        key = parse_secret(SECRET)
        signature = sign([key], webhook_id="evt_1", timestamp=NOW_S, body=b"{}")
        with pytest.raises(InvalidSignature, match="longer than"):
            verify(key, headers=headers_of("v1,x " * 2000 + signature), body=b"{}", now=NOW)

    def test_tolerance_is_the_callers(self) -> None:
        key = parse_secret(SECRET)
        headers = headers_of(sign([key], webhook_id="evt_1", timestamp=NOW_S, body=b"{}"))
        later = NOW + timedelta(seconds=11)
        verify(key, headers=headers, body=b"{}", now=later, tolerance_s=11)
        with pytest.raises(InvalidSignature, match="too old"):
            verify(key, headers=headers, body=b"{}", now=later, tolerance_s=10)


def encoded(prefix: str, raw: bytes) -> str:
    return prefix + base64.b64encode(raw).decode()


class TestSecrets:
    @given(raw=st.binary(min_size=24, max_size=64))
    def test_format_and_parse_agree(self, raw: bytes) -> None:
        key = parse_secret(format_secret(raw))
        assert isinstance(key, HmacKey)
        assert key.signature(b"x") == parse_secret(encoded("whsec_", raw)).signature(b"x")

    @pytest.mark.parametrize("size", [0, 23, 65])
    def test_secrets_of_a_wrong_size_are_refused(self, size: int) -> None:
        with pytest.raises(InvalidInput, match="24 to 64"):
            parse_secret(encoded("whsec_", b"x" * size))
        with pytest.raises(InvalidInput, match="24 to 64"):
            format_secret(b"x" * size)
        with pytest.raises(InvalidInput, match="32 random bytes"):
            format_keypair(b"x" * size)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "whsec_",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",  # no prefix
            "WHSEC_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "whpk_" + "A" * 43 + "=",  # verifies, but does not sign
            "whsec_" + "A" * 43,  # padding left out
            "whsec_" + "A" * 42 + "B=",  # bits that no byte has
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n",
            "whsec_MfKQ9r8GKYqrTwjU PD8ILPZIo2LaLaSw",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2La-_Sw",  # the alphabet of URLs
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSé",
            "whsk_" + "A" * 43 + "=",  # the seed alone
        ],
    )
    def test_malformed_secrets_are_refused_unseen(self, text: str) -> None:
        with pytest.raises(InvalidInput) as caught:
            parse_secret(text, field="signing.secret")
        assert caught.value.problems[0].field == "signing.secret"
        tail = text.rpartition("_")[2]
        assert len(tail) < 5 or tail not in str(caught.value)

    def test_a_pair_whose_halves_do_not_belong_together_is_refused(self) -> None:
        other = Ed25519PrivateKey.from_private_bytes(b"o" * 32).public_key().public_bytes_raw()
        with pytest.raises(InvalidInput, match="does not belong to its seed"):
            parse_secret(encoded("whsk_", bytes(32) + other))

    @pytest.mark.parametrize("text", ["", "whpk_", encoded("whpk_", b"x" * 31), encoded("whsec_", b"x" * 32), "whpk_é"])
    def test_malformed_public_keys_are_refused(self, text: str) -> None:
        with pytest.raises(InvalidInput, match="public_key: must be whpk_"):
            parse_public_key(text)

    @given(raw=st.binary(min_size=24, max_size=64))
    def test_no_repr_shows_a_key(self, raw: bytes) -> None:
        assert repr(parse_secret(format_secret(raw))) == "HmacKey(…)"
        assert repr(key_pair()) == "Ed25519Key(…)"
        assert repr(parse_public_key(public_key(key_pair()))) == "PublicKey(…)"
