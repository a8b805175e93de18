"""Fixtures of the fault tests, which live in tests/support/."""

from tests.support.chain import chain
from tests.support.pauses import pauses
from tests.support.wires import wires

__all__ = ["chain", "pauses", "wires"]
