"""Addresses to listen on, and sockets that do."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.errors import ConfigError, ListenError
from esg.listeners import Address, Descriptor, UnixAddress, open_listeners, parse_bind


@pytest.fixture
def listen():
    """Opens listeners, and closes them in the end."""
    opened = []

    def start(*binds, backlog=16):
        listeners = open_listeners(binds, backlog, "--bind")
        opened.extend(listeners)
        return listeners

    yield start
    for listener in opened:
        listener.close()


# -- how an address is written ---------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:80", "127.0.0.1", 80),
        ("example.org:65535", "example.org", 65535),
        ("localhost:0", "localhost", 0),
        ("[::1]:8080", "::1", 8080),
        ("[::]:0", "::", 0),
        (":9000", "", 9000),
        ("example.org", "example.org", 8000),
        ("[::1]", "::1", 8000),
    ],
)
def test_addresses(text, host, port):
    assert parse_bind(text, "--bind") == Address(host, port)


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("unix:/run/x.sock", UnixAddress("/run/x.sock")),
        ("unix:///run/x.sock", UnixAddress("/run/x.sock")),
        ("unix:x.sock", UnixAddress("x.sock")),
        ("unix:@x", UnixAddress("@x")),
        ("unix:/" + 106 * "x", UnixAddress("/" + 106 * "x")),
        ("fd://0", Descriptor(0)),
        ("fd://web", Descriptor("web")),
    ],
)
def test_sockets_of_other_kinds(text, bind):
    assert parse_bind(text, "--bind") == bind


@pytest.mark.parametrize(
    "text",
    [
        "a:",
        "a:b",
        "a:-1",
        "a:+1",
        "a:65536",
        "a:1.5",
        "a: 1",
        "a:\u0661",
        "a:1_0",
        "::1:80",
        "::",
        "[::1]80",
        "[::1:80",
        "unix:",
        "unix:@",
        "unix:/" + 107 * "x",
        "fd://",
        "fd://-1",
        "fd://a b",
    ],
)
def test_no_addresses(text):
    with pytest.raises(ConfigError, match="--bind"):
        parse_bind(text, "--bind")


@given(
    st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str),
    st.integers(0, 65535),
)
def test_an_address_is_read_as_it_is_written(host, port):
    address = Address(host, port)
    assert parse_bind(str(address), "--bind") == address


# -- sockets ---------------------------------------------------------------------------


def test_a_listener_accepts(listen):
    (listener,) = listen("127.0.0.1:0")
    with socket.create_connection(listener.sock.getsockname()) as client:
        listener.sock.setblocking(True)
        sock, peer = listener.sock.accept()
        sock.close()
        assert peer == client.getsockname()


def test_a_listener_does_not_block_and_is_not_inherited(listen):
    (listener,) = listen("127.0.0.1:0")
    assert listener.sock.gettimeout() == 0
    assert not os.get_inheritable(listener.fileno())
    with pytest.raises(BlockingIOError):
        listener.sock.accept()


def test_a_listener_can_be_taken_over_at_once_after_a_restart(listen):
    (listener,) = listen("127.0.0.1:0")
    address = listener.sock.getsockname()
    with socket.create_connection(address):
        listener.sock.setblocking(True)
        listener.sock.accept()[0].close()  # leaves a connection in TIME_WAIT on this side
    listener.close()
    listen(f"127.0.0.1:{address[1]}")


def test_urls(listen):
    (v4,) = listen("127.0.0.1:0")
    (v6,) = listen("[::1]:0")
    assert v4.url() == f"http://127.0.0.1:{v4.sock.getsockname()[1]}"
    assert v4.url("https") == f"https://127.0.0.1:{v4.sock.getsockname()[1]}"
    assert v6.url() == f"http://[::1]:{v6.sock.getsockname()[1]}"


def test_several_addresses(listen):
    listeners = listen("127.0.0.1:0", "[::1]:0", "127.0.0.1:0")
    assert len({listener.fileno() for listener in listeners}) == 3


def test_a_name_is_listened_on_at_every_address_on_one_port(listen):
    listeners = listen("localhost:0")
    assert len({listener.sock.getsockname()[1] for listener in listeners}) == 1


def test_the_ipv6_wildcard_takes_ipv4_clients_too(listen):
    (listener,) = listen("[::]:0")
    port = listener.sock.getsockname()[1]
    for host in ("127.0.0.1", "::1"):
        socket.create_connection((host, port), timeout=5).close()


def test_an_address_in_use_is_explained(listen):
    (listener,) = listen("127.0.0.1:0")
    port = listener.sock.getsockname()[1]
    with pytest.raises(ListenError) as caught:
        listen(f"127.0.0.1:{port}")
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "--bind" in str(caught.value)
    assert "in use" in str(caught.value)
    assert caught.value.exit_code == 1


def test_an_address_of_another_machine_is_explained(listen):
    with pytest.raises(ListenError, match="no such address"):
        listen("192.0.2.1:0")


def test_when_one_address_fails_none_stays_open(listen):
    (taken,) = listen("127.0.0.1:0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    with pytest.raises(ListenError):
        listen(f"127.0.0.1:{free}", f"127.0.0.1:{taken.sock.getsockname()[1]}")
    listen(f"127.0.0.1:{free}")


def test_a_bad_address_among_good_ones(listen):
    with pytest.raises(ConfigError):
        listen("127.0.0.1:0", "nonsense:port")


def test_refusing_new_connections_keeps_the_queued_ones(listen):
    (listener,) = listen("127.0.0.1:0")
    address = listener.sock.getsockname()
    with socket.create_connection(address) as queued:
        listener.refuse_new()
        with socket.socket() as late:
            late.settimeout(0.2)
            with pytest.raises(OSError, match=r"timed out|refused"):
                late.connect(address)
        sock, _ = listener.sock.accept()
        with sock:
            sock.setblocking(True)
            queued.sendall(b"x")
            assert sock.recv(1) == b"x"


# -- names with an address that isn't there --------------------------------------------


def resolving(monkeypatch, *hosts):
    """Have every name resolve to these addresses."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in hosts]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def test_addresses_that_the_machine_does_not_have_are_left_out(listen, monkeypatch):
    resolving(monkeypatch, "203.0.113.1", "127.0.0.1")
    (listener,) = listen("localhost:0")
    assert listener.sock.getsockname()[0] == "127.0.0.1"


def test_a_name_without_any_address_that_the_machine_has_is_refused(listen, monkeypatch):
    resolving(monkeypatch, "203.0.113.1", "203.0.113.2")
    with pytest.raises(ListenError, match="no such address"):
        listen("localhost:0")


# -- both families ---------------------------------------------------------------------


def families(listeners):
    return sorted(listener.sock.family for listener in listeners)


BOTH = [socket.AF_INET, socket.AF_INET6]


def test_an_empty_host_is_every_address_of_both_families(listen):
    assert families(listen(":0")) == BOTH


@pytest.mark.parametrize("first", ["0.0.0.0", "[::]"])
def test_all_of_ipv4_and_all_of_ipv6_on_one_port(listen, first):
    with socket.socket() as free:
        free.bind(("0.0.0.0", 0))
        port = free.getsockname()[1]
    second = "[::]" if first == "0.0.0.0" else "0.0.0.0"
    assert families(listen(f"{first}:{port}", f"{second}:{port}")) == BOTH
