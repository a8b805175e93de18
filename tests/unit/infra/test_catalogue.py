"""Which compiled schemas a process keeps."""

import json

import pytest

from infra.store import catalogue
from infra.store.catalogue import CompiledSchemas
from schemas.errors import InvalidInput
from schemas.event_schemas import EventSchema


def schema(title: str, *, patterns: int = 0) -> bytes:
    return json.dumps({"title": title, "allOf": [{"pattern": "a"}] * patterns or [True]}).encode()


def test_those_that_were_used_last_are_kept_as_many_as_there_is_room_for() -> None:
    first, second, third = (schema(title) for title in "abc")
    compiled = CompiledSchemas(max_bytes=2 * 40 * len(first))
    kept = compiled.of(first)
    compiled.of(second)
    assert compiled.of(first) is kept
    compiled.of(third)  # takes the place of the second
    assert compiled.of(first) is kept
    assert compiled.size_bytes == 2 * 40 * len(first)
    large = schema("d", patterns=30)
    assert compiled.of(large) is compiled.of(large)  # however large, one is kept
    assert compiled.of(first) is not kept


def test_regular_expressions_take_more_room() -> None:
    compiled = CompiledSchemas(max_bytes=10**9)
    text = schema("a", patterns=3)
    compiled.of(text)
    assert compiled.size_bytes == 40 * len(text) + 3 * 131_072


def test_what_cannot_be_compiled_is_not_tried_for_every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bytes] = []

    def counted(text: bytes) -> EventSchema:
        tried.append(text)
        return EventSchema(text)

    monkeypatch.setattr(catalogue, "EventSchema", counted)
    compiled = CompiledSchemas(max_bytes=10**9)
    assert isinstance(compiled.of(b'{"type":"later"}'), InvalidInput)
    assert compiled.of(b'{"type":"later"}') is compiled.of(b'{"type":"later"}')
    assert len(tried) == 1
