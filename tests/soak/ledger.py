"""The accounting at the end of a soak: published = delivered + dead + canceled, and every POST too many explained.

Pure: facts in, findings out. A POST too many is one that no attempt records, an attempt that did not count, or a number
that counted twice. Who made it is known, from the history of the delivery's claims; so it must be that very dispatcher
that was killed, stopped or kept from the database for longer than its liveness time, or an operator who ended the
delivery while it was attempted.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final
from uuid import UUID

from schemas.ids import DELIVERY, public_id
from tests.soak.chronicle import Episode, Kind
from tests.soak.facts import TAKEN_FOR_DEAD, Change, Delivery, Facts
from tests.soak.schedule import LIVENESS_S

_ENDED: Final = ("delivered", "dead", "canceled")
# Silence of less than this is not held against anybody: a heartbeat (0.5 s), its renewal (2 s) and the margin (0.5 s)
# may already have passed when it begins.
_SILENCE_S: Final = LIVENESS_S - 3.0
_RECONNECTING_S: Final = 5.0  # after a silence, until a heartbeat comes through again
_CLOCK_S: Final = 1.0  # a signature tells its second, not more


@dataclass(frozen=True, slots=True)
class Repeat:
    """A POST too many: who made it (None: nobody had claimed the delivery then), when, and why it is one."""

    delivery: UUID
    by: UUID | None
    at: float
    why: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What does not add up, and the delivery and the moment that it is about."""

    what: str
    delivery: UUID | None = None
    at: float | None = None

    def __str__(self) -> str:
        return self.what if self.delivery is None else f"{public_id(DELIVERY, self.delivery)}: {self.what}"


@dataclass(frozen=True, slots=True)
class Line:
    """An endpoint's accounting."""

    path: str
    deliveries: int
    ended: Mapping[str, int]
    posts: int
    attempts: int
    replays: int
    repeats: Mapping[str, int]  # by what explains them


# --- What there has to be ------------------------------------------------------------------------------------------


def losses(facts: Facts) -> Iterator[Finding]:
    """Events that were confirmed and are not there, or are there twice; and deliveries that are missing."""
    made = {(one.event_id, one.subscription) for one in facts.rows.deliveries}
    for event in facts.events:
        admitted = facts.rows.admitted.get(event.id, ())
        if len(admitted) > 1:
            yield Finding(f"{event.id} was admitted {len(admitted)} times")
        if event.confirmed and not admitted:
            yield Finding(
                f"LOST: {event.id} was confirmed {event.confirmed} times and never admitted", at=event.begun_at
            )
        for at in admitted[:1]:
            for one in facts.subscribed:
                wanted = one.wanted.wants(event.type) and one.must_have(begun_at=event.begun_at, admitted_at=at)
                if wanted and (event.id, one.id) not in made:
                    yield Finding(f"LOST: {event.id} has no delivery to {one.wanted.path}", at=at)


def miscounts(facts: Facts) -> Iterator[Finding]:
    """Replays that nobody asked for, messages that are not kept as they should be, rows that came back to life."""
    cycles = sum(one.cycle for one in facts.rows.deliveries)
    least = facts.rows.replayed_in_bulk + facts.replayed.surely
    if not least <= cycles <= least + facts.replayed.perhaps:
        yield Finding(f"{cycles} replays were begun, and {least} to {least + facts.replayed.perhaps} asked for")
    kept = Counter(one.body for one in facts.rows.messages if one.kind == "unreadable")
    for body, confirmed in facts.poison.items():
        if not confirmed <= kept[body] <= 1:
            yield Finding(
                f"{body!r}, {'' if confirmed else 'not '}confirmed, is {kept[body]} times in the dead letters"
            )
    conflicts = sum(one.kind == "conflict" for one in facts.rows.messages)
    least = sum(event.conflicts_confirmed > 0 for event in facts.events)
    most = sum(event.conflicts > 0 for event in facts.events)
    if not least <= conflicts <= most:
        yield Finding(f"{conflicts} conflicts are told of, and {least} to {most} were published")
    for one in facts.rows.messages:
        if one.kind not in {"unreadable", "conflict"}:
            yield Finding(f"a message that was never meant to: {one.kind}, {one.reason}, {one.body[:100]!r}")
    for delivery in facts.rows.revived:
        yield Finding("changed after its end, and not by a replay", delivery)


# --- POSTs ---------------------------------------------------------------------------------------------------------


def uneven(facts: Facts) -> list[UUID]:
    """Deliveries whose POSTs are not one for each attempt that counted: those whose history is needed."""
    posts = _posts(facts)
    return [one.id for one in facts.rows.deliveries if _is_uneven(one, posts[one.webhook_id, one.path])]


def _is_uneven(delivery: Delivery, posts: Counter[int]) -> bool:
    counted = {(one.cycle, one.number) for one in delivery.attempts if not one.superseded}
    return len(counted) != len(delivery.attempts) or posts != Counter(one.signed_at for one in delivery.attempts)


def repeats(facts: Facts, history: Mapping[UUID, Sequence[Change]]) -> tuple[list[Repeat], list[Finding]]:
    """The POSTs too many; and attempts that tell of an answer where there was no request."""
    posts = _posts(facts)
    found: list[Repeat] = []
    wrong: list[Finding] = []
    for delivery in facts.rows.deliveries:
        if delivery.id not in history:
            continue
        unrecorded = Counter(posts[delivery.webhook_id, delivery.path])
        counted = set()
        for attempt in sorted(delivery.attempts, key=lambda one: one.superseded):
            seen = unrecorded[attempt.signed_at] > 0
            unrecorded[attempt.signed_at] -= seen
            if not seen:
                if attempt.answered:
                    wrong.append(Finding("an attempt with an answer to no request", delivery.id, attempt.signed_at))
            elif attempt.superseded:
                found.append(Repeat(delivery.id, attempt.dispatcher, attempt.signed_at, "superseded"))
            elif (attempt.cycle, attempt.number) in counted:
                found.append(Repeat(delivery.id, attempt.dispatcher, attempt.signed_at, "counted twice"))
            else:
                counted.add((attempt.cycle, attempt.number))
        found += [
            Repeat(delivery.id, _claimant(history[delivery.id], at), at, "not recorded") for at in unrecorded.elements()
        ]
    return found, wrong


def _posts(facts: Facts) -> defaultdict[tuple[str, str], Counter[int]]:
    posts: defaultdict[tuple[str, str], Counter[int]] = defaultdict(Counter)
    for seen in facts.seen:
        posts[seen.webhook_id, seen.path][seen.signed_at] += 1
    return posts


def _claimant(history: Sequence[Change], at: float) -> UUID | None:
    """Who had claimed the delivery in the second from `at` on."""
    ends = [change.at for change in history[1:]] + [float("inf")]
    claims = [
        change.claimed_by
        for change, end in zip(history, ends, strict=True)
        if change.claimed_by is not None and change.at <= at + _CLOCK_S and end >= at
    ]
    return claims[-1] if claims else None


# --- Explanations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Faults:
    """What a chronicle explains. Silences that follow each other closely are one."""

    killed: Mapping[int, float]  # when each process was, by its pid
    silent: Sequence[Episode]

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> "Faults":
        killed = {one.pid: one.begun_at for one in episodes if one.kind is Kind.KILLED and one.pid is not None}
        return cls(killed, [one for one in episodes if one.kind is Kind.SILENT])

    def was_killed(self, pid: int | None, *, after: float) -> bool:
        return pid is not None and self.killed.get(pid, float("-inf")) >= after - _CLOCK_S

    def was_silent(self, pid: int | None, *, at: float) -> bool:
        """Whether this process, or everybody, had been silent for long enough at that moment."""
        begun = ended = float("-inf")
        for one in sorted(self.silent, key=lambda one: one.begun_at):
            if one.pid in {None, pid} and one.begun_at <= at:
                begun = one.begun_at if one.begun_at > ended else begun
                ended = max(ended, (one.ended_at or at) + _RECONNECTING_S)
        return at <= ended and at - begun >= _SILENCE_S


def reckon(facts: Facts, history: Mapping[UUID, Sequence[Change]]) -> tuple[dict[Repeat, str], list[Finding]]:
    """What explains each POST too many, and everything that does not add up. A fault explains one of a delivery."""
    faults = Faults.of(facts.chronicle.episodes)
    found, wrong = repeats(facts, history)
    explained: dict[Repeat, str] = {}
    used: set[tuple[UUID, object]] = set()
    for repeat in sorted(found, key=lambda one: one.why != "superseded"):  # whose fault is known to be its own
        reasons = explanations(repeat, facts, faults, history[repeat.delivery])
        for why, fault in reasons:
            if (repeat.delivery, fault) not in used:
                used.add((repeat.delivery, fault))
                explained[repeat] = why
                break
        else:
            what = f"a POST too many ({repeat.why}) by dispatcher {repeat.by} that no fault explains"
            wrong.append(Finding(what, repeat.delivery, repeat.at))
    return explained, [*losses(facts), *miscounts(facts), *misjudged(facts, faults), *wrong]


def explanations(
    repeat: Repeat, facts: Facts, faults: Faults, history: Sequence[Change]
) -> Iterator[tuple[str, object]]:
    """What may explain a POST too many: the kind of fault, and which one it was."""
    if repeat.why == "not recorded":
        pid = None if repeat.by is None else facts.rows.pids.get(repeat.by)
        if faults.was_killed(pid, after=repeat.at):
            yield "killed", repeat.by
        return
    if repeat.why == "superseded" and _was_ended_meanwhile(history, repeat):
        yield "ended meanwhile", (repeat.by, repeat.at)
    for number, (before, change) in enumerate(pairwise(history)):
        owner = before.claimed_by
        if owner is None or change.claimed_by is not None or change.reason != TAKEN_FOR_DEAD:
            continue
        its_own = repeat.why != "superseded" or owner == repeat.by
        if its_own and faults.was_silent(facts.rows.pids.get(owner), at=change.at):
            yield "taken for dead", number


def _was_ended_meanwhile(history: Sequence[Change], repeat: Repeat) -> bool:
    """Whether an operator ended the delivery, or began it again, while this dispatcher had it claimed."""
    return any(
        before.claimed_by == change.claimed_by == repeat.by
        and change.at >= repeat.at - _CLOCK_S
        and (change.status in _ENDED or change.cycle > before.cycle)
        for before, change in pairwise(history)
    )


def misjudged(facts: Facts, faults: Faults) -> Iterator[Finding]:
    """Claims that were taken from a dispatcher that was neither dead nor silent."""
    for owner, delivery, at in facts.rows.judged:
        pid = facts.rows.pids.get(owner)
        dead = pid is not None and faults.killed.get(pid, float("inf")) <= at
        if not dead and not faults.was_silent(pid, at=at):
            yield Finding(f"its claim was taken from dispatcher {owner}, which lived", delivery, at)


def accounting(facts: Facts, explained: Mapping[Repeat, str]) -> list[Line]:
    """A line for each endpoint."""
    posts = Counter(one.path for one in facts.seen)
    by_path: defaultdict[str, list[Delivery]] = defaultdict(list)
    for delivery in facts.rows.deliveries:
        by_path[delivery.path].append(delivery)
    paths = {delivery.id: delivery.path for delivery in facts.rows.deliveries}
    return [
        Line(
            path=path,
            deliveries=len(deliveries),
            ended=Counter(one.status for one in deliveries),
            posts=posts[path],
            attempts=sum(len(one.attempts) for one in deliveries),
            replays=sum(one.cycle for one in deliveries),
            repeats=Counter(why for repeat, why in explained.items() if paths[repeat.delivery] == path),
        )
        for path, deliveries in sorted(by_path.items())
    ]
