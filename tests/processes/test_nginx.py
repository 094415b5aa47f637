"""deploy/nginx in a real nginx, in front of real servers."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import websockets.sync.client

from tests.support.front import CLIENT, FILES, SOURCE, Front, nginx
from tests.support.load import Load
from tests.support.runner import CHECKOUT, Esg
from tests.support.waiting import DEADLINE

Start = Callable[..., Esg]


@pytest.fixture(params=["tcp", "unix"])
def behind(
    request: pytest.FixtureRequest, start: Start, tmp_path: Path
) -> Iterator[tuple[Esg, Front, int]]:
    """A server, the nginx in front of it, and nginx's port without TLS."""
    path = tmp_path / "web.sock"
    if request.param == "tcp":
        esg = start(source=SOURCE, files=FILES)
        upstream = {"127.0.0.1:8000;": f"127.0.0.1:{esg.port};"}
    else:
        listen = ("--bind", f"unix:{path}", "--forwarded-allow-ips", "unix:")
        esg = start(listen=listen, source=SOURCE, files=FILES)
        upstream = {
            "server 127.0.0.1:8000;": "",
            "#server unix:/run/esg/web.sock;": f"server unix:{path};",
        }
    with nginx(tmp_path, upstream) as (front, plain):
        yield esg, front, plain


def test_the_site_does_what_its_comments_say(behind: tuple[Esg, Front, int]) -> None:
    """One nginx for all checks: starting one for each would take longer than the checks."""
    _, front, plain = behind
    it_says_who_the_client_is(front)
    it_takes_no_clients_word(front)
    it_upgrades_websockets(front)
    it_upgrades_nothing_else(front)
    front.streams("/pieces?unbuffered")
    front.streams("/stream/pieces")
    it_speaks_http2(front)
    it_leads_to_tls(plain)


def it_says_who_the_client_is(front: Front) -> None:
    told = front.get("/tell")
    assert (told["client"], told["scheme"]) == ([CLIENT, 0], "https")
    assert told["server"][1] in (front.port, None)
    assert told["headers"]["host"] == "127.0.0.1"
    assert "connection" not in told["headers"]


def it_takes_no_clients_word(front: Front) -> None:
    forged = {
        "X-Forwarded-For": "6.6.6.6, 127.0.0.1",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Port": "666",
        "X-Real-IP": "6.6.6.6",
        "Forwarded": "for=6.6.6.6;proto=http;host=evil.example",
    }
    told = front.get("/tell", forged)
    assert (told["client"], told["scheme"]) == ([CLIENT, 0], "https")
    assert not {"6.6.6.6", "evil.example", "666"} & set(told["headers"].values())
    assert "6.6.6.6" not in json.dumps(told)


def it_upgrades_websockets(front: Front) -> None:
    with contextlib.closing(
        socket.create_connection(("127.0.0.1", front.port), DEADLINE, (CLIENT, 0))
    ) as sock:
        url = f"wss://127.0.0.1:{front.port}/"
        with websockets.sync.client.connect(url, sock=sock, ssl=front.tls) as client:
            assert json.loads(client.recv(DEADLINE)) == ["wss", [CLIENT, 0]]
            client.send("through nginx")
            assert client.recv(DEADLINE) == "through nginx"


def it_upgrades_nothing_else(front: Front) -> None:
    told = front.get("/tell", {"Connection": "Upgrade", "Upgrade": "h2c"})
    assert not {"connection", "upgrade"} & told["headers"].keys()


def it_speaks_http2(front: Front) -> None:
    front.tls.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", front.port), DEADLINE) as sock,
        front.tls.wrap_socket(sock, server_hostname="127.0.0.1") as tls,
    ):
        assert tls.selected_alpn_protocol() == "h2"
    front.tls.set_alpn_protocols(["http/1.1"])


def it_leads_to_tls(plain: int) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", plain)) as connection:
        connection.request("POST", "/order?n=1", headers={"Host": "example.org"})
        response = connection.getresponse()
    assert response.status == 308
    assert response.headers["location"] == "https://example.org/order?n=1"


def test_websockets_without_http11_are_served_with_a_warning(start: Start, tmp_path: Path) -> None:
    """Some guides omit proxy_http_version; nginx's default for its upstreams is HTTP/1.0."""
    esg = start(source=SOURCE, files=FILES)
    values = {"127.0.0.1:8000;": f"127.0.0.1:{esg.port};", "    proxy_http_version 1.1;\n": ""}
    with nginx(tmp_path, values) as (front, _):
        for _ in range(2):
            it_upgrades_websockets(front)
    warnings = [record for record in esg.records if record.level == "WARNING"]
    assert len(warnings) == 1
    assert "set `proxy_http_version 1.1;` in its location" in warnings[0].message


def test_connections_from_nginx_are_kept_alive(start: Start, tmp_path: Path) -> None:
    esg = start(source=SOURCE, files=FILES)
    (worker,) = esg.workers()

    def connections() -> set[Any]:
        found = psutil.Process(worker).net_connections("tcp")
        return {c.raddr for c in found if c.status == psutil.CONN_ESTABLISHED}

    with nginx(tmp_path, {"127.0.0.1:8000;": f"127.0.0.1:{esg.port};"}) as (front, _):
        front.get("/tell")
        before = connections()
        assert len(before) == 1
        for _ in range(3):
            front.get("/tell")
        assert connections() == before


def test_the_client_is_found_behind_a_cdn(start: Start, tmp_path: Path) -> None:
    page = (CHECKOUT / "docs/howto/cdn.md").read_text()
    (lines,) = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
    assert "set_real_ip_from 192.0.2.0/24;" in lines
    lines = lines.replace("192.0.2.0/24", f"{CLIENT}/32")
    esg = start(source=SOURCE, files=FILES)
    values = {
        "127.0.0.1:8000;": f"127.0.0.1:{esg.port};",
        "    ssl_protocols": f"{lines}\n    ssl_protocols",
    }
    with nginx(tmp_path, values) as (front, _):
        told = front.get("/tell", {"X-Forwarded-For": "6.6.6.6, 203.0.113.7"})
    assert told["client"] == ["203.0.113.7", 0]
    assert told["headers"]["x-forwarded-for"] == "203.0.113.7"


def test_a_reload_behind_nginx_loses_nothing(start: Start, tmp_path: Path) -> None:
    esg = start("--workers", "2", source=SOURCE, files=FILES)
    options: Any = {"keep_alive": 4, "fresh": 2, "slow": 1}
    with (
        nginx(tmp_path, {"127.0.0.1:8000;": f"127.0.0.1:{esg.port};"}) as (front, _),
        Load(front.port, tls=front.tls, **options) as load,
    ):
        esg.reload()
        load.wait_until_answered("keep-alive", 50)
        load.wait_until_answered("slow", 1)
