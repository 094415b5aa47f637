"""One listener: its address, how it refuses connections, what breaks it and repairs it."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from esg.errors import ListenError
from esg.net.listeners import Listener
from esg.net.streamsocket import SO_ATTACH_FILTER
from esg.net.unixsocket import Access
from tests.support.front import free_port


def test_a_listener_accepts_connections(listen):
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


def test_a_listener_has_a_url(listen):
    (v4,) = listen("127.0.0.1:0")
    (v6,) = listen("[::1]:0")
    assert v4.url() == f"http://127.0.0.1:{v4.sock.getsockname()[1]}"
    assert v4.url("https") == f"https://127.0.0.1:{v4.sock.getsockname()[1]}"
    assert v6.url() == f"http://[::1]:{v6.sock.getsockname()[1]}"


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


class Denying(socket.socket):
    """A socket in a sandbox that denies filters."""

    error = errno.EPERM

    def setsockopt(self, level, option, value):
        if option == SO_ATTACH_FILTER:
            raise OSError(self.error, "denied")
        super().setsockopt(level, option, value)


@pytest.mark.parametrize("error", ["EPERM", "ENOPROTOOPT", "ENOSYS", "EACCES", "EINVAL", "ENOMEM"])
def test_a_listener_works_without_filters_if_they_are_denied(listen, error):
    (opened,) = listen("127.0.0.1:0")
    with Denying(fileno=opened.sock.detach()) as sock:
        sock.error = getattr(errno, error)
        listener = Listener(sock)
        assert listener.refuse_new()
        with socket.create_connection(listener.name):
            listener.sock.accept()[0].close()


# -- what another process that has the socket may do to it ------------------------------------


SO_LOCK_FILTER = 44


def break_by_shutdown(sock):
    sock.shutdown(socket.SHUT_RDWR)


def break_by_filter(sock):
    listener = Listener(sock)
    assert listener.refuse_new()


def break_by_locked_filter(sock):
    break_by_filter(sock)
    sock.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)


def break_by_waiting(sock):
    os.set_blocking(sock.fileno(), True)


def broken(listener, how):
    """Let another process that has the socket break it."""
    other = listener.sock.dup()
    how(other)
    return other


def accepts(listener):
    family = listener.sock.family
    with socket.socket(family) as client:
        client.settimeout(5)
        client.connect(listener.sock.getsockname())
        connection, _ = listener.sock.accept()
        connection.close()
    return True


@pytest.mark.parametrize("chosen", ["by the kernel", "by the operator"])
@pytest.mark.parametrize("how", [break_by_shutdown, break_by_filter, break_by_waiting])
def test_a_broken_tcp_listener_is_repaired(listen, how, chosen):
    port = 0 if chosen == "by the kernel" else free_port()
    (listener,) = listen(f"127.0.0.1:{port}")
    name = listener.sock.getsockname()
    assert listener.fault == ""
    with broken(listener, how) as other:
        assert listener.fault
        assert listener.repair(10)
        assert listener.sock.getsockname() == name
        assert accepts(listener)
        assert not os.get_blocking(other.fileno())


def test_a_unix_socket_that_was_shut_is_replaced_by_another_one(listen, tmp_path):
    path = str(tmp_path / "socket")
    (listener,) = listen(f"unix:{path}")
    with broken(listener, break_by_shutdown):
        assert "shut it down" in listener.fault
        assert not listener.repair(10)
        listener.reopen(Access(0o600), 10)
        assert listener.fault == ""
        assert accepts(listener)
        assert listener.file.is_there


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "[::1]:0"])
def test_a_tcp_listener_with_a_filter_that_is_locked_is_replaced_by_another_one(listen, bind):
    (listener,) = listen(bind)
    name = listener.sock.getsockname()
    with broken(listener, break_by_locked_filter):
        assert "filter" in listener.fault
        assert not listener.repair(10)
        listener.reopen(Access(), 10)
        assert listener.fault == ""
        assert listener.sock.getsockname() == name
        assert accepts(listener)


def test_a_socket_that_another_program_opened_is_not_opened_again(listen):
    (listener,) = listen("127.0.0.1:0")
    listener.borrowed = 3
    refused = pytest.raises(ListenError, match="only the program that handed the socket over")
    with broken(listener, break_by_locked_filter), refused:
        listener.reopen(Access(), 10)
    listener.borrowed = None


def test_a_filter_that_came_with_a_socket_is_no_fault():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setblocking(False)
        break_by_filter(sock)
        assert Listener(sock).fault == ""


def test_a_healthy_unix_socket_has_no_fault(listen, tmp_path):
    (listener,) = listen(f"unix:{tmp_path}/socket")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/socket")
        assert listener.fault == ""
