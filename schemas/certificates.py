"""Certificates and keys in PEM form, read: what is wrong with them, and what may be shown of them.

`cryptography` is imported where it is used, since the base install does not have it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from schemas.destination_auth import Tls
from schemas.errors import InvalidInput, Problem

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_MAX_SUBJECT_CHARS: Final = 500


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

    Raises InvalidInput that names the fields, from `tls` on, and never shows a key.
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

    try:
        key = load_pem_private_key(pem.encode("ascii"), password=None)
    except TypeError:
        return "must not be encrypted; it is encrypted here when it is stored"
    except (ValueError, UnsupportedAlgorithm):
        return "must be a private key in PEM form (-----BEGIN PRIVATE KEY-----), and cannot be read"
    try:
        belongs = key.public_key() == _certificates(chain)[0].public_key()
    except (ValueError, UnsupportedAlgorithm):
        belongs = False
    return None if belongs else "must be the key of the first certificate in client_certificate, and is not"


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
