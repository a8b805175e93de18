"""Requests that are done once: what was asked under an `Idempotency-Key`, and what was answered.

A row is in flight while `claimed_at` is set, done once it has an answer, and released with neither: then whoever comes
next does it, with the row's `seed` if it is the same request. So ids that are made of the seed are the same again.
"""

from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

IN_FLIGHT_S: Final = 120  # longer than any request takes: past it, who claimed a row is taken for dead

# $1 API key, $2 route, $3 the caller's key, $4 seed and claim, $5 digest; in seconds $6 lifetime, $7 longest in flight.
_CLAIM: Final = """
INSERT INTO idempotency_keys AS k (api_key_id, route, key, seed, claim, digest, claimed_at)
VALUES ($1, $2, $3, $4, $4, $5, clock_timestamp())
ON CONFLICT (api_key_id, route, key) DO UPDATE SET
    seed = CASE WHEN k.digest = excluded.digest AND k.created_at >= clock_timestamp() - make_interval(secs => $6)
                THEN k.seed ELSE excluded.seed END,
    created_at = CASE WHEN k.digest = excluded.digest AND k.created_at >= clock_timestamp() - make_interval(secs => $6)
                      THEN k.created_at ELSE clock_timestamp() END,
    digest = excluded.digest, claim = excluded.claim, claimed_at = clock_timestamp(), answer = NULL
WHERE CASE WHEN k.answer IS NOT NULL THEN k.created_at < clock_timestamp() - make_interval(secs => $6)
           ELSE k.claimed_at IS NULL OR k.claimed_at < clock_timestamp() - make_interval(secs => $7) END
RETURNING seed
"""

_FIND: Final = "SELECT digest, answer FROM idempotency_keys WHERE api_key_id = $1 AND route = $2 AND key = $3"

# Only by who claimed it last, and once: what was kept with the work itself stays, whatever came of its request.
_FINISH: Final = """
UPDATE idempotency_keys SET answer = $5, claimed_at = NULL
WHERE api_key_id = $1 AND route = $2 AND key = $3 AND claim = $4 AND answer IS NULL
RETURNING true
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked under a key: by which API key, of which route; `digest` is of the request."""

    api_key_id: UUID
    route: str
    key: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Claimed:
    """The request is the claimer's to do."""

    asked: Asked
    claim: UUID
    seed: UUID


@dataclass(frozen=True, slots=True)
class Before:
    """It was asked before: `same` or something else; `answer` is encrypted, None while it is in flight."""

    same: bool
    answer: bytes | None = field(repr=False)


async def claim(conn: asyncpg.Connection, asked: Asked, *, lifetime_s: float) -> Claimed | Before:
    """Begin a request, unless it is under way or done."""
    fresh = uuid7()
    seed = await conn.fetchval(
        _CLAIM, asked.api_key_id, asked.route, asked.key, fresh, asked.digest, lifetime_s, float(IN_FLIGHT_S)
    )
    if seed is not None:
        return Claimed(asked, fresh, seed)
    row = await conn.fetchrow(_FIND, asked.api_key_id, asked.route, asked.key)
    if row is None:  # forgotten just now
        return Before(same=True, answer=None)
    return Before(same=row["digest"] == asked.digest, answer=row["answer"])


async def finish(conn: asyncpg.Connection, claimed: Claimed, answer: bytes | None) -> bool:
    """Keep the answer (encrypted), or with None release the request to whoever asks it next.

    False, and nothing done, where that was done, or the request is another claimer's by now.
    """
    asked = claimed.asked
    done = await conn.fetchval(_FINISH, asked.api_key_id, asked.route, asked.key, claimed.claim, answer)
    return done is not None
