"""The headers that a subscription adds to its requests: what a caller may send, and how they are stored.

A value is secret unless its owner says that it is not: what nobody thought of must not be what is shown. All of it is
encrypted together; that does no harm to what is not secret.

Part of the server only: it needs pydantic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from pydantic import AfterValidator, BeforeValidator, SecretStr, Strict

from schemas.errors import SecretUnreadable
from schemas.headers import headers_fault
from schemas.inputs import Input, rule

REDACTED: Final = "[redacted]"  # what is shown in place of a secret


@dataclass(frozen=True, slots=True, repr=False)
class Header:
    """The value of a header; a secret one is never shown."""

    value: str
    secret: bool = True

    def __repr__(self) -> str:
        return f"Header(…, secret={self.secret})"


class _WireHeader(msgspec.Struct):
    value: str
    secret: bool


_decoder = msgspec.json.Decoder(dict[str, str | _WireHeader])


def encode_headers(headers: Mapping[str, Header]) -> bytes:
    """The JSON that is encrypted and stored: by name a secret value's text, or {"value", "secret": false}."""
    return msgspec.json.encode(
        {name: one.value if one.secret else _WireHeader(one.value, secret=False) for name, one in headers.items()}
    )


def decode_headers(data: bytes) -> dict[str, Header]:
    """What `encode_headers` wrote. Raises SecretUnreadable, without showing it, when it is anything else."""
    try:
        stored = _decoder.decode(data)
    except ValueError:  # msgspec.DecodeError and bad UTF-8; no cause, which could show a part of it
        raise SecretUnreadable("the stored headers are not the object that they should be") from None
    return {
        name: Header(one) if isinstance(one, str) else Header(one.value, one.secret) for name, one in stored.items()
    }


class HeaderInput(Input):
    """A header's value, and whether it is secret."""

    value: SecretStr
    secret: Annotated[bool, Strict()] = True

    def header(self) -> Header:
        return Header(self.value.get_secret_value(), self.secret)


def _header(given: object) -> object:
    if isinstance(given, str):
        return {"value": given}
    fits = isinstance(given, Mapping | HeaderInput)
    rule(None if fits else "must be text, which is taken as secret, or an object with value and secret")
    return given


def _headers(headers: dict[str, HeaderInput]) -> dict[str, HeaderInput]:
    values = {name: one.value.get_secret_value() for name, one in headers.items()}
    rule(headers_fault(values))
    for name, value in values.items():
        # Sent back as it was shown, it would take the secret's place.
        rule(f"must have the value itself for {name}: {REDACTED} is shown in its place" if value == REDACTED else None)
    return headers


Headers = Annotated[
    dict[str, Annotated[HeaderInput, BeforeValidator(_header, json_schema_input_type=SecretStr | HeaderInput)]],
    AfterValidator(_headers),
]
