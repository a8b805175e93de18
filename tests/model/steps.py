"""Every step that can be taken from a state: what the dispatchers do, what befalls them, and what operators do.

Each step is one transaction, or one thing that a process does by itself, and is named in its label for a person. A
commit whose answer is lost is a step of its own, and so is a crash between two transactions that belong together.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

from dispatcher.core.conclude import Expired, Held, RetryIn
from dispatcher.core.gate import Attempt
from dispatcher.core.settle import Claimed, Settled
from dispatcher.core.settle import Row as CoreRow
from schemas.deliveries import Answered, Status
from tests.model.rules import DEADLINE_S, OLD_CLAIM_S, RENEWAL_AGE_S, RESULTS, TIMES, YOUNG_CLAIM_S, Rules
from tests.model.state import GONE, NAMES, Dispatcher, Hint, Row, State, Task
from tests.model.statements import hold_endpoints

# `progress`: what dispatchers do. A restart is free, and nobody may count on it. The others are interferences.
Kind = Literal["progress", "restart", "fault", "operator", "replay"]

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)


class Step(NamedTuple):
    kind: Kind
    label: str
    state: State
    hint: Hint | None = None  # that was taken


def steps(state: State, rules: Rules, *, interfering: bool) -> Iterator[Step]:
    """All of them, or only those without an interference. A step that changes nothing is left out."""
    for me, dispatcher in enumerate(state.dispatchers):
        if dispatcher.beat == "down":
            yield Step("restart", f"{NAMES[me]} starts again", state.with_dispatcher(me, Dispatcher()))
            continue
        yield from heart(state, me, rules)
        if len(dispatcher.tasks) < rules.places:
            yield from admission(state, me, rules)
            yield from due(state, me, rules)
        yield from feeder(state, me, rules)
        for task in dispatcher.tasks:
            yield from delivery(state, me, task, rules)
            yield from settlement(state, me, task, rules)
        yield from reconciler(state, me, rules)
        if interfering:
            yield from calamities(state, me, rules)
    if interfering:
        yield from environment(state)
        yield from operators(state, rules)


# --- What dispatchers do -------------------------------------------------------------------------------------------


def heart(state: State, me: int, rules: Rules) -> Iterator[Step]:
    dispatcher = state.dispatchers[me]
    if not rules.is_fresh(TIMES, renewal_age_s=RENEWAL_AGE_S[dispatcher.beat]):
        tasks = tuple(
            task._replace(lapsed=rules.remembers_lapses) if task.phase == "waiting" else task
            for task in dispatcher.tasks
        )
        renewed = dispatcher._replace(beat="fresh", tasks=tasks)
        yield Step("progress", f"{NAMES[me]} renews its heartbeat", state.with_dispatcher(me, renewed))


def admission(state: State, me: int, rules: Rules) -> Iterator[Step]:
    for number, one in enumerate(state.deliveries):
        if not one.queued or (
            state.subscription.ordered and any(before.queued for before in state.deliveries[:number])
        ):
            continue
        acked = state.with_delivery(number, one._replace(queued=False))
        if one.row is not None or state.subscription.state in ("disabled", "deleted"):
            yield Step("progress", f"{NAMES[me]} acks event {number}: known, or not wanted", acked)
            continue
        for known_held in (False, True):
            fresh = state.is_alive(me)
            hold = not (fresh and _gate(state, me, rules, known_held=known_held))
            row = rules.insert_deliveries(hold=hold, me=me)
            stored = state.with_row(number, row)
            label = f"{NAMES[me]} admits event {number}: {row.status}"
            if hold:
                stored = stored._replace(subscription=hold_endpoints(stored.subscription))
            admitted = stored.with_delivery(number, stored.deliveries[number]._replace(queued=False))
            if not hold:
                admitted = admitted.taking(me, Task(number, cycle=0, attempt=1, fence=1))
            yield Step("progress", label, admitted)
            yield Step("fault", f"{label}; the answer, and so the ack, is lost", stored)


def due(state: State, me: int, rules: Rules) -> Iterator[Step]:
    """A work item becomes a claim, or nothing. The gate may know the endpoint's mode or not."""
    for hint in dict.fromkeys(state.hints):
        number, cycle, attempt, _ = hint
        row = state.deliveries[number].row
        assert row is not None
        label = f"{NAMES[me]} takes {_name(hint)}"
        claimed = rules.claim_due(row, cycle=cycle, attempt=attempt, me=me, fresh=state.is_alive(me))
        rest = state.without(hint)
        if claimed is None:
            yield Step("progress", f"{label}, and drops it", rest, hint)
            continue
        rest = rest.with_row(number, claimed)
        yield Step("fault", f"{label}; the answer is lost", rest, hint)
        task = Task(number, claimed.cycle, claimed.attempts + 1, claimed.fence)
        held = task._replace(phase="outcome", verdict=Held("the gate"))
        if _gate(state, me, rules, known_held=False):
            yield Step("progress", label, rest.taking(me, task), hint)
        yield Step("progress", f"{label}, to hold it", rest.taking(me, held), hint)


def feeder(state: State, me: int, rules: Rules) -> Iterator[Step]:
    subscription, dispatcher, name = state.subscription, state.dispatchers[me], NAMES[me]
    fresh = state.is_alive(me)
    leased = rules.lease_endpoints(subscription, me=me, fresh=fresh)
    if leased is not None:
        yield Step("progress", f"{name} leases the endpoint", state._replace(subscription=leased))
    if subscription.feeder != me or _blocked(state):
        return
    for number, row in state.rows():
        if subscription.ordered:
            claimed = rules.claim_in_order(dict(state.rows()), subscription, number=number, me=me, fresh=fresh)
        else:
            claimed = rules.claim_held(row, subscription, me=me, fresh=fresh)
        if claimed is not None and len(dispatcher.tasks) < rules.places:
            label = f"{name} feeds {number}"
            rest = state.with_row(number, claimed)
            yield Step("progress", label, rest.taking(me, Task(number, row.cycle, row.attempts + 1, claimed.fence)))
            yield Step("fault", f"{label}; the answer is lost", rest)
    if subscription.ordered and any(task.phase != "hint" for task in dispatcher.tasks):
        return
    rows = [row for _, row in state.rows()]
    if not rules.closes_under_lock and not dispatcher.saw_empty:
        if not any(row.status is Status.HELD for row in rows):
            seen = dispatcher._replace(saw_empty=True)
            yield Step("progress", f"{name} sees that the backlog is empty", state.with_dispatcher(me, seen))
        return
    opened = rules.close_backlogs(subscription, [] if dispatcher.saw_empty else rows, me=me)
    if opened is not None:
        rest = state.with_dispatcher(me, dispatcher._replace(saw_empty=False))
        yield Step("progress", f"{name} opens the endpoint", rest._replace(subscription=opened))


def delivery(state: State, me: int, task: Task, rules: Rules) -> Iterator[Step]:
    """The check just before a POST; and, be it much later, the POST with its answer."""
    name = f"{NAMES[me]}: {task.delivery}, attempt {task.attempt}"
    if task.phase == "waiting":
        if rules.policy.max_age_s is not None and task.cycle == 0 and not _blocked(state):
            expired = task._replace(phase="outcome", verdict=Expired("too old"), lapsed=False)
            yield Step("progress", f"{name}: too old to begin", state.with_task(me, task, expired))
        obstacle = _blocked(state) or ("the heartbeat lapsed since" if task.lapsed else None)
        obstacle = obstacle or rules.why_not_begin(
            TIMES,
            renewal_age_s=RENEWAL_AGE_S[state.dispatchers[me].beat],
            claim_age_s=OLD_CLAIM_S if task.old else YOUNG_CLAIM_S,
            deadline_s=DEADLINE_S,
        )
        if obstacle is None:
            yield Step("progress", f"{name}: may begin", state.with_task(me, task, task._replace(phase="begun")))
        else:
            held = task._replace(phase="outcome", verdict=Held("obstacle"), lapsed=False)
            yield Step("progress", f"{name}: does not begin: {obstacle}", state.with_task(me, task, held))
    elif task.phase == "begun":
        for result in RESULTS:
            verdict = rules.conclude(result, rules.policy, attempt=task.attempt, now=NOW, left_s=None, jitter=0.0)
            posted = _counting(state, task, +1)
            if isinstance(verdict, RetryIn) and not rules.commits_before_hinting:
                posted = posted.hinting(task)
            after = posted.with_task(me, task, task._replace(phase="outcome", verdict=verdict))
            answer = result.status if isinstance(result, Answered) else result.failure
            yield Step("progress", f"{name}: POST, answered {answer}", after)


def settlement(state: State, me: int, task: Task, rules: Rules) -> Iterator[Step]:
    name = f"{NAMES[me]}: {task.delivery}, attempt {task.attempt}"
    if task.phase == "hint":
        hinted = state.hinting(task).with_task(me, task, None)
        yield Step("progress", f"{name}: publishes the work item for the next", hinted)
    if task.phase != "outcome":
        return
    stored, settled = commit(state, task, rules)
    label = f"{name}: commits {type(task.verdict).__name__}{' (superseded)' if settled.superseded else ''}"
    after = task._replace(committed=True)
    yield Step("fault", f"{label}; the answer is lost", stored.with_task(me, task, after))
    if not rules.keeps_outcomes:
        yield Step("fault", f"{label}; it fails, and is forgotten", state.with_task(me, task, None))
    awaiting = isinstance(task.verdict, RetryIn) and rules.is_awaiting_hint(settled.row, _claim(task))
    hint = after._replace(phase="hint", hit=False) if awaiting and rules.commits_before_hinting else None
    yield Step("progress", label, stored.with_task(me, task, hint))


def commit(state: State, task: Task, rules: Rules) -> tuple[State, Settled]:
    """Twin of Settlement._commit: `core.settle` decides, under the row's lock."""
    one = state.deliveries[task.delivery]
    row = one.row
    assert row is not None
    assert task.verdict is not None
    before = CoreRow(row.status, row.cycle, row.attempts, row.fence, claimed=row.claimed_by is not None)
    settled = rules.settle(before, _claim(task), task.verdict)
    new = settled.row
    after = Row(new.status, new.cycle, new.attempts, new.fence, *(row[4:] if new.claimed else ()))
    if isinstance(task.verdict, Held):
        state = state._replace(subscription=hold_endpoints(state.subscription))
    letters = rules.insert_dead_letters(after, one.letters) if new != before else one.letters
    recorded = one.recorded
    if not settled.superseded and not isinstance(task.verdict, Held | Expired):
        recorded |= {task.attempt}
    stored = state.with_delivery(task.delivery, one._replace(row=after, letters=letters, recorded=recorded))
    if task.hit and not task.committed and not settled.superseded and row.fence == task.fence:
        stored = _counting(stored, task, +1)  # nobody took it over: the fault allows no further POST
    return stored, settled


def reconciler(state: State, me: int, rules: Rules) -> Iterator[Step]:
    name = f"{NAMES[me]}'s reconciler"
    dispatcher, subscription = state.dispatchers[me], state.subscription
    in_hand = {task.delivery for task in dispatcher.tasks if task.phase != "hint"}
    judging = rules.may_judge(fresh=state.is_alive(me), steady=state.is_steady())
    if judging and subscription.feeder is not None:
        freed = rules.free_dead_leases(subscription, feeder_alive=state.is_alive(subscription.feeder))
        if freed is not None:
            yield Step("progress", f"{name} frees the lease of the dead", state._replace(subscription=freed))
    for number, row in state.rows():
        if rules.claims_of(row, me=me) and number not in in_hand:
            lost = Task(number, row.cycle, row.attempts + 1, row.fence, "outcome", Held("lost"))
            yield Step("progress", f"{name} finds the claim on {number}, not in hand", state.taking(me, lost))
        if judging and row.claimed_by is not None:
            held = rules.free_dead_claims(row, owner_alive=state.is_alive(row.claimed_by))
            yield from _hold(state, number, held, f"{name} frees the dead claim on {number}")
        held = rules.hold_overdue(row, overdue=True)
        yield from _hold(state, number, held, f"{name} holds {number}, which is overdue")
        ended = rules.end_orphaned(row, subscription)
        if ended is not None:
            yield Step("progress", f"{name} ends {number}, which is orphaned", _ending(state, number, ended, rules))
    if rules.open_with_backlog(subscription, [row for _, row in state.rows()]):
        held_endpoint = state._replace(subscription=hold_endpoints(subscription))
        yield Step("progress", f"{name} holds the endpoint, which has a backlog", held_endpoint)


def _hold(state: State, number: int, row: Row | None, label: str) -> Iterator[Step]:
    """A row in one transaction, and then its endpoint in another."""
    if row is not None:
        held = row.status is Status.HELD
        endpoint = hold_endpoints(state.subscription) if held else state.subscription
        yield Step("progress", label, state.with_row(number, row)._replace(subscription=endpoint))


# --- What befalls them ---------------------------------------------------------------------------------------------


def calamities(state: State, me: int, rules: Rules) -> Iterator[Step]:
    yield Step("fault", f"{NAMES[me]} crashes", crash(state, me))
    if state.dispatchers[me].beat == "fresh":
        label = f"{NAMES[me]} is stopped, or away from the database, past its liveness"
        yield Step("fault", label, _hitting(state, me, beat="lapsed"))
    for step in reconciler(state, me, rules):
        endpoint = state.subscription
        if endpoint.mode == "open" and step.state.subscription.mode == "held":
            between = step.state._replace(subscription=endpoint)
            yield Step("fault", f"{step.label}, and crashes before its endpoint is held", crash(between, me))


def environment(state: State) -> Iterator[Step]:
    """Outages of the database for everybody; lost and doubled hints (late is all, always); claims that grow old."""
    if any(one.beat == "fresh" for one in state.dispatchers):
        cut = tuple(one._replace(beat="cut") if one.beat == "fresh" else one for one in state.dispatchers)
        yield Step("fault", "the database is away past the liveness, and back", state._replace(dispatchers=cut))
    for hint in dict.fromkeys(state.hints):
        yield Step("fault", f"{_name(hint)} is lost", state.without(hint))
        yield Step("fault", f"{_name(hint)} is doubled", state._replace(hints=tuple(sorted((*state.hints, hint)))))
    for number, row in state.rows():
        if row.claimed_by is not None and not row.old:
            old = state.with_row(number, row._replace(old=True))
            if row.claimed_by != GONE:
                old = _hitting(old, row.claimed_by, of=(number, row.fence))
            yield Step("fault", f"the claim on {number} grows past its cap", old)


def crash(state: State, me: int) -> State:
    """Its process is gone; a new one is another incarnation."""
    state = _hitting(state, me)
    for number, row in state.rows():
        if row.claimed_by == me:
            state = state.with_row(number, row._replace(claimed_by=GONE))
    if state.subscription.feeder == me:
        state = state._replace(subscription=state.subscription._replace(feeder=GONE))
    return state.with_dispatcher(me, Dispatcher(beat="down"))


def _hitting(
    state: State, me: int, *, beat: Literal["lapsed"] | None = None, of: tuple[int, int] | None = None
) -> State:
    """A fault hits all POSTs that this dispatcher has begun and not committed: each may be repeated, once.

    `of`: only the claim with this delivery and fence, which is old now.
    """
    tasks = []
    dispatcher = state.dispatchers[me]
    for task in dispatcher.tasks:
        if of is None or of == (task.delivery, task.fence):
            if task.posting and not task.hit:
                state = _counting(state, task, -1)
            task = task._replace(hit=task.hit or task.posting, old=of is not None and task.phase == "waiting")
        tasks.append(task)
    hit = dispatcher._replace(tasks=tuple(tasks))
    return state.with_dispatcher(me, hit if beat is None else hit._replace(beat=beat))


def _counting(state: State, task: Task, number: int) -> State:
    one = state.deliveries[task.delivery]
    assert one.row is not None
    if one.row.cycle != task.cycle:
        return state
    excess = list(one.excess)
    excess[task.attempt - 1] += number
    return state.with_delivery(task.delivery, one._replace(excess=tuple(excess)))


# --- What operators do ---------------------------------------------------------------------------------------------


def operators(state: State, rules: Rules) -> Iterator[Step]:
    subscription = state.subscription
    for number, row in state.rows():
        replayed = rules.replay(row, subscription)
        if replayed is not None:
            held = state._replace(subscription=hold_endpoints(subscription))
            one = held.deliveries[number]
            if replayed.cycle != row.cycle:
                one = one._replace(letters=(*one.letters, 0), excess=(0,) * len(one.excess))
            one = one._replace(row=replayed, recorded=frozenset())
            yield Step("replay", f"an operator replays {number}", held.with_delivery(number, one))
        retried = rules.retry_now(row, subscription)
        if retried is not None and retried != row:
            held = state._replace(subscription=hold_endpoints(subscription))
            yield Step("operator", f"an operator retries {number} at once", held.with_row(number, retried))
        canceled = rules.cancel(row)
        if canceled is not None:
            yield Step("operator", f"an operator cancels {number}", state.with_row(number, canceled))
    if subscription.state in ("enabled", "paused"):
        ended = state._replace(subscription=subscription._replace(state="disabled"))
        yield Step("operator", "an operator disables the subscription; its many rows are left", ended)
        for number, row in state.rows():
            new = rules.end_unfinished(row, Status.DEAD)
            ended = ended if new is None else _ending(ended, number, new, rules)
        yield Step("operator", "an operator disables the subscription", ended)
    if subscription.state == "enabled":
        paused = state._replace(subscription=subscription._replace(state="paused"))
        yield Step("operator", "an operator pauses the subscription", paused)
    if subscription.state in ("paused", "disabled"):
        enabled = state._replace(subscription=subscription._replace(state="enabled"))
        yield Step("operator", "an operator enables the subscription", enabled)


def _ending(state: State, number: int, row: Row, rules: Rules) -> State:
    letters = rules.insert_dead_letters(row, state.deliveries[number].letters)
    return state.with_delivery(number, state.deliveries[number]._replace(row=row, letters=letters))


# --- Common --------------------------------------------------------------------------------------------------------


def _gate(state: State, me: int, rules: Rules, *, known_held: bool) -> bool:
    in_hand = len(state.dispatchers[me].tasks)
    decision = rules.decide(
        blocked=_blocked(state),
        held=known_held,
        paced=False,
        ordered=state.subscription.ordered,
        in_hand=in_hand,
        free=16 * rules.places,
    )
    return isinstance(decision, Attempt)


def _blocked(state: State) -> str | None:
    return None if state.subscription.state == "enabled" else f"the subscription is {state.subscription.state}"


def _claim(task: Task) -> Claimed:
    return Claimed(task.cycle, task.attempt, task.fence)


def _name(hint: Hint) -> str:
    return f"the work item for {hint.delivery}, attempt {hint.attempt} of cycle {hint.cycle}"
