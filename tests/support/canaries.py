"""Marked secrets, and the search for them in whatever is told or stored, in any form that text takes on its way.

Which fields can hold a secret is read from the models of input themselves, so that none is forgotten.
"""

import base64
from collections.abc import Iterator, Mapping
from contextlib import suppress
from secrets import token_hex
from typing import Annotated, Any, get_args, get_origin
from urllib.parse import quote, quote_plus

import asyncpg
import orjson
from pydantic import BaseModel, SecretStr

from infra.settings import Settings
from schemas.inputs import Input

_SEXTETS_CUT = (0, 2, 3)  # characters of base64 that depend on the bytes before, by how many these are


class Canaries:
    """Secrets by the slot that they were put into."""

    def __init__(self) -> None:
        self._forms: dict[str, list[tuple[str, bytes]]] = {}

    @property
    def slots(self) -> set[str]:
        return set(self._forms)

    def text(self, slot: str) -> str:
        """A new secret: printable ASCII, some of it written otherwise in a URL."""
        return self.add(slot, f"canary+{token_hex(8)}/{token_hex(4)}=$")

    def add(self, slot: str, secret: str) -> str:
        """A secret that somebody made, to be searched for too; and if it is base64, what that encodes.

        A slot may have several.
        """
        assert len(secret) >= 16, "too short to be told from chance"
        forms = self._forms.setdefault(slot, [])
        forms += _forms(secret.encode()).items()
        with suppress(ValueError):
            decoded = base64.b64decode(secret.replace("-", "+").replace("_", "/"), validate=True)
            forms += ((f"decoded, {form}", needle) for form, needle in _binary_forms(decoded).items())
        return secret

    def found_in(self, told: str | bytes) -> list[str]:
        """Which of the secrets are there, and in which form."""
        data = told.encode("utf-8", "surrogatepass") if isinstance(told, str) else told
        lower = data.lower()
        return [
            f"{slot}, {form}"
            for slot, forms in self._forms.items()
            for form, needle in forms
            if needle in (lower if form.endswith("hex") else data)
        ]


def _forms(secret: bytes) -> dict[str, bytes]:
    text = secret.decode()
    return _binary_forms(secret) | {
        "URL-encoded": quote(text, safe="").encode(),
        "form-encoded": quote_plus(text).encode(),
        "in JSON": orjson.dumps(text)[1:-1],
        "as Python shows it": repr(text)[1:-1].encode(),
    }


def _binary_forms(secret: bytes) -> dict[str, bytes]:
    forms = {"as it is": secret, "hex": secret.hex().encode()}
    for before in range(3):  # wherever it stands in what was encoded
        encoded = base64.b64encode(bytes(before) + secret)
        whole = encoded[_SEXTETS_CUT[before] : (before + len(secret)) * 8 // 6]
        forms[f"base64 after {before}"] = whole
        forms[f"base64url after {before}"] = whole.replace(b"+", b"-").replace(b"/", b"_")
    return forms


def secret_fields() -> set[str]:
    """`Model.field` of every setting and every field of a caller's input that is typed as a secret."""
    models: list[type[BaseModel]] = [Settings, *_below(Input)]
    return {
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if _is_secret(field.annotation)
    }


def _below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for one in model.__subclasses__():
        if not one.__module__.startswith("tests."):
            yield one
        yield from _below(one)


def _is_secret(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _is_secret(get_args(annotation)[0])
    return annotation is SecretStr or any(map(_is_secret, get_args(annotation)))


async def dump(database_url: str) -> Mapping[str, bytes]:
    """All that every table holds, as text, and the bytes of its columns of bytes."""
    connection = await asyncpg.connect(database_url)
    try:
        names = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') "
            "AND NOT relispartition"
        )
        return {name: await _table(connection, name) for (name,) in names}
    finally:
        await connection.close()


async def _table(connection: asyncpg.Connection, name: str) -> bytes:
    parts: list[bytes] = []
    for row in await connection.fetch(f'SELECT *, to_jsonb(t)::text AS whole_row FROM "{name}" AS t'):
        parts += [value if isinstance(value, bytes) else str(value).encode() for value in row.values()]
    return b"\n".join(parts)
