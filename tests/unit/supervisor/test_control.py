"""The arbiter's end of the control socket, even if there is no descriptor for a client."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket

import pytest

from esg.commands import Answer, decode_answer
from esg.supervisor.control import Control


@pytest.fixture
def path():
    """A short path, because the path of a UNIX socket must be short."""
    path = f"/tmp/esg-control-{os.getpid()}"
    yield path
    assert not os.path.exists(path)


@pytest.fixture
def selector():
    with selectors.DefaultSelector() as selector:
        yield selector


@pytest.fixture
def commands():
    return []


@pytest.fixture
def control(path, selector, commands):
    control = Control(selector, lambda *values: commands.append(values))
    control.open(path, "--control-socket")
    yield control
    control.close()


@contextlib.contextmanager
def connected(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        yield sock


@contextlib.contextmanager
def no_descriptors():
    """Inside the block, no descriptor is available."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def turn(selector):
    """One turn of the loop; returns the number of events."""
    ready = selector.select(0)
    for key, _ in ready:
        key.data()
    return len(ready)


def test_without_descriptors_a_client_waits_and_the_loop_does_not_spin(
    control, selector, path, commands
):
    with connected(path) as client:
        with no_descriptors():
            assert turn(selector) == 1
            assert turn(selector) == 0
            begun = control.next_deadline()
            assert begun is not None
            control.turn(begun - 0.001)
            assert turn(selector) == 0
            control.turn(begun)
            assert turn(selector) == 1  # there is still no descriptor
            assert turn(selector) == 0
            assert control.next_deadline() >= begun
        client.sendall(b'{"command": "reload"}\n')
        control.turn(control.next_deadline())
        assert control.next_deadline() is None
        assert turn(selector) == 1
        assert turn(selector) == 1
    ((command, job, _),) = commands
    assert (command, job) == ("reload", 1)


def test_a_client_that_disconnects_makes_room_immediately(control, selector, path):
    with connected(path) as first:
        turn(selector)
        with connected(path), no_descriptors():
            turn(selector)
            assert control.next_deadline() is not None
            first.close()
            assert turn(selector) == 1  # it has gone
            assert control.next_deadline() is None
            assert turn(selector) == 1  # the other one is accepted in its place
            assert control.next_deadline() is None


def test_it_closes_while_it_waits_for_room(control, selector, path):
    with connected(path), no_descriptors():
        turn(selector)
        assert control.next_deadline() is not None
        control.close()
        assert control.next_deadline() is None
        assert len(selector.get_map()) == 0


@pytest.mark.parametrize("line", [b'{"command": "reload"}\n', b'{"command": "reload"}'])
def test_a_client_that_only_closes_its_sending_side_gets_the_answer(
    control, selector, path, commands, line
):
    with connected(path) as client:
        client.sendall(line)
        client.shutdown(socket.SHUT_WR)
        for _ in range(4):
            turn(selector)
        assert [command for command, _, _ in commands] == ["reload"]
        assert turn(selector) == 0  # its end of stream isn't read again and again
        control.answer(1, Answer(True, "reloaded"))
        assert decode_answer(client.recv(1000)) == Answer(True, "reloaded")
        assert client.recv(1000) == b""


def test_a_client_that_has_gone_is_forgotten(control, selector, path, commands):
    with connected(path) as client:
        client.sendall(b'{"command": "reload"}\n')
        turn(selector)
        turn(selector)
    turn(selector)
    assert len(commands) == 1
    assert len(selector.get_map()) == 1  # the listening socket
    control.answer(1, Answer(True, "nobody hears it"))


def test_a_client_that_sends_nothing_and_ends_is_forgotten(control, selector, path, commands):
    with connected(path) as client:
        turn(selector)
        client.shutdown(socket.SHUT_WR)
        turn(selector)
        assert client.recv(1000) == b""
    assert commands == []
