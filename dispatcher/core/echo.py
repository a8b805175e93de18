"""What an endpoint says back of the secrets that it was sent: hidden before its answer is kept, and shown.

Endpoints that are made for looking at requests answer with the headers that came. A net, not a proof: it knows a secret
as it was sent, whole or after its scheme, and as JSON or a reason writes it, also where the end of what is kept cuts
it; no other encoding, and none shorter than `MIN_CHARS`, which innocent text would hold by chance.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from msgspec.structs import replace

from schemas.deliveries import Answered, AttemptResult

MIN_CHARS: Final = 8
HIDDEN: Final = "***"
_CUT: Final = "…"  # what a header's value ends with where it is cut


def to_hide(values: Iterable[str]) -> tuple[str, ...]:
    """What to look for in the answers to requests with these secret values of headers, longest first."""
    found: set[str] = set()
    for value in values:
        # After a space there may be the credentials of a scheme, as in `Bearer …`; many are registered nowhere.
        for text in (value, value.partition(" ")[2]):
            for form in (text, " ".join(text.split())):  # a reason has no two spaces together
                if len(form) >= MIN_CHARS:
                    in_json = msgspec.json.encode(form).decode()[1:-1]
                    found |= {form, in_json, in_json.replace("/", r"\/")}
    return tuple(sorted(found, key=len, reverse=True))


def without_echo(result: AttemptResult, hidden: tuple[str, ...]) -> AttemptResult:
    """The result, as far as it is kept, without what `to_hide` found."""
    if not isinstance(result, Answered):
        return replace(result, reason=_text(result.reason, hidden))
    return replace(result, body=_bytes(result.body, hidden), headers=_headers(result.headers, hidden))


def _headers(headers: Mapping[str, str], hidden: tuple[str, ...]) -> Mapping[str, str]:
    return {name: _text(value, hidden) for name, value in headers.items()}


def _text(text: str, hidden: tuple[str, ...]) -> str:
    whole = text.removesuffix(_CUT)
    shown = _bytes(whole.encode("utf-8", "surrogatepass"), hidden).decode("utf-8", "surrogatepass")
    return shown if len(whole) == len(text) else f"{shown}{_CUT}"


def _bytes(data: bytes, hidden: tuple[str, ...]) -> bytes:
    for secret in hidden:
        needle = secret.encode("utf-8", "surrogatepass")
        data = data.replace(needle, HIDDEN.encode())
        data = _without_beginning(data, needle)
    return data


def _without_beginning(data: bytes, needle: bytes) -> bytes:
    """`data` without a beginning of `needle` at its end, where it was cut."""
    start = data.find(needle[:MIN_CHARS], max(0, len(data) - len(needle) + 1))
    while start >= 0:
        if needle.startswith(data[start:]):
            return data[:start] + HIDDEN.encode()
        start = data.find(needle[:MIN_CHARS], start + 1)
    return data
