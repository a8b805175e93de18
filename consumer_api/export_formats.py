"""A list as CSV, NDJSON or XML. Pure: rows as they are shown in, text out.

In CSV and XML what is nested is its JSON, and a moment is written as in JSON.

CSV (RFC 4180; UTF-8, lines end in CRLF): null is the empty cell. A cell of text that a spreadsheet would take for a
formula (it begins with =, +, - or @, also in full width, or with a tab or a line break), or that begins with an
apostrophe, gets an apostrophe in front. So a program takes one apostrophe off where there is one, and has what was
there. Numbers are not touched.

XML (1.0, UTF-8): an element for each row, in it one for each field; null has the attribute nil. What XML 1.0 cannot
hold (most control characters) is replaced by U+FFFD.
"""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from xml.sax.saxutils import escape

import orjson


class ExportFormat(StrEnum):
    """How a list is written; all but `json` have all of it."""

    JSON = "json"
    CSV = "csv"
    NDJSON = "ndjson"
    XML = "xml"


MEDIA_TYPES: Final[Mapping[ExportFormat, str]] = {
    ExportFormat.JSON: "application/json",
    ExportFormat.CSV: "text/csv",
    ExportFormat.NDJSON: "application/x-ndjson",
    ExportFormat.XML: "application/xml",
}

_FORMULA: Final = tuple("=+-@\t\r\n'\uff1d\uff0b\uff0d\uff20")
# Char of XML 1.0 section 2.2, the other way round.
_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Writer:
    """What is written before the rows, for each row, and after them."""

    head: str
    row: Callable[[Mapping[str, Any]], str]
    tail: str


def writer(format: ExportFormat, columns: Sequence[str], *, name: str) -> Writer:  # noqa: A002
    """A writer of rows that have these fields, of the list `name`; in XML each row is an `item` of it."""
    match format:
        case ExportFormat.CSV:
            return Writer(_csv_line(columns), lambda row: _csv_line([_csv_cell(row[one]) for one in columns]), "")
        case ExportFormat.XML:
            head = f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}>\n'
            return Writer(head, lambda row: _xml_row(row, columns), f"</{name}>\n")
        case _:
            return Writer("", _json_line, "")


def _json_line(row: Mapping[str, Any]) -> str:
    # A line break can only stand between the parts of an event's data, which is as its publisher wrote it.
    return _json(row).replace("\n", " ").replace("\r", " ") + "\n"


def _csv_line(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue()


def _csv_cell(value: Any) -> str:
    text = _text(value) or ""
    return f"'{text}" if isinstance(value, str) and text.startswith(_FORMULA) else text


def _xml_row(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    return "<item>" + "".join(_xml_field(name, _text(row[name])) for name in columns) + "</item>\n"


def _xml_field(name: str, text: str | None) -> str:
    if text is None:
        return f'<{name} nil="true"/>'
    # A carriage return as it is would be read as a line feed.
    return f"<{name}>{escape(_NOT_XML.sub(chr(0xFFFD), text), {chr(13): '&#13;'})}</{name}>"


def _text(value: Any) -> str | None:
    """A value as text; None for null."""
    match value:
        case None:
            return None
        case str():
            return str(value)
        case datetime():
            return _json(value)[1:-1]
        case _:
            return _json(value)


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_UTC_Z).decode()
