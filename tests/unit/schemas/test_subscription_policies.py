"""A subscription's retry policy and secrets, and creating and changing it as a whole."""

from datetime import UTC, timedelta, timezone
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.errors import InvalidInput, Problem, SecretUnreadable
from schemas.formats import Scheme
from schemas.inputs import read_input
from schemas.signatures import format_keypair
from schemas.subscriptions import (
    DEFAULT_POLICY,
    ExponentialPolicy,
    ListPolicy,
    RetryPolicy,
    Secret,
    State,
    SubscriptionCreate,
    SubscriptionPatch,
    decode_secrets,
    encode_secrets,
    read_policy,
    write_policy,
)
from tests.unit.schemas.subscription_inputs import EXPONENTIAL, LEAST, NOW, SECRET, create, problems


class TestRetryPolicy:
    @pytest.mark.parametrize(
        ("given_policy", "policy"),
        [
            ({"delays_s": []}, ListPolicy(delays_s=())),
            ({"delays_s": [0, 0.5, 86400]}, ListPolicy(delays_s=(0, 0.5, 86_400))),
            (
                {"delays_s": [1] * 49, "final_statuses": [400, 599]},
                ListPolicy(delays_s=(1,) * 49, final_statuses=(400, 599)),
            ),
            ({"delays_s": [], "max_age_s": 1}, ListPolicy(delays_s=(), max_age_s=1)),
            ({"delays_s": [], "max_age_s": 2_592_000}, ListPolicy(delays_s=(), max_age_s=30 * 86_400)),
            ({"delays_s": [], "max_age_s": None}, ListPolicy(delays_s=())),
            (EXPONENTIAL, ExponentialPolicy(max_attempts=5, initial_delay_s=1, multiplier=2.5, max_delay_s=60)),
            (
                EXPONENTIAL | {"max_attempts": 1, "final_statuses": [301]},
                ExponentialPolicy(
                    max_attempts=1, initial_delay_s=1, multiplier=2.5, max_delay_s=60, final_statuses=(301,)
                ),
            ),
        ],
    )
    def test_its_shape_tells_which_it_is(self, given_policy: object, policy: RetryPolicy) -> None:
        assert create(retry_policy=given_policy).retry_policy == policy

    @pytest.mark.parametrize(
        ("policy", "field", "why"),
        [
            ([], "retry_policy", "object"),
            ("fast", "retry_policy", "object"),
            (None, "retry_policy", "object"),
            ({"delays_s": 5}, "retry_policy.delays_s", "list"),
            ({"delays_s": [1, -1]}, "retry_policy.delays_s.1", "greater than or equal to 0"),
            ({"delays_s": [86401]}, "retry_policy.delays_s.0", "less than or equal to 86400"),
            ({"delays_s": ["5"]}, "retry_policy.delays_s.0", "number"),
            ({"delays_s": [True]}, "retry_policy.delays_s.0", "number"),
            ({"delays_s": [float("nan")]}, "retry_policy.delays_s.0", "finite"),
            ({"delays_s": [float("inf")]}, "retry_policy.delays_s.0", ""),
            ({"delays_s": [1] * 50}, "retry_policy.delays_s", "at most 49"),
            ({"delays_s": [1], "max_attempts": 2}, "retry_policy.max_attempts", "not a known field"),
            ({"delays_s": [1], "final_statuses": [200]}, "retry_policy.final_statuses.0", "300"),
            ({"delays_s": [1], "final_statuses": [600]}, "retry_policy.final_statuses.0", "599"),
            ({"delays_s": [1], "final_statuses": [404, 404]}, "retry_policy.final_statuses", "twice"),
            ({"delays_s": [1], "max_age_s": 0.9}, "retry_policy.max_age_s", "greater than or equal to 1"),
            ({"delays_s": [1], "max_age_s": 2_592_001}, "retry_policy.max_age_s", "less than or equal to 2592000"),
            ({"delays_s": [1], "max_age_s": "60"}, "retry_policy.max_age_s", "number"),
            ({"delays_s": [1], "max_age_s": True}, "retry_policy.max_age_s", "number"),
            ({"delays_s": [1], "max_age_s": float("nan")}, "retry_policy.max_age_s", "finite"),
            (EXPONENTIAL | {"max_age_s": 0}, "retry_policy.max_age_s", "greater than or equal to 1"),
            (EXPONENTIAL | {"max_attempts": 0}, "retry_policy.max_attempts", "greater than or equal to 1"),
            (EXPONENTIAL | {"max_attempts": 51}, "retry_policy.max_attempts", "less than or equal to 50"),
            (EXPONENTIAL | {"max_attempts": 2.5}, "retry_policy.max_attempts", "integer"),
            (EXPONENTIAL | {"multiplier": 0.5}, "retry_policy.multiplier", "greater than or equal to 1"),
            (EXPONENTIAL | {"multiplier": 101}, "retry_policy.multiplier", "less than or equal to 100"),
            (EXPONENTIAL | {"initial_delay_s": 61}, "retry_policy", "max_delay_s must not be less"),
            (EXPONENTIAL | {"extra": 1}, "retry_policy.extra", "not a known field"),
        ],
    )
    def test_bad(self, policy: object, field: str, why: str) -> None:
        found = problems(retry_policy=policy)
        assert field in found
        assert why in found[field]

    @pytest.mark.parametrize(
        "policy",
        [
            {},
            {"delays": [1]},
            {"final_statuses": [400]},
            *({name: value for name, value in EXPONENTIAL.items() if name != missing} for missing in EXPONENTIAL),
        ],
    )
    @pytest.mark.parametrize("model", [SubscriptionCreate, SubscriptionPatch])
    def test_what_has_the_fields_of_neither_is_told_of_both(
        self, model: type[SubscriptionCreate | SubscriptionPatch], policy: object
    ) -> None:
        with pytest.raises(InvalidInput) as caught:
            read_input(model, LEAST | {"retry_policy": policy})
        message = "must have delays_s, or max_attempts, initial_delay_s, multiplier and max_delay_s"
        assert caught.value.problems == (Problem("retry_policy", message),)

    def test_the_default_is_the_documented_schedule(self) -> None:
        minute_s, hour_s = 60, 3600
        assert create().retry_policy == DEFAULT_POLICY
        assert DEFAULT_POLICY.delays_s == (
            *(5, 5 * minute_s, 30 * minute_s),
            *(2 * hour_s, 5 * hour_s, 10 * hour_s, 14 * hour_s, 20 * hour_s, 24 * hour_s),
        )

    @pytest.mark.parametrize(
        "policy",
        [
            DEFAULT_POLICY,
            ExponentialPolicy(**EXPONENTIAL, final_statuses=(400,)),
            ListPolicy(delays_s=(5,), max_age_s=0.1 + 1),
        ],
    )
    def test_it_comes_back_from_the_store_as_it_went(self, policy: RetryPolicy) -> None:
        assert read_policy(orjson.loads(orjson.dumps(write_policy(policy)))) == policy

    def test_a_field_that_is_null_is_not_stored(self) -> None:
        """Older dispatchers, at work during an upgrade, refuse a field that they do not know."""
        assert write_policy(ListPolicy(delays_s=(5,))) == {"delays_s": [5], "final_statuses": []}


class TestRateLimit:
    @pytest.mark.parametrize("limit", [{"requests_per_s": 0.01}, {"requests_per_s": 10_000, "burst": 10_000}])
    def test_what_passes(self, limit: dict[str, float]) -> None:
        made = create(rate_limit=limit).rate_limit
        assert made is not None
        assert made.model_dump() == {"burst": 1} | limit

    @pytest.mark.parametrize(
        ("limit", "field"),
        [
            ({"requests_per_s": 0}, "rate_limit.requests_per_s"),
            ({"requests_per_s": 10_001}, "rate_limit.requests_per_s"),
            ({"requests_per_s": float("nan")}, "rate_limit.requests_per_s"),
            ({"requests_per_s": "5"}, "rate_limit.requests_per_s"),
            ({"requests_per_s": 1, "burst": 0}, "rate_limit.burst"),
            ({"requests_per_s": 1, "burst": 1.5}, "rate_limit.burst"),
            ({"burst": 5}, "rate_limit.requests_per_s"),
            (5, "rate_limit"),
        ],
    )
    def test_what_does_not(self, limit: object, field: str) -> None:
        assert list(problems(rate_limit=limit)) == [field]

    def test_null_takes_it_away(self) -> None:
        assert read_input(SubscriptionPatch, {"rate_limit": None}).changes() == {"rate_limit": None}


class TestCreate:
    def test_the_least_there_is(self) -> None:
        made = create()
        assert (made.tenant, made.description, made.headers, made.timeout_s) == ("default", "", {}, 15)
        assert made.secret is None

    def test_unknown_fields_are_named_with_the_known_ones(self) -> None:
        message = problems(colour="red")["colour"]
        assert message.startswith("is not a known field; known are tenant, url, event_types,")

    def test_every_fault_is_named_at_once(self) -> None:
        found = problems(tenant="", url="nowhere", event_types=[], timeout_s=0, secret="x", headers=[], colour="red")
        assert set(found) == {"tenant", "url", "event_types", "timeout_s", "secret", "headers", "colour"}

    @pytest.mark.parametrize("data", [None, [], "x", 1, b"{}"])
    def test_what_is_no_object(self, data: object) -> None:
        with pytest.raises(InvalidInput) as caught:
            read_input(SubscriptionCreate, data)
        assert caught.value.problems == (Problem("body", "must be an object"),)

    @pytest.mark.parametrize("missing", ["url", "event_types"])
    def test_what_is_required(self, missing: str) -> None:
        with pytest.raises(InvalidInput) as caught:
            read_input(SubscriptionCreate, {name: value for name, value in LEAST.items() if name != missing})
        assert caught.value.problems == (Problem(missing, "is required"),)

    @pytest.mark.parametrize("timeout_s", [1, 60])
    def test_the_least_and_the_greatest_timeout(self, timeout_s: int) -> None:
        assert create(timeout_s=timeout_s).timeout_s == timeout_s

    @pytest.mark.parametrize("timeout_s", [0, 61, 1.5, "15", True, None, -1])
    def test_bad_timeouts(self, timeout_s: object) -> None:
        assert list(problems(timeout_s=timeout_s)) == ["timeout_s"]

    @pytest.mark.parametrize("tenant", ["", "a b", "a" * 65, "é", "a\n", None, 1])
    def test_bad_tenants(self, tenant: object) -> None:
        assert list(problems(tenant=tenant)) == ["tenant"]

    @pytest.mark.parametrize("description", ["x" * 1025, "é" * 513, "a\x00b", "a\ud800", None])
    def test_bad_descriptions(self, description: object) -> None:
        assert list(problems(description=description)) == ["description"]

    def test_a_description_may_have_lines(self) -> None:
        assert create(description="billing\n\tprod 🧾").description == "billing\n\tprod 🧾"

    @pytest.mark.parametrize(("secret", "version"), [(SECRET, "v1"), (format_keypair(bytes(32)), "v1a")])
    def test_a_secret_of_the_callers(self, secret: str, version: str) -> None:
        made = create(secret=secret, signature={"scheme": "standard", "versions": [version]})
        assert made.secret is not None
        assert made.secret.get_secret_value() == secret

    def test_nothing_secret_is_ever_shown(self) -> None:
        made = create(secret=SECRET, headers={"Authorization": "Bearer hush"})
        shown = f"{made!r} {made}"
        assert "hush" not in shown
        assert SECRET not in shown
        bad = LEAST | {
            "secret": SECRET + "hush",
            "headers": {"X": "hush\n"},
            "url": "https://a:hush@b/",
            "timeout_s": "hush",
        }
        with pytest.raises(ValidationError) as caught:
            SubscriptionCreate.model_validate(bad)
        with pytest.raises(InvalidInput) as ours:
            read_input(SubscriptionCreate, bad)
        assert ours.value.__cause__ is None
        for text in (str(caught.value), str(ours.value), repr(ours.value.problems)):
            assert "hush" not in text
            assert SECRET not in text

    @given(
        st.dictionaries(
            st.sampled_from([*SubscriptionCreate.model_fields, "x"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
                max_leaves=6,
            ),
        )
    )
    def test_any_input_is_a_subscription_or_invalid_input(self, data: dict[str, object]) -> None:
        try:
            made = read_input(SubscriptionCreate, data)
        except InvalidInput:
            return
        assert read_input(SubscriptionCreate, made.model_dump()) == made  # in JSON, secrets are stars


class TestPatch:
    def test_only_what_is_given_changes(self) -> None:
        patch = read_input(SubscriptionPatch, {"state": "paused", "headers": {}, "description": ""})
        assert patch.changes() == {"state": State.PAUSED, "headers": {}, "description": ""}
        assert read_input(SubscriptionPatch, {}).changes() == {}

    @pytest.mark.parametrize(
        "field", sorted(SubscriptionPatch.model_fields.keys() - {"auth", "filter", "rate_limit", "tls"})
    )
    def test_null_is_not_the_same_as_left_out(self, field: str) -> None:
        with pytest.raises(InvalidInput) as caught:
            read_input(SubscriptionPatch, {field: None})
        assert caught.value.problems == (Problem(field, "must not be null; leave it out to keep what it is"),)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("state", "gone"),
            ("state", 1),
            ("url", "nowhere"),
            ("event_types", []),
            ("headers", {"Host": "x"}),
            ("retry_policy", 1),
            ("timeout_s", 0),
            ("secret", SECRET),
            ("tenant", "other"),
        ],
    )
    def test_the_same_rules_hold(self, field: str, value: object) -> None:
        with pytest.raises(InvalidInput) as caught:
            read_input(SubscriptionPatch, {field: value})
        assert [problem.field for problem in caught.value.problems] == [field]


class TestSecrets:
    @given(
        st.lists(
            st.builds(
                Secret,
                st.text(st.characters(exclude_categories=["Cs"])),
                st.none() | st.datetimes(timezones=st.just(UTC)),
                st.sampled_from(Scheme),
                st.none() | st.uuids(),
            )
        )
    )
    def test_round_trip(self, secrets: list[Secret]) -> None:
        back = decode_secrets(encode_secrets(secrets))
        assert (back, [secret.id for secret in back]) == (secrets, [secret.id for secret in secrets])

    def test_the_stored_form_is_what_the_table_says(self) -> None:
        stored = encode_secrets([Secret(SECRET), Secret("b", NOW), Secret("c", scheme=Scheme.HMAC, id=UUID(int=7))])
        assert orjson.loads(stored) == [
            {"secret": SECRET, "expires_at": None},  # as it was before there were schemes
            {"secret": "b", "expires_at": "2026-01-31T12:00:00Z"},
            {"secret": "c", "expires_at": None, "scheme": "hmac", "id": str(UUID(int=7))},
        ]

    @given(
        st.binary() | st.sampled_from([b"{}", b'["x"]', b'[{"secret": 1}]', b'[{"secret": "hush", "expires_at": "x"}]'])
    )
    def test_what_is_not_that_is_unreadable_and_unseen(self, data: bytes) -> None:
        if data == b"[]":
            return
        with pytest.raises(SecretUnreadable) as caught:
            decode_secrets(data)
        assert "hush" not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_a_secret_lives_until_it_expires(self) -> None:
        assert Secret(SECRET).live(NOW)
        assert Secret(SECRET, NOW + timedelta(seconds=1)).live(NOW)
        assert not Secret(SECRET, NOW).live(NOW)
        assert not Secret(SECRET, NOW.astimezone(timezone(timedelta(hours=2)))).live(NOW)

    def test_it_is_not_shown(self) -> None:
        assert SECRET not in repr(Secret(SECRET, NOW))
        assert SECRET not in str([Secret(SECRET)])
