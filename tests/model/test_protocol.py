"""The protocol, explored: its rules keep every invariant, and each of them breaks one when it is left out.

What is explored exhaustively is small on purpose: two dispatchers, one delivery of two attempts, any two interferences
at any time: a crash, a stop, a lost answer, a lost or doubled hint, an old claim, an outage, an act of an operator.
Walks by chance go further: three dispatchers, three deliveries, twenty interferences.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest
from msgspec import structs

from dispatcher.core import settle as settling
from dispatcher.core.conclude import Dead, Delivered, Expired
from dispatcher.core.liveness import contradictions
from dispatcher.core.settle import Claimed, Settled
from schemas.deliveries import UNFINISHED, Status
from tests.model import statements as sql
from tests.model.explore import INTERFERENCES, Exploration, find, walk
from tests.model.rules import GROWING_OLD, ONE_ATTEMPT, RULES, THREE_ATTEMPTS, TIMES, Rules
from tests.model.state import Row, State, Subscription, begin
from tests.model.steps import Kind

ONE: Final = begin(deliveries=1, dispatchers=2)
TWO: Final = begin(deliveries=2, dispatchers=2)
ORDERED: Final = begin(deliveries=2, dispatchers=2, ordered=True)
FIRST_SEED: Final = 20_260_000
WALKS: Final = 300
UNAIDED: Final[Sequence[Kind]] = ("operator", "replay")


def test_the_times_of_the_model_are_times_that_a_dispatcher_starts_with() -> None:
    assert not contradictions(TIMES)


def test_one_delivery_and_two_interferences() -> None:
    explored = Exploration(ONE, RULES, interferences=2)
    assert len(explored) > 100_000  # else it explores less than it says


def test_one_delivery_and_three_acts_of_operators() -> None:
    """Here, as in all runs without a fault, nothing may need the reconciler."""
    assert len(Exploration(ONE, RULES, interferences=3, kinds=UNAIDED)) > 50_000


def test_two_deliveries_in_one_backlog() -> None:
    assert len(Exploration(TWO, RULES, interferences=0, kinds=())) > 3_000
    one_attempt = replace(RULES, policy=ONE_ATTEMPT, places=2)
    assert len(Exploration(TWO, one_attempt, interferences=1)) > 15_000


def test_two_deliveries_in_strict_order() -> None:
    assert len(Exploration(ORDERED, RULES, interferences=1)) > 3_000
    one_attempt = replace(RULES, policy=ONE_ATTEMPT, places=2)
    assert len(Exploration(ORDERED, one_attempt, interferences=2)) > 10_000


def test_what_grows_too_old_to_be_sent() -> None:
    """It dies without an attempt, and no attempt is counted; a replay of it is sent however old it is."""
    assert len(Exploration(ONE, replace(RULES, policy=GROWING_OLD), interferences=1)) > 5_000


def test_walks_by_chance() -> None:
    """When one breaks, its trace begins with its seed."""
    taken = [
        walk(begin(deliveries=1 + seed % 3, dispatchers=3, ordered=seed % 2 == 0), RULES, seed=seed, interferences=20)
        for seed in range(FIRST_SEED, FIRST_SEED + WALKS)
    ]
    assert sum(taken) > 40 * WALKS


# --- Rules left out ------------------------------------------------------------------------------------------------


def ignoring(rule: Callable[..., Any], **given: object) -> Callable[..., Any]:
    """The rule, told what is not so."""

    def broken(*arguments: Any, **named: Any) -> Any:
        return rule(*arguments, **{**named, **given})

    return broken


def never(*_: object, **__: object) -> None:
    return None


def claim_due_whatever(*ignored: str) -> Callable[..., Row | None]:
    """The claim by work item, less the conditions on these columns."""

    def broken(row: Row, *, cycle: int, attempt: int, me: int, fresh: bool) -> Row | None:
        as_wanted = {"cycle": cycle, "attempts": attempt - 1, "claimed_by": None}
        seen = Row(**{**row._asdict(), **{name: as_wanted[name] for name in ignored}})
        matches = sql.claim_due(seen, cycle=cycle, attempt=attempt, me=me, fresh=fresh) is not None
        return sql.claim(row, me) if matches else None

    return broken


def claim_held_whoever_has_it(row: Row, subscription: Subscription, *, me: int, fresh: bool) -> Row | None:
    return (
        None
        if sql.claim_held(row._replace(claimed_by=None), subscription, me=me, fresh=fresh) is None
        else (sql.claim(row, me))
    )


def claim_in_order_though_one_waits_for_its_retry(rows: Mapping[int, Row], *arguments: Any, **named: Any) -> Row | None:
    others = {number: row for number, row in rows.items() if row.status is not Status.RETRYING}
    return sql.claim_in_order(others, *arguments, **named) if named["number"] in others else None


def claim_in_order_though_another_is_claimed(
    rows: Mapping[int, Row], *arguments: Any, number: int, **named: Any
) -> Row | None:
    free = {one: row if one == number else row._replace(claimed_by=None) for one, row in rows.items()}
    return sql.claim_in_order(free, *arguments, number=number, **named)


def claim_any(rows: Mapping[int, Row], *arguments: Any, number: int, **named: Any) -> Row | None:
    return sql.claim_held(rows[number], *arguments, **named)


def settle_whatever_the_fence(row: settling.Row, claim: Claimed, verdict: Any) -> Settled:
    return settling.settle(row, structs.replace(claim, fence=row.fence), verdict)


def settle_also_what_has_ended(row: settling.Row, claim: Claimed, verdict: Any) -> Settled:
    seen = row if row.status in UNFINISHED else structs.replace(row, status=Status.HELD)
    settled = settling.settle(seen, claim, verdict)
    if not settled.superseded:
        return settled
    return structs.replace(settled, row=structs.replace(settled.row, status=row.status))


def settle_keeping_the_claim(row: settling.Row, claim: Claimed, verdict: Any) -> Settled:
    settled = settling.settle(row, claim, verdict)
    if not settled.superseded:
        return settled
    return structs.replace(settled, row=structs.replace(settled.row, claimed=row.claimed))


def settle_late_successes_of_any_cycle(row: settling.Row, claim: Claimed, verdict: Any) -> Settled:
    late = isinstance(verdict, Delivered) and row.status in UNFINISHED
    return settling.settle(row, structs.replace(claim, cycle=row.cycle) if late else claim, verdict)


def settle_counting_what_expired(row: settling.Row, claim: Claimed, verdict: Any) -> Settled:
    return settling.settle(row, claim, Dead(verdict.reason) if isinstance(verdict, Expired) else verdict)


def hint_whatever_the_fence(row: settling.Row, claim: Claimed) -> bool:
    return settling.is_awaiting_hint(row, structs.replace(claim, fence=row.fence))


def begin_however_old_the_claim(*arguments: Any, **named: Any) -> str | None:
    return RULES.why_not_begin(*arguments, **{**named, "claim_age_s": 0.0})


def begin_however_old_the_heartbeat(*arguments: Any, **named: Any) -> str | None:
    return RULES.why_not_begin(*arguments, **{**named, "renewal_age_s": 0.0})


def insert_a_dead_letter_each_time(row: Row, letters: tuple[int, ...]) -> tuple[int, ...]:
    counts = list(letters)
    counts[row.cycle] += row.status is Status.DEAD
    return tuple(counts)


def replay_with(**columns: Any) -> Callable[..., Row | None]:
    def broken(row: Row, subscription: Subscription) -> Row | None:
        replayed = sql.replay(row, subscription)
        return None if replayed is None else replayed._replace(**columns)

    return broken


def replay_in_the_same_cycle(row: Row, subscription: Subscription) -> Row | None:
    replayed = sql.replay(row, subscription)
    return None if replayed is None else replayed._replace(cycle=row.cycle)


def retry_what_is_being_attempted(row: Row, subscription: Subscription) -> Row | None:
    retried = sql.retry_now(row._replace(claimed_by=None), subscription)
    return None if retried is None else retried._replace(claimed_by=None)


def cancel_and_free(row: Row) -> Row | None:
    canceled = sql.cancel(row)
    return None if canceled is None else canceled._replace(claimed_by=None)


@dataclass(frozen=True)
class LeftOut:
    """A rule that is broken, and a part of what then goes wrong."""

    rules: dict[str, Any]
    wrong: str
    kinds: Sequence[Kind] = INTERFERENCES
    start: State = ONE

    @property
    def broken(self) -> Rules:
        return replace(RULES, **self.rules)


TWICE: Final = "POSTed once more"
AT_ONCE: Final = "under way at once"
STUCK: Final = "stuck as"
CIRCLE: Final = "in a circle for ever"
WRONG_TIME: Final = "at the wrong time"
OVERTAKES: Final = "it overtakes"

LEFT_OUT: Final = {
    "settlement: the fence": LeftOut({"settle": settle_whatever_the_fence}, "nobody has claimed it"),
    "settlement: nothing that has ended": LeftOut({"settle": settle_also_what_has_ended}, "without a replay"),
    "settlement: a matching fence always frees the claim": LeftOut({"settle": settle_keeping_the_claim}, CIRCLE),
    "settlement: the cycle of a late success": LeftOut(
        {"settle": settle_late_successes_of_any_cycle}, "those committed"
    ),
    "settlement: what expired was not attempted": LeftOut(
        {"settle": settle_counting_what_expired, "policy": GROWING_OLD}, "those committed"
    ),
    "settlement: an outcome is kept until it is committed": LeftOut({"keeps_outcomes": False}, TWICE),
    "settlement: commit first, then the hint": LeftOut({"commits_before_hinting": False}, "no work item", UNAIDED),
    "settlement: no hint by who lost the fence": LeftOut({"is_awaiting_hint": hint_whatever_the_fence}, WRONG_TIME),
    "settlement: one dead letter for each death": LeftOut(
        {"insert_dead_letters": insert_a_dead_letter_each_time}, "two dead letters"
    ),
    "claim by work item: the attempt": LeftOut(
        {"claim_due": claim_due_whatever("attempts"), "policy": THREE_ATTEMPTS}, WRONG_TIME
    ),
    "claim by work item: the cycle": LeftOut({"claim_due": claim_due_whatever("cycle")}, WRONG_TIME),
    "claim by work item: no claim on it": LeftOut({"claim_due": claim_due_whatever("claimed_by")}, WRONG_TIME),
    "claim by the feeder: no claim on it": LeftOut({"claim_held": claim_held_whoever_has_it}, AT_ONCE),
    # In the claim by work item alone nothing hangs on it: who lapsed holds what it claimed, and that ends.
    "claim by the feeder: the heartbeat": LeftOut(
        {"claim_held": ignoring(sql.claim_held, fresh=True), "places": 1}, CIRCLE
    ),
    "lease: the heartbeat": LeftOut(
        {"lease_endpoints": ignoring(sql.lease_endpoints, fresh=True), "places": 1}, CIRCLE
    ),
    "backlog empty: looked at under the lock": LeftOut({"closes_under_lock": False}, "nobody feeds it", UNAIDED),
    "before a POST: the heartbeat": LeftOut({"why_not_begin": begin_however_old_the_heartbeat}, AT_ONCE),
    "before a POST: a lapse is remembered": LeftOut({"remembers_lapses": False}, AT_ONCE),
    "before a POST: the claim's age": LeftOut({"why_not_begin": begin_however_old_the_claim}, AT_ONCE),
    "reconciler: dead claims": LeftOut({"free_dead_claims": never}, STUCK),
    "reconciler: dead leases": LeftOut({"free_dead_leases": never}, STUCK),
    "reconciler: overdue retries": LeftOut({"hold_overdue": never}, STUCK),
    "reconciler: claims whose answer was lost": LeftOut({"claims_of": never}, STUCK),
    "reconciler: orphans": LeftOut({"end_orphaned": never}, STUCK),
    "reconciler: open endpoints with a backlog": LeftOut({"open_with_backlog": never}, STUCK),
    "reconciler: who may judge": LeftOut({"may_judge": ignoring(sql.may_judge, steady=True)}, AT_ONCE),
    "replay: a new cycle": LeftOut({"replay": replay_in_the_same_cycle}, "new cycle"),
    "replay: the fence stays": LeftOut({"replay": replay_with(fence=0)}, "fence went back"),
    "replay: the claim stays": LeftOut({"replay": replay_with(claimed_by=None)}, AT_ONCE),
    "retry by hand: not what is being attempted": LeftOut({"retry_now": retry_what_is_being_attempted}, AT_ONCE),
    "strict order: none by who admits it": LeftOut(
        {"decide": ignoring(RULES.decide, ordered=False)}, OVERTAKES, UNAIDED, ORDERED
    ),
    "strict order: the lowest": LeftOut({"claim_in_order": claim_any}, OVERTAKES, UNAIDED, ORDERED),
    "strict order: one that waits for its retry counts": LeftOut(
        {"claim_in_order": claim_in_order_though_one_waits_for_its_retry}, OVERTAKES, UNAIDED, ORDERED
    ),
    "strict order: no claim, ended or not": LeftOut(
        {"claim_in_order": claim_in_order_though_another_is_claimed}, "another one is under way", UNAIDED, ORDERED
    ),
}


@pytest.mark.parametrize("rule", LEFT_OUT)
def test_a_rule_left_out_breaks_an_invariant(rule: str) -> None:
    left_out = LEFT_OUT[rule]
    trace = find(left_out.start, left_out.broken, up_to=2, kinds=left_out.kinds)
    assert trace, f"{rule}: nothing breaks without it"
    print(f"Without “{rule}”:\n{trace}")
    assert left_out.wrong in trace.split("Wrong: ")[1]
