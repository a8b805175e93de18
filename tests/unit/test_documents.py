"""The documents name things that exist."""

import re
from pathlib import Path

import pytest

from consumer_api.app import all_routes
from consumer_api.route import Route

ROOT = Path(__file__).resolve().parents[2]
PATH = re.compile(r"`((?:hookhare|consumer_api|dispatcher|producer|infra|schemas|tests)/[\w./*-]*)`")


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_path_that_a_document_names_exists(name: str) -> None:
    named = PATH.findall((ROOT / name).read_text())
    missing = [path for path in named if not list(ROOT.glob(path.rstrip("/")))]
    assert not missing


def test_the_readme_shows_real_output() -> None:
    text = (ROOT / "README.md").read_text()
    assert "_OUTPUT" not in text
    assert "All well, in " in text
    assert re.search(r"\d+ passed in ", text)


@pytest.mark.parametrize("route", all_routes(), ids=lambda route: f"{route.method} {route.path}")
def test_the_readme_lists_every_route(route: Route) -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    path = re.sub(r"{\w*id}", "{id}", route.path)
    start, _, action = path.rpartition("/")
    assert any(
        path in row or (f"`/{action}`" in row and start in row) or (f"…/{action}`" in row and start[:-5] in row)
        for row in rows
    )
