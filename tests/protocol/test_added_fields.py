"""`--header`: fields that are added to every response."""

from __future__ import annotations

from .apps import hello, respond
from .wire import get


async def test_added_fields_are_in_the_applications_responses(serve):
    async def app(scope, receive, send):
        await respond(send, headers=[(b"x-a", b"own")] if scope["path"] == "/own" else [])

    client = serve(app, header=("X-A: 1", "X-B: 2")).connect()
    for _ in range(2):
        response = await client.request(get(b"/"))
        assert (response[b"x-a"], response[b"x-b"]) == (b"1", b"2")
    assert (await client.request(get(b"/own"))).all(b"x-a") == [b"1", b"own"]


async def test_added_fields_are_in_the_servers_own_responses(serve):
    client = serve(hello, header=("Server: mine", "X-B: 2")).connect()
    response = await client.request(b"GET / HTTP/1.1\r\n\r\n")
    assert (response.status, response[b"server"], response[b"x-b"]) == (400, b"mine", b"2")


async def test_several_added_fields_replace_a_default_field(serve):
    client = serve(hello, header=("Server: a", "X-B: 2", "server: b", "Date: c")).connect()
    response = await client.request(get(b"/"))
    assert response.all(b"server") == [b"a", b"b"]
    assert response.all(b"date") == [b"c"]
    assert response.all(b"x-b") == [b"2"]
