"""An event as CloudEvents 1.0.2 writes it over HTTP: structured mode (the JSON format), and binary mode.

The `data` is spliced as the very bytes that came. `datacontenttype` is always JSON. What an event's fields may hold
(`schemas.fields`) is what a CloudEvents String may hold; only its `source` has to become a URI-reference.
"""

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final
from urllib.parse import quote

import msgspec

from schemas.event_envelopes import CLOUDEVENTS_JSON, SPEC_VERSION
from schemas.events import JSON

STRUCTURED: Final = f"{CLOUDEVENTS_JSON}; charset=utf-8"
BINARY: Final = JSON

# RFC 3986, appendix A. An authority with an IPv6 literal is not told from a bad one: it is percent-encoded.
_ESCAPED: Final = "%[0-9A-Fa-f]{2}"
_NAME: Final = rf"(?:[A-Za-z0-9._~!$&'()*+,;=-]|{_ESCAPED})"
_PCHAR: Final = rf"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|{_ESCAPED})"
_PCHAR_NO_COLON: Final = rf"(?:[A-Za-z0-9._~!$&'()*+,;=@-]|{_ESCAPED})"
_AUTHORITY: Final = rf"(?:(?:{_NAME}|:)*@)?{_NAME}*(?::[0-9]*)?"
_AFTER_AUTHORITY: Final = rf"//{_AUTHORITY}(?:/{_PCHAR}*)*"
_ABSOLUTE_PATH: Final = rf"/(?:{_PCHAR}+(?:/{_PCHAR}*)*)?"
_ROOTLESS_PATH: Final = rf"{_PCHAR}+(?:/{_PCHAR}*)*"
_NO_SCHEME_PATH: Final = rf"{_PCHAR_NO_COLON}+(?:/{_PCHAR}*)*"
_URI_REFERENCE: Final = re.compile(
    rf"(?:[A-Za-z][A-Za-z0-9+.-]*:(?:{_AFTER_AUTHORITY}|{_ABSOLUTE_PATH}|{_ROOTLESS_PATH}|)"
    rf"|{_AFTER_AUTHORITY}|{_ABSOLUTE_PATH}|{_NO_SCHEME_PATH}|)"
    rf"(?:\?(?:{_PCHAR}|[/?])*)?(?:#(?:{_PCHAR}|[/?])*)?"
)
_RESERVED: Final = ":/?#[]@!$&'()*+,;="
# What stands in a header as it is: printable ASCII but for space, double quote and percent.
_AS_IT_IS: Final = "!#$&'()*+,/:;<=>?@[\\]^`{|}"


def structured_body(
    *,
    external_id: str,
    source: str,
    type: str,  # noqa: A002 - the attribute's own name
    time: datetime,
    subject: str | None,
    data: bytes,
) -> bytes:
    """The envelope (JSON event format 1.0.2) with `data` as the bytes that it is. Its media type is `STRUCTURED`."""
    text = msgspec.json.encode
    about = b"" if subject is None else b'"subject":%b,' % text(subject)
    return (
        b'{"specversion":"%b","id":%b,"source":%b,"type":%b,"time":"%b",%b"datacontenttype":"application/json","data":%b}'
        % (
            SPEC_VERSION.encode(),
            text(external_id),
            text(uri_reference(source)),
            text(type),
            _moment(time).encode(),
            about,
            data,
        )
    )


def binary_headers(
    *,
    external_id: str,
    source: str,
    type: str,  # noqa: A002 - the attribute's own name
    time: datetime,
    subject: str | None,
) -> dict[str, str]:
    """The attributes as headers; the body is the data, its media type `BINARY` (HTTP protocol binding, section 3.1)."""
    headers = {
        "ce-specversion": SPEC_VERSION,
        "ce-id": header_value(external_id),
        "ce-source": header_value(uri_reference(source)),
        "ce-type": header_value(type),
        "ce-time": _moment(time),
    }
    if subject is not None:
        headers["ce-subject"] = header_value(subject)
    return headers


def header_value(text: str) -> str:
    """An attribute's value as a header has it, percent-encoded by section 3.1.3.2 of the HTTP protocol binding."""
    return quote(text, safe=_AS_IT_IS)


@lru_cache(maxsize=1024)
def uri_reference(source: str) -> str:
    """A source as a URI-reference (RFC 3986), which is what CloudEvents wants: itself if it is one.

    Of another one, what no URI may hold is percent-encoded; and all but letters, digits and -._~ if that does not make
    it one. So "shop 1" becomes "shop%201": sources that differ only in that are one to a receiver.
    """
    if _URI_REFERENCE.fullmatch(source):
        return source
    sound = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", source)
    encoded = quote(sound, safe=_RESERVED + "%")
    return encoded if _URI_REFERENCE.fullmatch(encoded) else quote(sound, safe="%")


def _moment(time: datetime) -> str:
    return f"{time.astimezone(UTC).replace(tzinfo=None).isoformat()}Z"
