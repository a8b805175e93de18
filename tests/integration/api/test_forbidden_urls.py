"""No spelling of a forbidden address becomes a subscription's URL."""

from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tests.support.api import ApiClient
from tests.support.spellings import forbidden_urls


@examples(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_a_forbidden_address_is_refused_in_every_spelling(data: st.DataObject, strict_api: ApiClient) -> None:
    url = data.draw(forbidden_urls())
    answer = await strict_api.call("POST", "/v1/subscriptions", {"url": url, "event_types": ["#"]})
    assert answer.status == 400
    assert answer.fields["url"].startswith("must ")
