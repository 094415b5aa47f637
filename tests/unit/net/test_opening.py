"""Which sockets are opened, kept or adopted for the addresses in the settings."""

from __future__ import annotations

import os
import socket

import pytest

from esg.errors import ConfigError, ListenError
from esg.net.listeners import Handed
from esg.net.opening import open_listeners
from tests.support.front import free_port

# -- sockets ---------------------------------------------------------------------------


def test_an_address_can_be_listened_on_immediately_after_a_restart(listen):
    (listener,) = listen("127.0.0.1:0")
    address = listener.sock.getsockname()
    with socket.create_connection(address):
        listener.sock.setblocking(True)
        listener.sock.accept()[0].close()  # leaves a connection in TIME_WAIT on this side
    listener.close()
    listen(f"127.0.0.1:{address[1]}")


def test_each_address_has_a_listener_of_its_own(listen):
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


def test_a_bad_address_among_good_ones_is_refused(listen):
    with pytest.raises(ConfigError):
        listen("127.0.0.1:0", "nonsense:port")


# -- names with an address that isn't there --------------------------------------------


def resolving(monkeypatch, *hosts):
    """Make every name resolve to these addresses."""
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


def test_an_empty_host_means_every_address_of_both_families(listen):
    assert families(listen(":0")) == BOTH


@pytest.mark.parametrize("first", ["0.0.0.0", "[::]"])
def test_both_wildcards_can_share_one_port(listen, first):
    with socket.socket() as free:
        free.bind(("0.0.0.0", 0))
        port = free.getsockname()[1]
    second = "[::]" if first == "0.0.0.0" else "0.0.0.0"
    assert families(listen(f"{first}:{port}", f"{second}:{port}")) == BOTH


@pytest.mark.parametrize(("before", "after"), [("both", "six"), ("six", "both"), ("any", "six")])
def test_the_meaning_of_the_ipv6_wildcard_is_never_changed_silently(listen, before, after):
    port = free_port()
    binds = {
        "both": (f"[::]:{port}", f"0.0.0.0:{port}"),
        "six": (f"[::]:{port}",),
        "any": (f":{port}",),
    }
    kept = listen(*binds[before])
    with pytest.raises(ListenError, match="which only a restart can change"):
        open_listeners(binds[after], 16, "--bind", kept=kept, at_start=False)


def test_listeners_of_the_same_binds_are_kept(listen):
    port = free_port()
    for binds in ((f"[::]:{port}", f"0.0.0.0:{port}"), (f"127.0.0.1:{port}", "127.0.0.1:0")):
        kept = listen(*binds)
        assert open_listeners(binds, 16, "--bind", kept=kept, at_start=False) == kept
        for listener in kept:
            listener.close()


def test_an_address_that_is_listened_on_is_kept_under_another_name(listen):
    kept = listen("127.0.0.1:0")
    port = kept[0].sock.getsockname()[1]
    found = open_listeners([f"localhost:{port}"], 16, "--bind", kept=kept, at_start=False)
    assert kept[0] in found
    for listener in found:
        listener.close()


def test_an_address_in_use_by_esg_itself_is_explained(listen):
    kept = listen("0.0.0.0:0")
    port = kept[0].sock.getsockname()[1]
    with pytest.raises(
        ListenError, match=r"in use, by ESG itself, for 0\.0\.0\.0:0; only a restart"
    ):
        open_listeners([f"127.0.0.1:{port}"], 16, "--bind", kept=kept, at_start=False)


def test_the_scope_of_a_link_local_address_is_kept(listen, monkeypatch):
    scoped = ("::1", 0, 0, 1)
    found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", scoped)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    bound = []

    class Noted(socket.socket):
        def bind(self, name):
            bound.append(name)
            super().bind(name)

    monkeypatch.setattr(socket, "socket", Noted)
    listen("[fe80::1%lo]:0")
    assert bound == [scoped, scoped]


# -- sockets that are handed over ------------------------------------------------------


@pytest.fixture
def web():
    """A socket as a service manager hands it over, its address and its descriptor."""
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    return f"127.0.0.1:{port}", Handed(sock.detach(), "web")


@pytest.mark.parametrize(
    "binds", [("fd://N", "fd://web"), ("fd://N", "fd://N"), ("fd://web", "AT"), ("AT", "AT")]
)
def test_a_socket_that_two_binds_name_is_listened_on_once(web, binds):
    where, item = web
    binds = [bind.replace("AT", where).replace("N", str(item.fd)) for bind in binds]
    (listener,) = open_listeners(binds, 16, "--bind", handed=[item])
    assert listener.fileno() == item.fd
    listener.close()


def test_a_udp_socket_of_the_same_address_is_not_taken(web):
    where, item = web
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", int(where.rpartition(":")[2])))
    with udp:
        (listener,) = open_listeners(
            [where], 16, "--bind", handed=[Handed(udp.fileno(), "quic"), item]
        )
    assert listener.fileno() == item.fd
    listener.close()


def test_a_handed_over_socket_that_holds_an_address_is_named(web):
    where, item = web
    port = where.rpartition(":")[2]
    said = rf"in use, by the socket web, which was handed over; bind fd://{item.fd} to use it"
    with pytest.raises(ListenError, match=said):
        open_listeners([f"0.0.0.0:{port}"], 16, "--bind", handed=[item])
    os.close(item.fd)
