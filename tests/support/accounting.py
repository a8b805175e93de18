"""The books of a run with faults: what was confirmed, what endpoints saw, what was committed; and whether it adds up.

A repeat is a POST too many: one that no attempt records, or an attempt that did not count. Each has to be explained by
a fault, and a fault explains one for each delivery. `after_death` explains exactly, right after every dispatcher died:
only what was claimed and not settled by then may have been POSTed without a record. So does `at_standstill`, where they
were stopped and go on later: who was told nothing of an outcome may come again, once. Where others go on working,
`blame` tells from when to when the fault was, and a repeat has to lie within.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, time

from asyncpg import Record

from schemas.ids import EVENT, public_id
from tests.support.books import in_queues
from tests.support.receivers import Receiver
from tests.support.system import System
from tests.support.waiting import eventually

# What must not be when all work is done; each row is one finding.
_UNFINISHED: Mapping[str, str] = {
    "a delivery that has not ended": "SELECT id, status, attempts, reason FROM deliveries "
    "WHERE status NOT IN ('delivered', 'dead', 'canceled')",
    "a claim that nobody freed": "SELECT id, status, claimed_by FROM deliveries WHERE claimed_by IS NOT NULL",
    "an endpoint that is held for nothing, or leased": "SELECT id, url, mode, feeder FROM subscriptions "
    "WHERE (mode = 'held' AND state = 'enabled' AND breaker_until IS NULL OR mode = 'open' AND feeder IS NOT NULL) "
    "AND deleted_at IS NULL",  # a breaker stays open until the next delivery probes
    "a dead letter that was not published": "SELECT id, delivery_id FROM dead_letters "
    "WHERE kind = 'delivery' AND published_at IS NULL",
    "a replay that goes on": "SELECT id, matched, replayed, skipped FROM replays WHERE state = 'running'",
}
# What must not be at any time.
_WRONG: Mapping[str, str] = {
    "a death without its one dead letter": "SELECT d.id, count(l.id) FROM deliveries AS d LEFT JOIN dead_letters AS l "
    "ON l.delivery_id = d.id AND l.cycle = d.cycle WHERE d.status = 'dead' GROUP BY d.id HAVING count(l.id) <> 1",
    "a dead letter of what did not die": "SELECT l.id, d.id AS delivery, d.status FROM dead_letters AS l "
    "JOIN deliveries AS d ON d.id = l.delivery_id WHERE l.cycle >= d.cycle AND d.status <> 'dead'",
    "attempts that disagree with their delivery": "SELECT d.id, d.attempts, count(DISTINCT a.number) AS recorded "
    "FROM deliveries AS d LEFT JOIN attempts AS a "
    "ON a.delivery_id = d.id AND a.cycle = d.cycle AND NOT a.superseded AND a.number <= d.attempts "
    "GROUP BY d.id, d.attempts HAVING count(DISTINCT a.number) <> d.attempts",
    "a delivery without its success": "SELECT d.id FROM deliveries AS d WHERE d.status = 'delivered' AND NOT EXISTS "
    "(SELECT FROM attempts AS a WHERE a.delivery_id = d.id AND a.cycle = d.cycle AND a.outcome = 'delivered')",
    "a pending delivery that nobody has claimed": "SELECT id FROM deliveries "
    "WHERE status = 'pending' AND claimed_by IS NULL",
    "an event without its key": "SELECT id FROM events AS e "
    "WHERE source <> 'hookhare' AND NOT EXISTS (SELECT FROM event_keys AS k WHERE k.event_id = e.id)",
    "a key without its event": "SELECT external_id FROM event_keys AS k "
    "WHERE NOT EXISTS (SELECT FROM events AS e WHERE e.id = k.event_id)",
}
_DELIVERIES = """
SELECT e.external_id, e.id AS event_id, s.url, d.status FROM deliveries AS d
JOIN events AS e ON e.id = d.event_id JOIN subscriptions AS s ON s.id = d.subscription_id
"""
_ATTEMPTS = """
SELECT d.event_id, a.url, a.cycle, a.number, a.superseded, a.status_code, a.duration_ms,
       extract(epoch FROM a.started_at)::float8 AS started
FROM attempts AS a JOIN deliveries AS d ON d.id = a.delivery_id ORDER BY a.started_at DESC
"""
_CLAIMED = """
SELECT d.event_id, s.url FROM deliveries AS d JOIN subscriptions AS s ON s.id = d.subscription_id
WHERE d.claimed_by IS NOT NULL
"""
_LETTERS = "SELECT kind, body, reason FROM dead_letters WHERE kind <> 'delivery'"
_SHOWN = 5  # of each kind of finding
NO_RECORD = "no record"

Target = tuple[str, str]  # a webhook-id and a URL: what one delivery is to its endpoint


@dataclass(frozen=True, slots=True)
class Repeat:
    """A POST too many, when it came (monotonic), and why it is one."""

    target: Target
    at_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Fault:
    """It may have taken POSTs that came between these times (monotonic)."""

    what: str
    since_s: float
    until_s: float


@dataclass(slots=True)
class Accounting:
    """The books of one installation and of the receivers that it delivers to, which answer each URL's endpoint."""

    system: System
    receivers: Sequence[Receiver]
    explained: dict[Repeat, str] = field(default_factory=dict)
    begun: Counter[Target] = field(default_factory=Counter)  # POSTs of who was stopped: each may come again
    _published: dict[str, set[str]] = field(default_factory=dict)  # the URLs of an event, by its producer's id
    _buried: Counter[tuple[str, bytes]] = field(default_factory=Counter)
    _faults: list[Fault] = field(default_factory=list)
    _wrong: list[str] = field(default_factory=list)  # found on the way

    def published(self, external_id: str, *urls: str) -> None:
        """An event is confirmed: from now on each of these has to get it, and no other one."""
        self._published.setdefault(external_id, set()).update(urls)

    def buried(self, kind: str, body: bytes) -> None:
        """A message is confirmed that has to end once in the dead letters, with its bytes."""
        self._buried[kind, body] += 1

    def blame(self, what: str, *, since_s: float, until_s: float) -> None:
        """A fault that may have taken, of each delivery, one POST that came between these times (monotonic)."""
        self._faults.append(Fault(what, since_s, until_s))

    async def after_death(self, what: str) -> list[Repeat]:
        """No dispatcher lives just now. The POSTs that died with the last one; each must have been claimed."""
        for receiver in self.receivers:
            await receiver.quiet()
        # The claims first: a commit that was under way may still come, and then it is no repeat.
        claimed = {(public_id(EVENT, row["event_id"]), row["url"]) for row in await self.system.fetch(_CLAIMED)}
        repeats, wrong = await self._repeats()
        died = [repeat for repeat in repeats if repeat not in self.explained]
        self.explained |= dict.fromkeys(died, what)
        self._wrong += wrong
        self._wrong += [
            f"killed {what}: a POST that no committed claim allowed: {one}" for one in died if one.target not in claimed
        ]
        twice = Counter(one.target for one in died)
        self._wrong += [f"killed {what}: {number} POSTs of {one}" for one, number in twice.items() if number > 1]
        return died

    async def at_standstill(self, under_way: Collection[Target]) -> None:
        """Every dispatcher stands still just now, with these POSTs under way. Each may be made once more, and so may
        those that have been made and not been committed."""
        repeats, _ = await self._repeats()
        self.begun = Counter(under_way) | Counter(repeat.target for repeat in repeats if repeat.why == NO_RECORD)

    async def is_idle(self) -> bool:
        """Whether nothing is left to do in the rows and in the queues, but what somebody was handed and keeps."""
        return not await self._rows(_UNFINISHED) and not await in_queues(self.system)

    async def is_settled(self) -> bool:
        """Whether nothing is left to do: in the database, and then in the broker.

        What a dispatcher has taken and not yet admitted shows in neither; so all that was published has to be there.
        """
        return not await self._missing() and await self.is_idle()

    async def settled(self, *, deadline_s: float = 120) -> None:
        """Wait until nothing is left to do."""
        await eventually(self.is_settled, self._unsettled, deadline_s=deadline_s)

    async def findings(self) -> list[str]:
        """What does not add up, a line each; call it when all is settled and nobody works any more."""
        repeats, wrong = await self._repeats()
        return [
            *self._wrong,
            *wrong,
            *await self.rows_at_fault(),
            *await self._undelivered(),
            *await self._letters(),
            *(f"a POST too many that no fault explains: {one}" for one in self._unexplained(repeats)),
        ]

    async def rows_at_fault(self) -> list[str]:
        """What must not be in the rows and queues once all work is done, whoever was to be delivered what."""
        return await self._unsettled() + await self._rows(_WRONG)

    async def check(self) -> None:
        """Fail with what does not add up."""
        findings = await self.findings()
        assert not findings, "\n".join(findings[:40])

    async def summary(self) -> list[str]:
        """The accounting, a line for each endpoint: published = delivered + dead + canceled, and the repeats."""
        repeats, _ = await self._repeats()
        repeated = Counter(repeat.target[1] for repeat in repeats)
        ends: dict[str, Counter[str]] = defaultdict(Counter)
        for row in await self.system.fetch(_DELIVERIES):
            ends[row["url"]][row["status"]] += 1
        asked = Counter(url for urls in self._published.values() for url in urls)
        return [
            f"{url}: published {asked[url]} = "
            + " + ".join(f"{status} {number}" for status, number in sorted(ends[url].items()))
            + f"; POSTed again {repeated[url]}"
            for url in sorted(asked)
        ]

    async def _missing(self) -> list[str]:
        """Of what was published, what is not in the database."""
        stored = {row["external_id"] for row in await self.system.fetch("SELECT external_id FROM events")}
        kept = Counter((row["kind"], row["body"]) for row in await self.system.fetch(_LETTERS))
        return [
            *(f"not stored: event {external_id}" for external_id in self._published.keys() - stored),
            *(f"{number} not kept: {letter}" for letter, number in (self._buried - kept).items()),
        ]

    async def _unsettled(self) -> list[str]:
        waiting = [f"{number} messages in {queue}" for queue, number in (await in_queues(self.system)).items()]
        return await self._missing() + await self._rows(_UNFINISHED) + waiting

    async def _rows(self, statements: Mapping[str, str]) -> list[str]:
        """A line for each row that must not be there."""
        together = " UNION ALL ".join(
            f"(SELECT '{what}' AS what, to_jsonb(found)::text AS row FROM ({statement} LIMIT {_SHOWN}) AS found)"
            for what, statement in statements.items()
        )
        return [f"{row['what']}: {row['row']}" for row in await self.system.fetch(together)]

    async def _undelivered(self) -> list[str]:
        """Events that did not reach whom they should have, and deliveries that nobody asked for."""
        rows = await self.system.fetch(_DELIVERIES)
        made = Counter((row["external_id"], row["url"]) for row in rows)
        asked = Counter((external_id, url) for external_id, urls in self._published.items() for url in urls)
        findings = [f"lost: event {external_id} for {url}" for external_id, url in asked - made]
        findings += [f"more than was asked for: event {external_id} to {url}" for external_id, url in made - asked]
        seen = {
            (request.webhook_id, receiver.url(request.path))
            for receiver in self.receivers
            for request in receiver.requests
            if request.status // 100 == 2
        }
        findings += [
            f"delivered, but not seen by its endpoint: event {row['external_id']} at {row['url']}"
            for row in rows
            if row["status"] == "delivered" and (public_id(EVENT, row["event_id"]), row["url"]) not in seen
        ]
        return findings

    async def _letters(self) -> list[str]:
        """Buried messages that are not kept once, with their bytes and a reason."""
        rows = await self.system.fetch(_LETTERS)
        kept = Counter((row["kind"], row["body"]) for row in rows)
        findings = [f"{number} kept too many: {letter}" for letter, number in (kept - self._buried).items()]
        return findings + [f"kept without a reason: {row['body']!r}" for row in rows if not row["reason"]]

    async def _repeats(self) -> tuple[list[Repeat], list[str]]:
        """POSTs too many; and attempts that tell of an answer to a request that never came."""
        since_boot_s = monotonic() - time()
        unseen: dict[Target, list[float]] = defaultdict(list)
        for receiver in self.receivers:
            for request in receiver.requests:
                unseen[request.webhook_id, receiver.url(request.path)].append(request.at_s)
        repeats, wrong = [], []
        counted: set[tuple[Target, int, int]] = set()
        for attempt in await self.system.fetch(_ATTEMPTS):  # the latest first
            target = (public_id(EVENT, attempt["event_id"]), attempt["url"])
            late = target in self.begun  # who was stopped between its last check and the request
            at_s = _request_of(attempt, unseen[target], since_boot_s, late=late)
            number = (target, attempt["cycle"], attempt["number"])
            if at_s is None:
                if attempt["status_code"] is not None:
                    wrong.append(f"an attempt with an answer to no request: {dict(attempt)}")
            elif attempt["superseded"] or number in counted:
                repeats.append(Repeat(target, at_s, "superseded" if attempt["superseded"] else "counted twice"))
            else:
                counted.add(number)
        repeats += [Repeat(target, at_s, NO_RECORD) for target, times in unseen.items() for at_s in times]
        return repeats, wrong

    def _unexplained(self, repeats: Collection[Repeat]) -> Iterator[Repeat]:
        """Each fault explains one repeat of each delivery; the faults that end first are used up first."""
        used: set[tuple[Target, Fault]] = set()
        begun = self.begun.copy()
        faults = sorted(self._faults, key=lambda fault: fault.until_s)
        for repeat in sorted(repeats, key=lambda repeat: repeat.at_s):
            if repeat in self.explained:
                continue
            if begun[repeat.target]:
                begun[repeat.target] -= 1
                continue
            for fault in faults:
                if fault.since_s <= repeat.at_s <= fault.until_s and (repeat.target, fault) not in used:
                    used.add((repeat.target, fault))
                    break
            else:
                yield repeat


def _request_of(attempt: Record, unseen: list[float], since_boot_s: float, *, late: bool) -> float | None:
    """When the request of an attempt came, taken out of `unseen`: the first since it began, before it ended."""
    lasted_s = math.inf if late else attempt["duration_ms"] / 1000 + 1
    began_s = attempt["started"] + since_boot_s - 0.01  # two clocks, read one after the other
    for at_s in sorted(unseen):
        if began_s <= at_s <= began_s + lasted_s:
            unseen.remove(at_s)
            return at_s
    return None
