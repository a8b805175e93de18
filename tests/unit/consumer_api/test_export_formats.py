"""Lists as CSV, NDJSON and XML, read back by the standard library."""

import csv
import io
import json
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer_api.export_formats import ExportFormat, writer

COLUMNS = ("text", "other")
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)


def _written(format: ExportFormat, *rows: dict[str, Any], columns: tuple[str, ...] = COLUMNS) -> str:  # noqa: A002
    written = writer(format, columns, name="things")
    return written.head + "".join(written.row(row) for row in rows) + written.tail


def _from_csv(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@given(text=TEXT, other=TEXT)
def test_csv_gives_back_every_text_once_an_apostrophe_in_front_is_taken_off(text: str, other: str) -> None:
    names, cells = _from_csv(_written(ExportFormat.CSV, {"text": text, "other": other}))
    assert names == list(COLUMNS)
    assert [cell.removeprefix("'") for cell in cells] == [text, other]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "\uff201", "'=1"])
def test_what_a_spreadsheet_takes_for_a_formula_is_text_in_csv(text: str) -> None:
    assert _from_csv(_written(ExportFormat.CSV, {"text": text, "other": -1}))[1] == [f"'{text}", "-1"]


def test_csv_lines_end_as_rfc_4180_says_and_a_list_of_nothing_has_its_head() -> None:
    assert _written(ExportFormat.CSV) == "text,other\r\n"
    assert _written(ExportFormat.CSV, {"text": 'a,"b"', "other": None}) == 'text,other\r\n"a,""b""",\r\n'


@given(text=TEXT, other=TEXT)
def test_xml_gives_back_every_text_that_xml_can_hold(text: str, other: str) -> None:
    root = ElementTree.fromstring(_written(ExportFormat.XML, {"text": text, "other": other}).encode())
    assert root.tag == "things"
    shown = [field.text or "" for field in root[0]]
    for before, after in zip((text, other), shown, strict=True):
        assert len(before) == len(after)
        for one, two in zip(before, after, strict=True):
            assert two == ("\ufffd" if (one < " " and one not in "\t\n\r") or one in "\ufffe\uffff" else one)


def test_null_and_empty_are_told_apart_in_xml() -> None:
    (item,) = ElementTree.fromstring(_written(ExportFormat.XML, {"text": None, "other": ""}))
    assert [field.get("nil") for field in item] == ["true", None]


@given(text=TEXT)
def test_ndjson_is_one_line_for_each_row_also_where_data_came_over_several(text: str) -> None:
    data = orjson.Fragment(b'{\r\n "a":\n1}')
    lines = _written(ExportFormat.NDJSON, {"text": text, "other": data}, {"text": text, "other": data}).split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == [{"text": text, "other": {"a": 1}}] * 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (1.5, "1.5"),
        (datetime(2026, 1, 31, 12, tzinfo=UTC), "2026-01-31T12:00:00Z"),
        (["a", None], '["a",null]'),
        ({"a": "b"}, '{"a":"b"}'),
        (orjson.Fragment(b'{"n": 12345678901234567890123}'), '{"n": 12345678901234567890123}'),
    ],
)
def test_what_is_no_text_is_written_as_its_json(value: object, text: str) -> None:
    assert _from_csv(_written(ExportFormat.CSV, {"text": value, "other": ""}))[1][0] == text
    assert ElementTree.fromstring(_written(ExportFormat.XML, {"text": value, "other": ""}))[0][0].text == text
