"""Certificates and keys in PEM form, read: what is wrong with them, and what may be shown of them.

`cryptography` is imported where it is used, since the base install does not have it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from schemas.destination_auth import Tls
from schemas.errors import InvalidInput, Problem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

MAX_RSA_BITS: Final = 4096
_MAX_SUBJECT_CHARS: Final = 500
_PEM_BEGINS: Final = "-----BEGIN"
_CERTIFICATE_BEGINS: Final = "-----BEGIN CERTIFICATE-----"
_NO_KEY: Final = "must be a private key in PEM form (-----BEGIN PRIVATE KEY-----), and cannot be read"
_ONE_KEY: Final = re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """What is shown of a certificate. `sha256` is its fingerprint, over the DER form, in hexadecimal."""

    subject: str
    not_after: datetime
    sha256: str


def describe_certificates(pem: str) -> list[CertificateInfo]:
    """Every certificate in `pem`, in its order. Raises ValueError when there is none, or one that cannot be read."""
    return [_described(one) for one in _certificates(pem)]


def check_tls(tls: Tls, *, now: datetime) -> None:
    """Return if the certificates can be read and have not expired, and the key is that of the first certificate.

    Blocks: to see that a key of `MAX_RSA_BITS` is one takes some tenths of a second. Raises InvalidInput that names the
    fields, from `tls` on, and never shows a key.
    """
    problems = []
    for name, pem in (("tls.client_certificate", tls.client_certificate), ("tls.ca", tls.ca)):
        fault = None if pem is None else _certificates_fault(pem, now)
        if fault is not None:
            problems.append(Problem(name, fault))
    if tls.client_certificate is not None and tls.client_key is not None and not problems:
        fault = _key_fault(tls.client_key.get_secret_value(), tls.client_certificate)
        if fault is not None:
            problems.append(Problem("tls.client_key", fault))
    if problems:
        raise InvalidInput(problems)


def _certificates_fault(pem: str, now: datetime) -> str | None:
    if "PRIVATE KEY-----" in pem:
        return "must hold certificates and no private key, which goes into client_key"
    # Of another kind, as TRUSTED CERTIFICATE, OpenSSL would take one that is not shown.
    if pem.count(_PEM_BEGINS) != pem.count(_CERTIFICATE_BEGINS):
        return "must hold nothing but certificates that begin with -----BEGIN CERTIFICATE-----"
    try:
        described = describe_certificates(pem)
    except ValueError:
        return "must be certificates in PEM form (-----BEGIN CERTIFICATE-----), and one of them cannot be read"
    for number, one in enumerate(described, start=1):
        if one.not_after <= now:
            which = f"certificate {number} of {len(described)}, {one.subject or 'which has no subject'},"
            return f"must be certificates that have not expired: {which} did at {one.not_after:%Y-%m-%dT%H:%M:%SZ}"
    return None


def _key_fault(pem: str, chain: str) -> str | None:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - see the module
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - see the module

    # A certificate in it would be sent in place of the one that is shown: OpenSSL takes the first that it comes upon.
    if pem.count(_PEM_BEGINS) > 1:
        return "must hold one private key in PEM form and nothing else; certificates go into client_certificate"
    if not _ONE_KEY.search(pem):
        return _NO_KEY
    data = pem.encode("ascii")
    try:
        # To check a key takes time that grows fast with its length, and holds up every thread: its length comes first.
        if _is_too_long(load_pem_private_key(data, password=None, unsafe_skip_rsa_key_validation=True)):
            return f"must be of at most {MAX_RSA_BITS} bits if it is an RSA key, half of them in each of its two primes"
        key = load_pem_private_key(data, password=None)
    except TypeError:
        return "must not be encrypted; it is encrypted here when it is stored"
    except (ValueError, UnsupportedAlgorithm):
        return _NO_KEY
    try:
        belongs = key.public_key() == _certificates(chain)[0].public_key()
    except (ValueError, UnsupportedAlgorithm):
        belongs = False
    return None if belongs else "must be the key of the first certificate in client_certificate, and is not"


def _is_too_long(key: "PrivateKeyTypes") -> bool:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey  # noqa: PLC0415 - see the module

    if not isinstance(key, RSAPrivateKey):
        return False
    numbers = key.private_numbers()  # of a key that is made to take long, each may be of any length
    return key.key_size > MAX_RSA_BITS or max(numbers.p, numbers.q).bit_length() > MAX_RSA_BITS // 2


def _certificates(pem: str) -> "Sequence[Certificate]":
    from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415 - see the module

    return load_pem_x509_certificates(pem.encode("ascii"))


def _described(certificate: "Certificate") -> CertificateInfo:
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - see the module

    return CertificateInfo(
        certificate.subject.rfc4514_string()[:_MAX_SUBJECT_CHARS],
        certificate.not_valid_after_utc,
        certificate.fingerprint(SHA256()).hex(),
    )
