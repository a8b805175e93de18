"""Which of an answer's headers are kept with its attempt, for a person who looks for what went wrong.

A fixed list, so that a cookie or a token is never stored because an endpoint sent it. Endpoints choose the values: each
is cut, and holds nothing afterwards that a terminal, a log or PostgreSQL would stumble over.
"""

from collections.abc import Iterable, Mapping
from typing import Final

KEPT: Final = (
    *("content-encoding", "content-length", "content-type", "date", "location", "retry-after", "server"),
    # Who answered in the endpoint's place, and what its own operators look the request up by.
    *("via", "cf-ray", "x-amzn-requestid", "x-correlation-id", "x-request-id"),
)
MAX_VALUE_CHARS: Final = 256


def selected(headers: Mapping[str, str], names: Iterable[str] = KEPT) -> dict[str, str]:
    """Those of `headers` (case-insensitive) that are kept, by lower-case name; of a repeated one the first."""
    kept = {}
    for name in names:
        value = headers.get(name)
        if value is not None:
            kept[name] = value if len(value) <= MAX_VALUE_CHARS and value.isprintable() else _fit(value)
    return kept


def _fit(value: str) -> str:
    # Bytes that are not UTF-8 come as surrogates (PEP 383), which are not printable either.
    cut = value if len(value) <= MAX_VALUE_CHARS else f"{value[: MAX_VALUE_CHARS - 1]}…"
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in cut)
