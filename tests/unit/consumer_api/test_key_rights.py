"""A key hands on nothing that it has not itself."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from consumer_api.key_rights import Rights, beyond

END = datetime(2030, 1, 1, tzinfo=UTC)
OWN = Rights(("keys:admin", "events:read"), END, 100)


def test_the_same_and_less_may_be_handed_on() -> None:
    assert beyond(OWN, OWN) is None
    assert beyond(OWN, Rights(("events:read",), END - timedelta(days=1), 1)) is None
    assert beyond(Rights(("*",), None, 100), Rights(("*",), None, 100)) is None
    assert beyond(Rights(("*",), None, 100), Rights(("events:write", "of a later release"), None, 100)) is None


def test_more_may_not_whichever_way_it_is_more() -> None:
    cases = {
        "scopes: your key does not have events:write itself": replace(OWN, scopes=("events:read", "events:write")),
        "scopes: your key does not have \\* itself": replace(OWN, scopes=("*",)),
        "expires_at: ": replace(OWN, expires_at=END + timedelta(microseconds=1)),
        "expires_at: must": replace(OWN, expires_at=None),
        "rate_limit: must be at most 100": replace(OWN, rate_per_min=101),
    }
    for reason, wanted in cases.items():
        told = beyond(OWN, wanted)
        assert told is not None
        assert told.startswith(reason.replace("\\", ""))


def test_who_names_every_scope_of_today_has_not_those_of_tomorrow() -> None:
    assert beyond(OWN, replace(OWN, scopes=("*",))) is not None
