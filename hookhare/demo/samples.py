"""The events that the demo publishes: small, large, odd, and all of them to be delivered byte for byte."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import orjson


class Way(Enum):
    """How an event is published."""

    PUBLISHER = "EventPublisher"  # Python data, serialized by the publisher
    PUBLISHER_RAW = "EventPublisher with RawJSON"
    API = "POST /v1/events"


@dataclass(frozen=True, slots=True)
class Sample:
    """One event. `text` is the JSON that subscribers must get, byte for byte; `data` its Python form, if it has one."""

    id: str
    type: str
    way: Way
    text: bytes
    data: object = None


_PYTHON: Sequence[tuple[str, object]] = (
    ("order.created", {"order": 4711, "total": 99.95, "currency": "EUR", "paid": False, "coupon": None}),
    ("order.created", {"customer": "Zoë Müller", "note": "日本語 · العربية · עברית · 🦔🐇"}),
    ("order.created", {}),
    ("order.line.added", {"lines": [{"sku": f"SKU-{number:03}", "count": number} for number in range(40)]}),
    ("order.shipped", {"parcel": {"size": {"cm": [30, 20, 10]}, "stops": [["a", ["b", ["c", ["d"]]]]]}}),
    ("order.note.added", {"text": 'quote " backslash \\ slash / tab \t newline \n nul \x00 separator \u2028'}),
    ("invoice.issued", {"invoice": "2024-0001", "cents": 9007199254740993, "owed": -12.5}),
    ("invoice.paid", {"invoice": "2024-0001", "paid": True}),
    ("customer.renamed", {"from": "Ada", "to": "Ada <script>alert('&amp;')</script>"}),
    ("stock.counted", {"warehouse": "north", "levels": {f"bin-{number}": number * 3 for number in range(500)}}),
    ("stock.emptied", []),
    ("report.ready", {"text": "lorem ipsum dolor sit amet " * 7000}),
)

_TEXTS: Sequence[tuple[str, str]] = (
    ("order.created", '{"order":12345678901234567890123,"price":1.10}'),
    ("order.created", '{ "spaces" : [ 1 , 2 ],\n\t"tabs"\t:\ttrue }'),
    ("order.shipped", '{"escaped":"\\u00e9\\u00E9\\/","plain":"éé/"}'),
    ("order.line.removed", '{"b":1,"a":2,"B":3,"10":4,"9":5}'),
    ("order.canceled", '{"numbers":[0,-0,0.0,-0.0,1E+2,1e2,100,1.0,1.10,0.1000,123456789.123456789123456789]}'),
    ("invoice.issued", '{"amount":100000000000000000000000.01,"unit":"IRR"}'),
    ("invoice.paid", '"a string alone"'),
    ("invoice.overdue", "null"),
    ("customer.created", "12345678901234567890123"),
    ("customer.renamed", '{"emoji":"\\ud83e\\udd94","same":"🦔"}'),
    ("stock.counted", "[" + ",".join(["[]"] * 50) + "]"),
    ("report.ready", '{"deep":' + "[" * 60 + "1.10" + "]" * 60 + "}"),
)


def samples() -> Sequence[Sample]:
    """A few dozen events, the ways of publishing them mixed."""
    made: list[Sample] = []
    for number, (kind, data) in enumerate(_PYTHON):
        made.append(Sample(f"python-{number}", kind, Way.PUBLISHER, orjson.dumps(data), data))
    for number, (kind, text) in enumerate(_TEXTS):
        made.append(Sample(f"raw-{number}", kind, Way.PUBLISHER_RAW, text.encode()))
        made.append(Sample(f"api-{number}", kind, Way.API, text.encode()))
    return made
