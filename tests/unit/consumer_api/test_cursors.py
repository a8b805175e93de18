"""Cursors: opaque, exact, and refused when they are anything else."""

import base64
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_api.cursors import decode_cursor, encode_cursor
from schemas.errors import InvalidInput


@given(st.uuids())
def test_a_cursor_reads_back_as_the_key_it_was_made_of(key: UUID) -> None:
    assert decode_cursor(encode_cursor(key)) == key


@given(st.text().filter(lambda text: len(text) != 22))  # 22 letters and digits may well be one
def test_any_other_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        decode_cursor(text)
    assert [problem.field for problem in raised.value.problems] == ["cursor"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "AAAA",
        "é" * 22,
        encode_cursor(UUID(int=1)) + "=",
        encode_cursor(UUID(int=1)) + "A",
        base64.b64encode(b"\xff" * 16).rstrip(b"=").decode(),  # the other alphabet
        encode_cursor(UUID(int=0))[:-1] + "B",  # bits that no key has
    ],
)
def test_near_misses_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        decode_cursor(text)
