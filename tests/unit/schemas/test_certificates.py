"""Certificates and keys as they are given: what is wrong is told by field, and never shown."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from schemas.certificates import check_tls, describe_certificates
from schemas.destination_auth import Tls
from schemas.errors import InvalidInput
from tests.support.certificates import Authority

NOW = datetime.now(UTC)
AUTHORITY = Authority("an authority")
CLIENT = AUTHORITY.issue("a client")
OTHER = AUTHORITY.issue("another")
OLD = AUTHORITY.issue("an old one", valid=timedelta(hours=-1))


def locked(key: str) -> str:
    loaded = form.load_pem_private_key(key.encode(), password=None)
    return loaded.private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"pass")
    ).decode()


def no_primes(p_bits: int, q_bits: int) -> str:
    """An RSA key of no use, in that its two primes are none, and of that many bits."""
    p, q = 2**p_bits - 1, 2**q_bits - 1
    numbers = rsa.RSAPrivateNumbers(p, q, 65_537, 65_537, 65_537, 65_537, rsa.RSAPublicNumbers(65_537, p * q))
    key = numbers.private_key(unsafe_skip_rsa_key_validation=True)
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()).decode()


def tls(certificate: str = CLIENT.certificate, key: str = CLIENT.key, ca: str = AUTHORITY.pem) -> Tls:
    return Tls.model_validate({"client_certificate": certificate, "client_key": key, "ca": ca})


def problems(given: Tls, now: datetime = NOW) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        check_tls(given, now=now)
    return {problem.field: problem.message for problem in caught.value.problems}


def test_what_is_right_passes() -> None:
    check_tls(tls(), now=NOW)
    check_tls(tls(certificate=CLIENT.certificate + AUTHORITY.pem), now=NOW)  # a chain
    check_tls(Tls.model_validate({"ca": AUTHORITY.pem + OTHER.certificate}), now=NOW)


@pytest.mark.parametrize(
    ("given", "field", "why"),
    [
        (tls(key=OTHER.key), "tls.client_key", "the key of the first certificate"),
        (tls(certificate=AUTHORITY.pem + CLIENT.certificate), "tls.client_key", "the key of the first certificate"),
        (tls(key=locked(CLIENT.key)), "tls.client_key", "must not be encrypted"),
        (tls(key="nonsense"), "tls.client_key", "cannot be read"),
        (tls(key=CLIENT.certificate), "tls.client_key", "cannot be read"),
        (tls(key=CLIENT.key + AUTHORITY.pem), "tls.client_key", "one private key in PEM form and nothing else"),
        (tls(key=CLIENT.certificate + CLIENT.key), "tls.client_key", "one private key in PEM form and nothing else"),
        (tls(key=CLIENT.key + OTHER.key), "tls.client_key", "one private key in PEM form and nothing else"),
        (tls(key=no_primes(4096, 4096)), "tls.client_key", "at most 4096 bits"),
        (tls(key=no_primes(2049, 2000)), "tls.client_key", "at most 4096 bits"),
        (tls(key=no_primes(2000, 2049)), "tls.client_key", "at most 4096 bits"),
        (tls(key=no_primes(2048, 2048)), "tls.client_key", "cannot be read"),
        (tls(certificate=OLD.certificate, key=OLD.key), "tls.client_certificate", "CN=an old one"),
        (tls(certificate="nonsense"), "tls.client_certificate", "cannot be read"),
        (tls(certificate=CLIENT.certificate + CLIENT.key), "tls.client_certificate", "no private key"),
        (
            tls(certificate=OTHER.certificate.replace("CERTIFICATE", "TRUSTED CERTIFICATE") + CLIENT.certificate),
            "tls.client_certificate",
            "nothing but certificates",
        ),
        (tls(ca=AUTHORITY.pem + OLD.certificate), "tls.ca", "certificate 2 of 2"),
        (tls(ca=AUTHORITY.pem.replace("M", "m", 1)), "tls.ca", "cannot be read"),
        (tls(ca=CLIENT.key), "tls.ca", "no private key"),
    ],
)
def test_what_is_wrong_is_told_by_field_and_not_shown(given: Tls, field: str, why: str) -> None:
    told = problems(given)
    assert list(told) == [field]
    assert why in told[field]
    assert CLIENT.key.splitlines()[1] not in str(told)


def test_every_field_at_fault_is_told() -> None:
    assert set(problems(tls(certificate="x", ca="y"))) == {"tls.client_certificate", "tls.ca"}


def test_it_expires_by_the_given_clock() -> None:
    (described,) = describe_certificates(CLIENT.certificate)
    check_tls(tls(), now=described.not_after - timedelta(seconds=1))
    assert "tls.client_certificate" in problems(tls(), described.not_after)


def test_what_is_shown_is_what_one_compares_with_the_file() -> None:
    first, second = describe_certificates(CLIENT.certificate + AUTHORITY.pem)
    assert (first.subject, second.subject) == ("CN=a client", "CN=an authority")
    assert len(first.sha256) == 64
    assert NOW < first.not_after < NOW + timedelta(hours=2)


def test_a_key_of_another_kind_is_no_error_of_ours() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()).decode()
    assert "tls.client_key" in problems(tls(key=pem))
