"""What has to hold: of every state, of every step, and where nothing is left to be done.

Each function answers with what is wrong, for a person; None when nothing is.
"""

from schemas.deliveries import ENDED, UNFINISHED, Status
from tests.model.state import Delivery, Hint, Row, State
from tests.model.steps import Step


def of_state(state: State, *, faultless: bool) -> str | None:
    for number, one in enumerate(state.deliveries):
        row = one.row
        if row is None:
            continue
        wrong = _of_row(one, row) or _of_posts(state, number, one)
        if wrong is None and faultless:
            wrong = _needs_the_reconciler(state, number, row)
        if wrong is not None:
            return f"delivery {number}: {wrong}"
    return None


def _of_row(one: Delivery, row: Row) -> str | None:
    if row.status is Status.PENDING and row.claimed_by is None:
        return "it is pending, and nobody has claimed it"
    if row.attempts != len(one.recorded) or row.attempts != max(one.recorded, default=0):
        return f"its row counts {row.attempts} attempts, and those committed are {sorted(one.recorded)}"
    if max(one.letters) > 1:
        return "it has two dead letters for one death"
    if (row.status is Status.DEAD) != bool(one.letters[row.cycle]):
        return f"it is {row.status}, with {one.letters[row.cycle]} dead letters in this cycle"
    return None


def _of_posts(state: State, number: int, one: Delivery) -> str | None:
    for attempt, excess in enumerate(one.excess, start=1):
        if excess > 1:
            return f"attempt {attempt} was POSTed once more than crashes and stops allow"
    tasks = [task for dispatcher in state.dispatchers for task in dispatcher.tasks if task.delivery == number]
    if len(tasks) > 1 and sum(task.posting and not task.hit for task in tasks) > 1:
        return "two POSTs of it are under way at once, and neither dispatcher was stopped"
    return None


def _needs_the_reconciler(state: State, number: int, row: Row) -> str | None:
    """Without a fault, everything goes its way without the reconciler."""
    if row.status is Status.HELD and state.subscription.mode == "open":
        return "it is held, and its endpoint is open: nobody feeds it"
    if row.status is Status.RETRYING and row.claimed_by is None:
        hint = (number, row.cycle, row.attempts + 1)
        coming = any(
            task.phase == "hint" and (task.delivery, task.cycle, task.attempt + 1) == hint
            for dispatcher in state.dispatchers
            for task in dispatcher.tasks
        )
        if not coming and not any(one[:3] == hint for one in state.hints):
            return "it waits for its next attempt, and no work item is under way"
    return None


def of_step(before: State, step: Step) -> str | None:
    if before.subscription.ordered and (wrong := _of_order(before, step.state)):
        return wrong
    for number, (old, new) in enumerate(zip(before.deliveries, step.state.deliveries, strict=True)):
        if new is old or old.row is None:
            continue
        if new.row is None:
            return f"delivery {number}: its row is gone"
        wrong = _of_change(old.row, new.row, replayed=step.kind == "replay")
        if wrong is None and step.hint and step.hint.delivery == number:
            wrong = _of_claim(old.row, new.row, step.hint)
        if wrong is not None:
            return f"delivery {number}: {wrong}"
    return None


def _of_order(before: State, after: State) -> str | None:
    """Strict order: none begins while one before it has not ended, or while a POST is under way.

    But for the POST of who was stopped. A replay has its place only when it is claimed.
    """
    in_hand = [task for dispatcher in before.dispatchers for task in dispatcher.tasks]
    for old, new in zip(before.dispatchers, after.dispatchers, strict=True):
        for begun in set(new.tasks) - set(old.tasks):
            if begun.phase != "begun" or begun.hit:
                continue
            if any(task.posting and not task.hit for task in in_hand if task.delivery != begun.delivery):
                return f"delivery {begun.delivery}: it begins while another one is under way"
            for number, row in before.rows():
                if number < begun.delivery and begun.cycle == row.cycle == 0 and row.status in UNFINISHED:
                    return f"delivery {begun.delivery}: it overtakes {number}, which is {row.status}"
    return None


def _of_claim(old: Row, new: Row, hint: Hint) -> str | None:
    """Each retry has its time, and its own work item keeps it: Retry-After is not undercut by another one's."""
    if new.fence != old.fence and hint.fence != old.fence:
        return "the work item of another decision was taken for this retry's: it is attempted at the wrong time"
    return None


def _of_change(old: Row, new: Row, *, replayed: bool) -> str | None:
    if new.fence < old.fence:
        return f"its fence went back from {old.fence} to {new.fence}"
    if replayed:
        return None if new.cycle == old.cycle + 1 else "a replay did not begin a new cycle"
    if old.status in ENDED and old[:3] != new[:3]:
        return f"it had ended as {old.status}, and became {new.status} without a replay"
    if (new.cycle, new.attempts) < (old.cycle, old.attempts) or new.cycle != old.cycle:
        return "its attempts or its cycle changed without a replay"
    return None


def of_end(state: State) -> str | None:
    """Where nobody has anything left to do: everything has ended, except what is paused."""
    if all(dispatcher.beat == "down" for dispatcher in state.dispatchers):
        return None
    for number, one in enumerate(state.deliveries):
        if one.queued:
            return f"event {number} is never admitted"
        if one.row is not None and one.row.status not in ENDED and state.subscription.state != "paused":
            return f"delivery {number} is stuck as {one.row.status}"
    return None
