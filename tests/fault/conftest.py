"""Fixtures of the fault tests, which live in tests/support/."""

from tests.support.chain import chain

__all__ = ["chain"]
