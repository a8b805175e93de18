"""A domain service installs the base, without the server's packages: what it publishes with must import there."""

import subprocess
import sys

SERVER_ONLY = ("pydantic", "cryptography", "sqlalchemy", "aiohttp", "asyncpg", "structlog")
MODULES = ("errors", "ids", "messages", "fields", "raw_json", "events", "work", "signatures", "deliveries")


def test_the_light_schemas_import_and_work_without_the_servers_packages() -> None:
    program = f"""
import sys
for name in {SERVER_ONLY!r}:
    sys.modules[name] = None  # an import of it fails
for name in {MODULES!r}:
    __import__("schemas." + name)
from schemas.signatures import format_secret, parse_secret, sign
print(sign([parse_secret(format_secret(bytes(24)))], webhook_id="evt_1", timestamp=1, body=b"{{}}"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("v1,")
