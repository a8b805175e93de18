"""The receiver of the development server."""

import aiohttp

from hookhare.inbox import open_inbox


async def test_a_browser_is_told_where_to_look() -> None:
    shown: list[str] = []
    async with open_inbox(0, shown.append) as url, aiohttp.ClientSession() as session:
        async with session.get(url) as answer:
            text = await answer.text()
        assert answer.status == 200
        assert "POSTed here are printed in its terminal" in text
        assert text.count("\n") == 1
        assert shown == []
        async with session.post(url, data=b'{"a":1}', headers={"webhook-id": "evt_1"}) as answer:
            assert answer.status == 204
    assert shown == ['inbox: evt_1 {"a":1}']
