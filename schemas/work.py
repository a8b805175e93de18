"""A work item: the hint that a delivery's next attempt is due. The row is the truth; this only wakes somebody."""

from dataclasses import dataclass
from uuid import UUID

import msgspec

from schemas.ids import DELIVERY, parse_id, public_id
from schemas.messages import Message

CONTENT_TYPE = "application/vnd.hookhare.work+json"


@dataclass(frozen=True, slots=True)
class WorkItem:
    """Attempt number `attempt` (from 1) of cycle `cycle` of a delivery, not before `not_before_ms` (Unix time)."""

    delivery: UUID
    cycle: int
    attempt: int
    not_before_ms: int


class _Wire(msgspec.Struct, forbid_unknown_fields=False):
    delivery: str
    cycle: int
    attempt: int
    not_before_ms: int


_decoder = msgspec.json.Decoder(_Wire)


def encode_work(item: WorkItem) -> Message:
    """The message that carries a work item."""
    wire = _Wire(public_id(DELIVERY, item.delivery), item.cycle, item.attempt, item.not_before_ms)
    return Message(body=msgspec.json.encode(wire), content_type=CONTENT_TYPE)


def decode_work(message: Message) -> WorkItem | None:
    """The work item in a message, or None when it holds none (nobody but us writes to that queue)."""
    try:
        wire = _decoder.decode(message.body)
        return WorkItem(parse_id(DELIVERY, wire.delivery), wire.cycle, wire.attempt, wire.not_before_ms)
    except ValueError:  # msgspec.DecodeError and InvalidInput are both ValueErrors
        return None
