"""Which version of its type's schema an event keeps, as the CloudEvents attribute `dataschema` says it.

The attribute is a URI. One that ends like the address of a version in the API, `/v1/event-types/{type}/versions/{n}`,
at whatever host, names that version. Any other one says nothing here, as producers had before there was a catalogue:
then the newest version counts.
"""

import re
from typing import Final
from urllib.parse import quote, unquote

ATTRIBUTE: Final = "dataschema"

_VERSION: Final = re.compile(r"(?:.*/)?v1/event-types/([^/?#]{1,600})/versions/([1-9][0-9]{0,5})", re.ASCII)


def named_version(dataschema: str | None, event_type: str) -> int | None:
    """The version that an event of this type names, be there such a one or not; None if it names none."""
    found = None if dataschema is None else _VERSION.fullmatch(dataschema)
    return int(found[2]) if found and unquote(found[1]) == event_type else None


def dataschema_of(event_type: str, version: int) -> str:
    """What names a version: a URI reference, relative to the API."""
    return f"/v1/event-types/{quote(event_type, safe='')}/versions/{version}"
