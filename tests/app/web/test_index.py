"""What a server says to whoever opens it in a browser."""

import httpx


async def test_the_front_page_says_how_to_chat(server):
    """With this server's own address, so that it can be copied."""
    async with httpx.AsyncClient(base_url=server) as http:
        page = await http.get("/")
    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/plain")
    assert f"nurseries chat --url {server} --register" in page.text
