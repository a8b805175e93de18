"""How keys look from outside. The text of one is shown in the answer that makes it, and never again."""

from datetime import datetime
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from infra.store.api_keys import ApiKeyRow
from schemas.ids import API_KEY, public_id


class KeyRate(TypedDict):
    requests_per_min: int


class KeyView(TypedDict):
    id: str
    name: str
    prefix: Annotated[str, Field(description="the beginning of its text, to tell keys apart by")]
    tenant: Annotated[str | None, Field(description="null: an admin key, which sees every tenant")]
    scopes: list[str]
    state: Annotated[str, Field(description="active, expired or revoked")]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    rate_limit: Annotated[KeyRate | None, Field(description="null: what the installation sets")]
    replaced_by: Annotated[str | None, Field(description="the key that it was rotated to")]
    use_count: Annotated[int, Field(description="requests, counted in batches: some seconds late")]
    last_used_at: datetime | None


class NewKeyView(KeyView):
    key: Annotated[str, Field(description="its text, shown here and never again")]


class RotatedKeyView(NewKeyView):
    replaces: Annotated[KeyView, Field(description="the old key, and when it ends")]


def key_view(row: ApiKeyRow, now: datetime) -> KeyView:
    return {
        "id": public_id(API_KEY, row.id),
        "name": row.name,
        "prefix": row.prefix,
        "tenant": row.tenant,
        "scopes": row.scopes,
        "state": "revoked" if row.revoked_at is not None else "expired" if row.has_ended(now) else "active",
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "revoked_at": row.revoked_at,
        "rate_limit": None if row.rate_per_min is None else {"requests_per_min": row.rate_per_min},
        "replaced_by": None if row.replaced_by is None else public_id(API_KEY, row.replaced_by),
        "use_count": row.uses,
        "last_used_at": row.last_used_at,
    }
