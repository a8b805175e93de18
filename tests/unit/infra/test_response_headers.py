"""Which of an answer's headers are kept, and that whatever an endpoint sends is fit to be stored and shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from infra.response_headers import KEPT, MAX_VALUE_CHARS, selected


def test_the_ones_on_the_list_are_kept_and_no_other() -> None:
    answer = CIMultiDict(
        [
            *(("Content-Type", "text/html"), ("RETRY-AFTER", "120"), ("server", "nginx"), ("X-Request-Id", "7f")),
            *(("Set-Cookie", "session=secret"), ("Authorization", "Bearer x"), ("WWW-Authenticate", "Basic")),
            *(("Proxy-Authenticate", "x"), ("X-Filler", "f"), ("ETag", '"1"'), ("Set-Cookie2", "s")),
        ]
    )
    assert selected(answer) == {
        "content-type": "text/html",
        "retry-after": "120",
        "server": "nginx",
        "x-request-id": "7f",
    }


def test_no_header_on_the_list_is_one_for_credentials() -> None:
    assert not {"set-cookie", "set-cookie2", "authorization", "www-authenticate", "proxy-authenticate"} & set(KEPT)


def test_of_a_repeated_header_the_first_is_kept() -> None:
    assert selected(CIMultiDict([("Via", "1.1 a"), ("via", "1.1 b")])) == {"via": "1.1 a"}


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("", ""),
        ("application/json; charset=utf-8", "application/json; charset=utf-8"),
        ("café", "café"),
        ("a\x00b\x1b[31m\r\n\tc", "a\ufffdb\ufffd[31m\ufffd\ufffd\ufffdc"),
        (b"caf\xe9".decode(errors="surrogateescape"), "caf\ufffd"),
        ("x" * MAX_VALUE_CHARS, "x" * MAX_VALUE_CHARS),
        ("x" * 65_536, "x" * (MAX_VALUE_CHARS - 1) + "…"),
    ],
)
def test_a_value_is_cut_and_made_fit_to_be_shown(value: str, kept: str) -> None:
    assert selected(CIMultiDict({"Server": value})) == {"server": kept}


@given(st.binary(max_size=1000), st.sampled_from(KEPT))
def test_whatever_bytes_come_postgresql_takes_what_is_kept(value: bytes, name: str) -> None:
    """Aiohttp decodes a header as UTF-8, with surrogates for what is none (PEP 383)."""
    (kept,) = selected(CIMultiDict({name: value.decode(errors="surrogateescape")})).values()
    assert "\x00" not in kept
    assert len(kept) <= MAX_VALUE_CHARS
    assert kept.encode().decode() == kept  # no lone surrogate is left
