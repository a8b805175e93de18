"""What callers send about keys."""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, Strict

from consumer_api.queries import ListQuery
from consumer_api.query_fields import Moment, Tenant
from infra.settings import MAX_REQUESTS_PER_MIN
from schemas.fields import source_fault
from schemas.inputs import Input, rule
from schemas.scopes import EVERY, Scope

MAX_OVERLAP_S: Final = 604_800
DEFAULT_OVERLAP_S: Final = 86_400


def _name(text: str) -> str:
    rule(source_fault(text))
    return text


def _distinct(scopes: tuple[str, ...]) -> tuple[str, ...]:
    rule(None if len(set(scopes)) == len(scopes) else "must name each scope once")
    rule(None if EVERY not in scopes or len(scopes) == 1 else f"must be names of scopes, or {EVERY!r} alone")
    return scopes


Name = Annotated[str, AfterValidator(_name)]
Scopes = Annotated[
    tuple[Scope | Literal["*"], ...], Field(min_length=1, max_length=len(Scope)), AfterValidator(_distinct)
]


class KeysQuery(ListQuery):
    tenant: Tenant | None = None


class RequestRate(Input):
    requests_per_min: Annotated[int, Strict(), Field(ge=1, le=MAX_REQUESTS_PER_MIN)]


class KeyCreate(Input):
    """A key to make. `tenant` null is an admin key, which sees every tenant: that has to be said.

    `scopes` are names, or `["*"]` for all that there are and will be. Without `rate_limit`, or with null, the
    installation's limit holds; a tenant's key makes keys with its own limit unless it says otherwise.
    """

    name: Name
    tenant: Tenant | None
    scopes: Scopes
    expires_at: Moment | None = None
    rate_limit: RequestRate | None = None


class KeyPatch(Input):
    """What to change of a key. The tenant stays."""

    name: Name | None = None
    scopes: Scopes | None = None
    expires_at: Moment | None = None
    rate_limit: RequestRate | None = None


class KeyRotation(Input):
    """The old key goes on for `overlap_s` seconds beside the new one; 0 ends it at once."""

    overlap_s: Annotated[int, Strict(), Field(ge=0, le=MAX_OVERLAP_S)] = DEFAULT_OVERLAP_S


def stored(scopes: Sequence[Scope | str]) -> list[str]:
    """Scopes as they are stored and shown: sorted names."""
    return sorted(str(scope) for scope in scopes)
