"""What the audit log is asked for, and how its entries look from outside.

A tenant's key is shown what was done to what is its tenant's, whoever did it; of the operator, that it was an admin's
key or the command, and not which one nor from where.
"""

import re
from datetime import datetime
from typing import Annotated, Final, Literal
from uuid import UUID

from pydantic import Field, JsonValue, WithJsonSchema
from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from consumer_api.queries import ListQuery
from consumer_api.query_fields import Created, Tenant, id_of, within_rule
from consumer_api.views import id_schema
from infra.store.audit import AuditFilter, AuditRow
from schemas.ids import API_KEY, AUDIT_ENTRY, public_id

MAX_ACTION_CHARS: Final = 64
MAX_TARGET_CHARS: Final = 256

_ACTION: Final = re.compile(r"[a-z_]+\.[a-z_]+")

Actor = Literal["key", "admin_key", "cli"]


def _action_fault(text: str) -> str | None:
    return None if _ACTION.fullmatch(text) else "must be an action such as subscription.updated"


def _target_fault(text: str) -> str | None:
    return None if text.isprintable() else "must be the id of what was changed, as its entries show it"


class AuditLogQuery(ListQuery, Created):
    tenant: Tenant | None = None
    key_id: Annotated[UUID, id_of(API_KEY), WithJsonSchema(id_schema(API_KEY))] | None = None
    action: (
        Annotated[
            str,
            within_rule(_action_fault),
            Field(max_length=MAX_ACTION_CHARS, json_schema_extra={"pattern": f"^{_ACTION.pattern}$"}),
        ]
        | None
    ) = None
    target: Annotated[str, within_rule(_target_fault), Field(min_length=1, max_length=MAX_TARGET_CHARS)] | None = None

    def wanted(self, viewer: str | None) -> AuditFilter:
        """`viewer` is the tenant of the key that asks."""
        return AuditFilter(
            tenant=self.tenant,
            key_id=self.key_id,
            key_tenant=viewer,
            action=self.action,
            target=self.target,
            created=self.created(),
        )


class AuditEntryView(TypedDict):
    """A change. `before` and `after` are what the API showed of the target, never its secrets."""

    id: Annotated[str, WithJsonSchema(id_schema(AUDIT_ENTRY))]
    tenant: Annotated[str | None, Field(description="whose the target is; null: the installation's")]
    actor: Annotated[
        Actor, Field(description="a tenant's key, an admin's key, or the command hookhare on the database")
    ]
    key_id: Annotated[
        Annotated[str, WithJsonSchema(id_schema(API_KEY))] | None,
        Field(description="null for the command, and, to a tenant's key, for an admin's"),
    ]
    key_name: Annotated[str | None, Field(description="what the key is called today")]
    key_prefix: str | None
    action: Annotated[str, Field(examples=["subscription.updated"])]
    target: Annotated[str, Field(description="the id of what was changed", examples=["sub_01j84m…"])]
    address: Annotated[str | None, Field(description="that the request came from")]
    request_id: str | None
    before: dict[str, JsonValue] | None
    after: dict[str, JsonValue] | None
    created_at: datetime


def audit_entry_view(row: AuditRow, *, viewer: str | None) -> AuditEntryView:
    """`viewer` is the tenant of the key that asks; None for an admin's."""
    actor: Actor = "cli" if row.key_id is None else "admin_key" if row.key_tenant is None else "key"
    shown = viewer is None or row.key_tenant == viewer
    return {
        "id": public_id(AUDIT_ENTRY, row.id),
        "tenant": row.tenant,
        "actor": actor,
        "key_id": public_id(API_KEY, row.key_id) if shown and row.key_id is not None else None,
        "key_name": row.key_name if shown else None,
        "key_prefix": row.key_prefix if shown else None,
        "action": row.action,
        "target": row.target,
        "address": row.address if shown else None,
        "request_id": row.request_id,
        "before": row.before,
        "after": row.after,
        "created_at": row.created_at,
    }
