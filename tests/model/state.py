"""What the model remembers: the rows of the database, what each dispatcher has in hand, and what the broker carries.

Time is not counted. An age is either young or past its limit, and becomes past it by a step of its own; whatever a
clock would bring about (a retry that is overdue, say) may come about at any moment.
"""

from typing import Literal, NamedTuple, TypeVar

from dispatcher.core.conclude import Expired, Held, Verdict
from schemas.deliveries import Status

GONE = -1  # an incarnation that crashed: its heartbeat is never renewed
NAMES = "ABC"  # of dispatchers

T = TypeVar("T")

# Of a heartbeat. `lapsed`: this dispatcher alone was stopped, or away from the database, past its liveness, and may be
# so for ever. `cut`: the database was away from everybody; who lives renews as soon as it is back. `down`: crashed.
Beat = Literal["fresh", "lapsed", "cut", "down"]

# Of a claim in hand. `begun`: the check before the POST was passed. `outcome`: to be committed. `hint`: committed, the
# work item for the next attempt is to be published.
Phase = Literal["waiting", "begun", "outcome", "hint"]


class Hint(NamedTuple):
    """A work item. `fence`: of the claim that decided on this retry, for the invariants."""

    delivery: int
    cycle: int
    attempt: int
    fence: int


class Row(NamedTuple):
    """A row of `deliveries`. `old`: its claim is past the claim's cap."""

    status: Status
    cycle: int = 0
    attempts: int = 0
    fence: int = 0
    claimed_by: int | None = None
    old: bool = False


class Subscription(NamedTuple):
    state: Literal["enabled", "paused", "disabled", "deleted"] = "enabled"
    mode: Literal["open", "held"] = "open"
    feeder: int | None = None
    ordered: bool = False


class Task(NamedTuple):
    """A claim in hand. The last two are not known to the dispatcher: they are for the invariants.

    `lapsed`, `old`: its dispatcher's heartbeat lapsed since, or it is past its cap. `hit`: its POST had begun and was
    not committed when its dispatcher was stopped past its liveness. `committed`: its outcome is in the database.
    """

    delivery: int
    cycle: int
    attempt: int
    fence: int
    phase: Phase = "waiting"
    verdict: Verdict | None = None
    lapsed: bool = False
    old: bool = False
    hit: bool = False
    committed: bool = False

    @property
    def posting(self) -> bool:
        """Whether its POST has begun and is not committed."""
        begun = self.phase == "begun" or (self.phase == "outcome" and not isinstance(self.verdict, Held | Expired))
        return begun and not self.committed


class Dispatcher(NamedTuple):
    """`saw_empty` is used by one broken rule only."""

    beat: Beat = "fresh"
    tasks: tuple[Task, ...] = ()
    saw_empty: bool = False


class Delivery(NamedTuple):
    """An event for the one subscription, and its row once it is admitted. `letters`: its dead letters in each cycle.

    The last two are for the invariants. `excess`: for each attempt number of this cycle, its POSTs less the faults that
    allow one more. `recorded`: the numbers committed in this cycle.
    """

    queued: bool = True
    row: Row | None = None
    letters: tuple[int, ...] = (0,)
    excess: tuple[int, ...] = (0, 0, 0)
    recorded: frozenset[int] = frozenset()


class State(NamedTuple):
    deliveries: tuple[Delivery, ...]
    dispatchers: tuple[Dispatcher, ...]
    subscription: Subscription = Subscription()
    hints: tuple[Hint, ...] = ()

    def with_delivery(self, number: int, delivery: Delivery) -> "State":
        return self._replace(deliveries=_put(self.deliveries, number, delivery))

    def with_row(self, number: int, row: Row) -> "State":
        return self.with_delivery(number, self.deliveries[number]._replace(row=row))

    def with_dispatcher(self, me: int, dispatcher: Dispatcher) -> "State":
        return self._replace(dispatchers=_put(self.dispatchers, me, dispatcher))

    def with_task(self, me: int, task: Task, new: Task | None) -> "State":
        """Replace a task in hand, or, by None, take it out."""
        tasks = list(self.dispatchers[me].tasks)
        place = tasks.index(task)
        tasks[place : place + 1] = [] if new is None else [new]
        return self.with_dispatcher(me, self.dispatchers[me]._replace(tasks=tuple(tasks)))

    def taking(self, me: int, task: Task) -> "State":
        """With one more claim in hand."""
        dispatcher = self.dispatchers[me]
        return self.with_dispatcher(me, dispatcher._replace(tasks=(*dispatcher.tasks, task)))

    def hinting(self, task: Task) -> "State":
        """With the work item for the attempt after this task's."""
        hint = Hint(task.delivery, task.cycle, task.attempt + 1, task.fence)
        return self._replace(hints=tuple(sorted((*self.hints, hint))))

    def without(self, hint: Hint) -> "State":
        """Without one copy of this hint."""
        place = self.hints.index(hint)
        return self._replace(hints=self.hints[:place] + self.hints[place + 1 :])

    def rows(self) -> list[tuple[int, Row]]:
        return [(number, one.row) for number, one in enumerate(self.deliveries) if one.row is not None]

    def is_steady(self) -> bool:
        """Whether who has a fresh heartbeat may have had it for the liveness time without a gap.

        Once it has, everybody who lives has renewed since the database was last away from everybody.
        """
        return not any(dispatcher.beat == "cut" for dispatcher in self.dispatchers)

    def is_alive(self, incarnation: int) -> bool:
        """By its heartbeat's row, which is all that others see of it."""
        return incarnation != GONE and self.dispatchers[incarnation].beat == "fresh"


def begin(*, deliveries: int, dispatchers: int, ordered: bool = False) -> State:
    """Every event published, nothing admitted, every dispatcher up.

    In strict order, the deliveries are numbered as they are admitted.
    """
    return State((Delivery(),) * deliveries, (Dispatcher(),) * dispatchers, Subscription(ordered=ordered))


def key(state: State) -> tuple[object, ...]:
    """The same for states that differ in nothing that matters: by which dispatcher is which, or by more than whether a
    fence is still the row's.
    """
    fences = [one.row.fence if one.row else 0 for one in state.deliveries]
    owners = [one.row.claimed_by if one.row else None for one in state.deliveries]
    feeder = state.subscription.feeder
    return (
        tuple(
            [
                (
                    one.queued,
                    one.row and (one.row.status._value_, one.row.cycle, one.row.attempts, one.row.old),
                    *one[2:],
                    None if owner is None else owner == GONE,
                )
                for one, owner in zip(state.deliveries, owners, strict=True)
            ]
        ),
        state.subscription[:2],
        None if feeder is None else feeder == GONE,
        tuple(sorted([(*hint[:3], hint.fence == fences[hint.delivery]) for hint in state.hints])),
        tuple(
            sorted(
                [
                    (
                        one.beat,
                        one.saw_empty,
                        feeder == me,
                        tuple([owner == me for owner in owners]),
                        tuple(sorted([_key_of(task, fences) for task in one.tasks])),
                    )
                    for me, one in enumerate(state.dispatchers)
                ]
            )
        ),
    )


def _key_of(task: Task, fences: list[int]) -> tuple[object, ...]:
    verdict = "" if task.verdict is None else type(task.verdict).__name__
    return (*task[:3], fences[task.delivery] == task.fence, task.phase, verdict, *task[6:])


def _put(items: tuple[T, ...], number: int, item: T) -> tuple[T, ...]:
    return (*items[:number], item, *items[number + 1 :])
