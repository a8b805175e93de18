"""The streak: a run of attempts at an endpoint of which none was delivered, and what it leads to.

Pure: the attempts of a batch are summed up (`Tally`), and the streak that they lead to is judged. What is summed may be
summed over many dispatchers, in any order: the number of failures, and whether anything was delivered at all.

What counts is what the endpoint's owner would count. A 404 is the answer of an endpoint that is well, to the breaker;
a subscription of which every delivery is answered 404 for days is as useless as one that cannot be reached. What is our
own fault counts for nothing, and neither does the failure of an attempt that was superseded. A success always counts:
also one that came too late for its delivery shows that the endpoint takes what it is sent.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from dispatcher.core.conclude import Delivered, Held, Verdict
from schemas.deliveries import AttemptResult, Failure, NoAnswer

Key = TypeVar("Key", bound=Hashable)


class Said(StrEnum):
    """What an attempt says of its endpoint's streak."""

    DELIVERED = "delivered"
    FAILED = "failed"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Failures:
    """Failed attempts at one endpoint. `ordinary`: among them one of an event that is not Hookhare's own."""

    number: int
    ordinary: bool
    last: str  # why the last of them failed, for a person

    def and_then(self, later: "Failures") -> "Failures":
        return Failures(self.number + later.number, self.ordinary or later.ordinary, later.last)


@dataclass(slots=True)
class Tally(Generic[Key]):
    """The sum of many attempts. An endpoint that took anything has no failures here, whatever else failed."""

    delivered: set[Key] = field(default_factory=set)
    failures: dict[Key, Failures] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Streak:
    """How many attempts have failed without a success, since when, and whether that was told."""

    failures: int
    age_s: float
    told: bool


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Of both, the time and the count: that is when a streak is told, and when it disables its subscription."""

    failing_failures: int
    failing_s: float
    disable_failures: int
    disable_s: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """`tell`: the subscription is failing, and nobody was told yet. `disable`: it has failed for too long."""

    tell: bool
    disable: bool


def said(verdict: Verdict, result: AttemptResult, *, superseded: bool) -> Said:
    """What an attempt that was settled says of its endpoint."""
    if isinstance(verdict, Delivered):
        return Said.DELIVERED
    if superseded or isinstance(verdict, Held):
        return Said.NOTHING
    if isinstance(result, NoAnswer) and result.failure is Failure.INTERNAL:
        return Said.NOTHING
    return Said.FAILED


def tally(attempts: Iterable[tuple[Key, Said, Failures]]) -> Tally[Key]:
    """Sum up attempts; each comes with what it counts for if it failed."""
    total: Tally[Key] = Tally()
    for key, what, failure in attempts:
        if what is Said.DELIVERED:
            total.delivered.add(key)
        elif what is Said.FAILED:
            before = total.failures.get(key)
            total.failures[key] = failure if before is None else before.and_then(failure)
    for key in total.delivered:
        total.failures.pop(key, None)
    return total


def judge(streak: Streak, thresholds: Thresholds, *, ordinary: bool) -> Judgement:
    """What a streak leads to after failures were added to it.

    It is told at a failure of an ordinary event only (`ordinary`). A failing endpoint that listens to Hookhare's own
    events would otherwise keep itself going: told that it fails, it fails at that, recovers, and is told so.
    """
    failing = streak.failures >= thresholds.failing_failures and streak.age_s >= thresholds.failing_s
    failed = streak.failures >= thresholds.disable_failures and streak.age_s >= thresholds.disable_s
    return Judgement(tell=failing and ordinary and not streak.told, disable=failed)
