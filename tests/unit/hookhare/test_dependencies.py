"""What the code imports is what pyproject.toml declares."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = ("hookhare", "consumer_api", "dispatcher", "producer", "infra", "schemas")
# Parts of a declared package that are distributions of their own, which it pins itself.
BROUGHT_BY = {
    "pamqp": "aio-pika",
    "prometheus-client": "opentelemetry-exporter-prometheus",
    "pydantic-core": "pydantic",
    "yarl": "aiohttp",
}


def imported() -> Iterator[str]:
    """The top names of all modules that our own import, but for the standard library's and our own."""
    for file in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {name.partition(".")[0] for name in names}:
                if top not in sys.stdlib_module_names and top not in PACKAGES:
                    yield top


def plain(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["server"], *extras["embedded"]]
    return {plain(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in lines}


def test_every_import_is_of_a_declared_package() -> None:
    known = packages_distributions()
    undeclared = set()
    for top in set(imported()):
        brought = {plain(distribution) for distribution in known[top]}
        if not (brought | {BROUGHT_BY.get(name, name) for name in brought}) & declared():
            undeclared.add(top)
    assert undeclared == set()
