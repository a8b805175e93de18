"""What goes wrong in a soak, and when: a pure function of its seed.

Faults are dealt from a deck that is shuffled anew whenever it is used up, so that none is long in coming. The schedule
is the same for the same seed; what it meets is not, because processes and networks run as they like.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tests.support.points import Moment, Point, Step
from tests.support.proxy import Direction

SLOTS: Final = 3  # dispatchers
LIVENESS_S: Final = 5.0
_GAP_S: Final = (0.4, 2.2)
_SHORTLY_S: Final = (0.2, 1.2)  # well below the liveness time
_LONG_S: Final = (6.0, 10.0)  # well above it


class Wire(StrEnum):
    BROKER = "broker"
    DATABASE = "database"


class Operation(StrEnum):
    """What an operator does; to which delivery or subscription is drawn when its time comes."""

    REPLAY_ONE = "replays a dead delivery"
    REPLAY_DEAD = "replays all that died lately"
    REPLAY_DELIVERED = "replays what was delivered just now"
    CANCEL = "cancels deliveries"
    RETRY = "retries by hand"
    DISABLE = "disables a subscription and enables it"
    PAUSE = "pauses a subscription and resumes it"
    CREATE = "creates a subscription"
    DELETE = "deletes a subscription"


class Trouble(StrEnum):
    """What an endpoint does."""

    HANGS = "hangs"
    REFUSES = "refuses connections"
    GONE = "answers 410"


@dataclass(frozen=True, slots=True)
class Kill:
    slot: int

    def __str__(self) -> str:
        return f"SIGKILL of dispatcher {self.slot}"


@dataclass(frozen=True, slots=True)
class KillAt:
    """The dispatcher is killed; the one that takes its place kills itself at the point, if it comes there."""

    slot: int
    point: Point

    def __str__(self) -> str:
        return f"SIGKILL of dispatcher {self.slot}, and again {self.point}"


@dataclass(frozen=True, slots=True)
class Pause:
    slot: int
    for_s: float

    def __str__(self) -> str:
        return f"SIGSTOP of dispatcher {self.slot} for {self.for_s:.1f} s"


@dataclass(frozen=True, slots=True)
class PauseAt:
    slot: int
    point: Point
    for_s: float

    def __str__(self) -> str:
        return f"SIGKILL of dispatcher {self.slot}, and SIGSTOP {self.point} for {self.for_s:.1f} s"


@dataclass(frozen=True, slots=True)
class Drain:
    slot: int

    def __str__(self) -> str:
        return f"SIGTERM to dispatcher {self.slot}"


@dataclass(frozen=True, slots=True)
class Cut:
    """At once, or after so many more bytes in a direction."""

    wire: Wire
    direction: Direction | None = None
    after_bytes: int = 0

    def __str__(self) -> str:
        after = f" after {self.after_bytes} bytes {self.direction}" if self.direction else ""
        return f"the wire to the {self.wire} is cut{after}"


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing passes, in one direction or in both."""

    wire: Wire
    direction: Direction | None
    for_s: float

    def __str__(self) -> str:
        return f"the wire to the {self.wire} stalls for {self.for_s:.1f} s ({self.direction or 'both ways'})"


@dataclass(frozen=True, slots=True)
class Restart:
    server: Wire
    killed: bool
    down_s: float

    def __str__(self) -> str:
        return f"the {self.server} is {'killed' if self.killed else 'stopped'}, and started after {self.down_s:.1f} s"


@dataclass(frozen=True, slots=True)
class Alarm:
    for_s: float

    def __str__(self) -> str:
        return f"a memory alarm of the broker for {self.for_s:.1f} s"


@dataclass(frozen=True, slots=True)
class Wipe:
    """Of the queues of work and of retries. The other ones hold what no row tells of yet: that goes with the disk of
    an only broker, as the design says, so what is lost there could not be told from what a bug loses."""

    def __str__(self) -> str:
        return "every retry and work item in the broker is deleted, queues and all"


@dataclass(frozen=True, slots=True)
class Poison:
    count: int

    def __str__(self) -> str:
        return f"{self.count} unreadable messages"


@dataclass(frozen=True, slots=True)
class Burst:
    count: int

    def __str__(self) -> str:
        return f"a burst of {self.count} events"


@dataclass(frozen=True, slots=True)
class Endpoint:
    how: Trouble
    for_s: float

    def __str__(self) -> str:
        return f"an endpoint {self.how} for {self.for_s:.1f} s"


@dataclass(frozen=True, slots=True)
class Operator:
    does: Operation

    def __str__(self) -> str:
        return f"an operator {self.does}"


Fault = (
    Kill
    | KillAt
    | Pause
    | PauseAt
    | Drain
    | Cut
    | Stall
    | Restart
    | Alarm
    | Wipe
    | Poison
    | Burst
    | Endpoint
    | Operator
)


@dataclass(frozen=True, slots=True)
class Timed:
    at_s: float
    fault: Fault


_WHERE: Final[Sequence[tuple[Step, str]]] = (
    *((Step.COMMIT, name) for name in ("TAKE_EVENT_KEYS", "INSERT_ATTEMPTS", "CLAIM_DUE", "CLAIM_HELD", "REPLAY")),
    *((Step.COMMIT, name) for name in ("CLOSE_BACKLOGS", "FREE_DEAD_CLAIMS", "HOLD_OVERDUE", "KEEP_DEAD_LETTERS")),
    (Step.COMMIT, "MARK_DEAD_LETTERS_PUBLISHED"),
    *((Step.PUBLISH, name) for name in ("ToWorkAfter", "ToDead")),
    *((Step.ACK, name) for name in ("hookhare.events", "hookhare.work", "hookhare.dead-letters")),
    *((Step.POST, name) for name in ("healthy", "flaky", "slow")),
)


def schedule(seed: int, seconds: float, *, broker_is_a_server: bool = True) -> list[Timed]:
    """The faults of `seconds`. An embedded broker has no server of its own to stop, and no alarm."""
    chance = random.Random(seed)
    faults: list[Timed] = []
    at_s = chance.uniform(*_GAP_S)
    for draw in _dealt(chance):
        if at_s >= seconds:
            return faults
        fault = draw(chance)
        if broker_is_a_server or not _of_the_broker_server(fault):
            faults.append(Timed(round(at_s, 3), fault))
            at_s += chance.uniform(*_GAP_S)
    raise AssertionError("the deck never ends")


def _of_the_broker_server(fault: Fault) -> bool:
    return isinstance(fault, Alarm) or (isinstance(fault, Restart) and fault.server is Wire.BROKER)


def _dealt(chance: random.Random) -> Iterator[Callable[[random.Random], Fault]]:
    while True:
        deck = [draw for draw, number in _DECK for _ in range(number)]
        chance.shuffle(deck)
        yield from deck


def _slot(chance: random.Random) -> int:
    return chance.randrange(SLOTS)


def _point(chance: random.Random) -> Point:
    step, what = chance.choice(_WHERE)
    return Point(chance.choice(list(Moment)), step, what, nth=chance.choice((1, 1, 2, 5)))


def _cut_after(chance: random.Random) -> Fault:
    return Cut(chance.choice(list(Wire)), chance.choice(list(Direction)), int(10 ** chance.uniform(0, 5)))


def _stall(chance: random.Random, limits: tuple[float, float]) -> Fault:
    return Stall(chance.choice(list(Wire)), chance.choice([None, *Direction]), chance.uniform(*limits))


def _restart(chance: random.Random, server: Wire) -> Fault:
    return Restart(server, chance.random() < 0.5, chance.uniform(0, 4))


_DECK: Final[Sequence[tuple[Callable[[random.Random], Fault], int]]] = (
    (lambda chance: Kill(_slot(chance)), 2),
    (lambda chance: KillAt(_slot(chance), _point(chance)), 7),
    (lambda chance: Pause(_slot(chance), chance.uniform(*_SHORTLY_S)), 1),
    (lambda chance: Pause(_slot(chance), chance.uniform(*_LONG_S)), 2),
    (lambda chance: PauseAt(_slot(chance), _point(chance), chance.uniform(*_LONG_S)), 2),
    (lambda chance: Drain(_slot(chance)), 1),
    (lambda chance: Cut(chance.choice(list(Wire))), 2),
    (_cut_after, 3),
    (lambda chance: _stall(chance, _SHORTLY_S), 1),
    (lambda chance: _stall(chance, _LONG_S), 1),
    (lambda chance: _restart(chance, Wire.BROKER), 1),
    (lambda chance: _restart(chance, Wire.DATABASE), 1),
    (lambda chance: Alarm(chance.uniform(1, 4)), 1),
    (lambda _: Wipe(), 1),
    (lambda chance: Poison(chance.randint(1, 10)), 2),
    (lambda chance: Burst(chance.randint(50, 200)), 2),
    (lambda chance: Endpoint(Trouble.HANGS, chance.uniform(1, 6)), 1),
    (lambda chance: Endpoint(Trouble.REFUSES, chance.uniform(1, 4)), 1),
    (lambda chance: Endpoint(Trouble.GONE, chance.uniform(1, 3)), 1),
    *((lambda _, one=operation: Operator(one), 1) for operation in Operation),
)
