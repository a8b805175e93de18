"""How a subscription's requests are written and signed: the format of the body, and the scheme of the signature.

Any format goes with any scheme. What of a subscription does not go together is told by `request_problems`, a function
of the whole of it. Part of the server only: it needs pydantic.
"""

import re
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, assert_never

from pydantic import AfterValidator, Discriminator, Field, Tag, TypeAdapter

from schemas.errors import InvalidInput, Problem
from schemas.headers import header_name_fault
from schemas.inputs import Input, Tags, rule
from schemas.signatures import Algorithm, HmacKey, SigningKey, parse_secret, text_key

MIN_TEXT_SECRET_CHARS: Final = 16
MAX_TEXT_SECRET_CHARS: Final = 256
MAX_PREFIX_CHARS: Final = 64

_TEXT_SECRET: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_PREFIX: Final = re.compile(r"(?:[!-~][ -~]*)?")


class Format(StrEnum):
    """What a body looks like. The two of CloudEvents are the structured and the binary mode of its HTTP binding."""

    STANDARD = "standard"  # {"type", "timestamp", "data"}, as Standard Webhooks has it
    CLOUDEVENTS_STRUCTURED = "cloudevents_structured"
    CLOUDEVENTS_BINARY = "cloudevents_binary"


class Scheme(StrEnum):
    """How a request is signed: by Standard Webhooks 1.0.0, or by the hex of an HMAC over the body, in one header."""

    STANDARD = "standard"
    HMAC = "hmac"


class Version(StrEnum):
    """The signatures of Standard Webhooks."""

    V1 = "v1"  # HMAC-SHA256, by a whsec_ secret
    V1A = "v1a"  # Ed25519, by a whsk_ secret


class Kind(StrEnum):
    """What a secret signs. A subscription needs one of each kind that its signature asks for."""

    V1 = "v1"
    V1A = "v1a"
    TEXT = "text"  # of the scheme hmac: the bytes of the text are the key


def _ordered(versions: tuple[Version, ...]) -> tuple[Version, ...]:
    rule("must not name anything twice" if len(set(versions)) != len(versions) else None)
    return tuple(sorted(versions))


def _header(name: str) -> str:
    rule(header_name_fault(name))
    return name


def _prefix(text: str) -> str:
    fits = len(text) <= MAX_PREFIX_CHARS and _PREFIX.fullmatch(text)
    rule(None if fits else f"must be at most {MAX_PREFIX_CHARS} printable ASCII characters, not beginning with a space")
    return text


class StandardSignature(Input):
    """Standard Webhooks: every live secret of these versions signs."""

    scheme: Literal[Scheme.STANDARD] = Scheme.STANDARD
    versions: Annotated[tuple[Version, ...], Field(min_length=1), AfterValidator(_ordered)] = (Version.V1,)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of secrets that sign."""
        return tuple(Kind(version.value) for version in self.versions)


class HmacSignature(Input):
    """`header: <prefix><hex of the HMAC over the body>`, as GitHub has it and many an older in-house form.

    SHA1 is for receivers that know nothing else.
    """

    scheme: Literal[Scheme.HMAC]
    algorithm: Algorithm
    header: Annotated[str, AfterValidator(_header)]
    prefix: Annotated[str, AfterValidator(_prefix)] = ""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of secrets that sign."""
        return (Kind.TEXT,)


def _scheme(value: object) -> str | None:
    scheme = value.get("scheme") if isinstance(value, Mapping) else getattr(value, "scheme", None)
    return {"standard": Tags.STANDARD, "hmac": Tags.HMAC}.get(scheme) if isinstance(scheme, str) else None


Signature = StandardSignature | HmacSignature
AnySignature = Annotated[
    Annotated[StandardSignature, Tag(Tags.STANDARD)] | Annotated[HmacSignature, Tag(Tags.HMAC)],
    Discriminator(
        _scheme,
        custom_error_type="rule",
        custom_error_message='must be an object with the scheme "standard" or "hmac"',
    ),
]
_signature_reader: TypeAdapter[Signature] = TypeAdapter(AnySignature)

DEFAULT_SIGNATURE: Final = StandardSignature()


def write_signature(signature: Signature) -> dict[str, Any]:
    """A signature as it is stored, and shown: nothing in it is secret."""
    return signature.model_dump(mode="json")


def read_signature(data: object) -> Signature:
    """A signature as `write_signature` wrote it."""
    return _signature_reader.validate_python(data)


def secret_kind(text: str, scheme: Scheme) -> Kind:
    """What a secret of this scheme signs."""
    if scheme is Scheme.HMAC:
        return Kind.TEXT
    return Kind.V1A if text.startswith("whsk_") else Kind.V1


def secret_fault(text: str, signature: Signature) -> str | None:
    """A secret of a caller's own, for a subscription that is signed like this. The fault does not show it."""
    match signature:
        case HmacSignature():
            fits = MIN_TEXT_SECRET_CHARS <= len(text) <= MAX_TEXT_SECRET_CHARS and _TEXT_SECRET.fullmatch(text)
            return (
                None
                if fits
                else f"must be {MIN_TEXT_SECRET_CHARS} to {MAX_TEXT_SECRET_CHARS} printable ASCII characters, "
                "with no space at either end, where the signature's scheme is hmac"
            )
        case StandardSignature():
            try:
                key = parse_secret(text)
            except InvalidInput as error:
                return error.problems[0].message
            version = Version.V1 if isinstance(key, HmacKey) else Version.V1A
            if version not in signature.versions:
                return f"signs {version.value}, which the signature's versions do not have"
            return None
        case _:
            assert_never(signature)


def signing_key(text: str, signature: Signature) -> SigningKey:
    """The key in a secret that passed `secret_fault`."""
    return text_key(text, signature.algorithm) if isinstance(signature, HmacSignature) else parse_secret(text)


def request_problems(
    *,
    format: Format,  # noqa: A002 - the field's own name
    signature: Signature,
    handshake: bool,
    header_names: Collection[str],
) -> list[Problem]:
    """What of a whole subscription does not go together, each by the field that is to change.

    `header_names` are those of the headers that it adds.
    """
    problems = []
    if handshake and format is Format.STANDARD:
        problems.append(Problem("handshake", "must be false unless the format is one of CloudEvents"))
    if isinstance(signature, HmacSignature):
        ours = signature.header.lower()
        if any(name.lower() == ours for name in header_names):
            problems.append(Problem("signature.header", f"must not be {signature.header}, which headers set too"))
    return problems
