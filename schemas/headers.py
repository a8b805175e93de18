"""Which headers a request may have besides those that are set for every request: the rules for names and values.

Every name and value that passes can stand in a request of HTTP/1.1 as it is, and cannot end its line.
"""

import re
from collections.abc import Mapping
from typing import Final

MAX_HEADERS: Final = 20
MAX_HEADER_NAME_CHARS: Final = 100
MAX_HEADER_VALUE_CHARS: Final = 2048
MAX_HEADERS_CHARS: Final = 8192

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_VALUE: Final = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?")
# RFC 9110 section 7.6.1 and older names for the same; then what is ours to set.
_RESERVED_HEADERS: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"),
        *("te", "trailer", "transfer-encoding", "upgrade", "http2-settings", "expect"),
        *("host", "user-agent", "traceparent", "tracestate"),
    }
)
_RESERVED_PREFIXES: Final = ("ce-", "content-", "webhook-")


def headers_fault(
    headers: Mapping[str, str], *, most: int = MAX_HEADERS, most_chars: int = MAX_HEADERS_CHARS
) -> str | None:
    """Headers that a request gets besides its own. The fault names the header, never its value.

    The bounds are those of a subscription's headers unless said otherwise.
    """
    if len(headers) > most:
        return f"must be at most {most} headers"
    if len({header_key(name) for name in headers}) != len(headers):
        return "must not name a header twice; upper and lower case are the same, and so are _ and -"
    for name, value in headers.items():
        if fault := header_name_fault(name) or _value_fault(name, value):
            return fault
    if sum(len(name) + len(value) for name, value in headers.items()) > most_chars:
        return f"must be at most {most_chars} characters in all, names and values together"
    return None


def header_key(name: str) -> str:
    """What two names have in common that a receiver may take for one: letter case, and CGI's underscores (RFC 3875)."""
    return name.lower().replace("_", "-")


def header_name_fault(name: str) -> str | None:
    """The name of a header that is a caller's to set."""
    if len(name) > MAX_HEADER_NAME_CHARS or not _TOKEN.fullmatch(name):
        return f"must have names of 1 to {MAX_HEADER_NAME_CHARS} letters, digits and !#$%&'*+-.^_`|~"
    folded = header_key(name)
    if folded in _RESERVED_HEADERS or folded.startswith(_RESERVED_PREFIXES):
        return f"must not set {name}, which is set for every request, or belongs to the connection"
    return None


def _value_fault(name: str, value: str) -> str | None:
    if len(value) > MAX_HEADER_VALUE_CHARS or not _VALUE.fullmatch(value):
        return (
            f"must have printable ASCII as the value of {name}, at most {MAX_HEADER_VALUE_CHARS} characters, "
            "with no space at either end"
        )
    return None
