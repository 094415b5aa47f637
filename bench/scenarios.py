"""The scenarios: each is an application, the request that is sent, and the right answer."""

from dataclasses import dataclass

HELLO = "bench.apps:hello"


@dataclass(frozen=True)
class Scenario:
    """One kind of traffic. `answer` is the exact body of every response."""

    name: str
    app: str
    answer: bytes
    path: str = "/"
    body_size: int = 0  # bytes of a POST; 0 sends a GET
    keep_alive: bool = True
    access_log: bool = False
    wsgi: bool = False
    fields: int = 0  # header fields of the request besides Host

    @property
    def method(self) -> str:
        return "POST" if self.body_size else "GET"


_ALL = [
    Scenario("hello", HELLO, b"Hello, world!"),
    Scenario(
        "fastapi-json",
        "bench.fastapi_app:api",
        b'{"item_id":42,"name":"Hello, world!"}',
        path="/items/42",
    ),
    Scenario("post-64k", "bench.apps:count", b"65536", body_size=64 * 1024),
    Scenario("access-log", HELLO, b"Hello, world!", access_log=True),
    Scenario("new-connection", HELLO, b"Hello, world!", keep_alive=False),
    Scenario("stream-50", "bench.apps:stream", b"x" * 100 * 50),
    Scenario("wsgi-hello", "bench.wsgi_apps:hello", b"Hello, world!", wsgi=True),
    Scenario("wsgi-post-64k", "bench.wsgi_apps:count", b"65536", body_size=64 * 1024, wsgi=True),
]

SCENARIOS = {scenario.name: scenario for scenario in _ALL}
