"""Messages to the service manager, and sockets that it hands over."""

from __future__ import annotations

import os
import socket

import pytest

from esg.errors import ListenError
from esg.supervisor.systemd import EXTEND_EVERY, Notifier, handed_over, messages


@pytest.fixture
def manager(tmp_path):
    """The service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"/tmp/esg-notify-{os.getpid()}")
        try:
            yield Manager(sock)
        finally:
            os.unlink(sock.getsockname())


class Manager:
    def __init__(self, sock):
        self._sock = sock
        self.address = sock.getsockname()
        sock.setblocking(False)

    def messages(self):
        found = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, 4096, 4)
            except BlockingIOError:
                return found
            for fd in fds:
                os.close(fd)
            found.append((data.decode().split("\n"), len(fds)))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("starting", []),
        ("serving", ["READY=1"]),
        ("reloading", ["RELOADING=1", "MONOTONIC_USEC=5"]),
        ("stopping", ["STOPPING=1"]),
    ],
)
def test_each_state_has_its_messages(state, said):
    assert messages(state, 5) == said


def test_a_state_is_announced_once_with_its_status(manager):
    notifier = Notifier(manager.address)
    notifier.tell("serving", "all is well")
    notifier.tell("serving", "all is\nbetter")
    assert manager.messages() == [
        (["READY=1", "STATUS=all is well"], 0),
        (["STATUS=all is better"], 0),
    ]


def test_reloading_is_sent_with_the_time_and_again_if_another_reload_begins(manager):
    notifier = Notifier(manager.address)
    notifier.tell("reloading", "")
    notifier.tell("reloading", "", again=True)
    (first, _), (second, _) = manager.messages()
    assert first[0] == second[0] == "RELOADING=1"
    assert int(second[1].removeprefix("MONOTONIC_USEC=")) >= int(
        first[1].removeprefix("MONOTONIC_USEC=")
    )


def test_a_status_cannot_invalidate_its_message(manager):
    notifier = Notifier(manager.address)
    notifier.tell("serving", "last reload refused: \udcff\0\nREADY=0 \x1b[1m \u20ac")
    assert manager.messages() == [
        (["READY=1", "STATUS=last reload refused: \\udcff\\x00 READY=0 \\x1b[1m \u20ac"], 0)
    ]


def test_a_long_status_is_cut(manager):
    notifier = Notifier(manager.address)
    notifier.tell("reloading", "gen 1: " + "\u20ac\0" * 5000)
    (((reloading, _, status), _),) = manager.messages()
    assert reloading == "RELOADING=1"
    assert status.startswith("STATUS=gen 1: \u20ac\\x00")
    assert 900 < len(status.encode()) <= 1007


def test_abstract_addresses_begin_with_an_at_sign():
    name = f"esg-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        assert Notifier("@" + name).send("READY=1")
        assert sock.recv(100) == b"READY=1"


def test_an_address_of_another_kind_is_a_problem():
    notifier = Notifier("vsock:2:1234")
    assert "NOTIFY_SOCKET=vsock:2:1234" in notifier.problem
    assert not notifier.send("READY=1")


def test_without_a_service_manager_nothing_is_sent():
    assert not Notifier("/nowhere/at/all").send("READY=1")
    assert not Notifier().send("READY=1")
    assert Notifier().next_deadline() is None


def test_the_watchdog_is_answered_at_half_its_interval(manager):
    notifier = Notifier(manager.address, 10.0)
    notifier.tell("serving", "")
    manager.messages()
    for now in (100.0, 101.0, 104.9):
        notifier.turn(now)
        assert notifier.next_deadline() == 105.0
    notifier.turn(105.0)
    assert manager.messages() == [(["WATCHDOG=1"], 0)] * 2


def test_the_time_for_a_startup_is_extended_again_and_again(manager):
    notifier = Notifier(manager.address)
    notifier.tell("starting", "")
    manager.messages()
    notifier.turn(100.0)
    assert notifier.next_deadline() == 100.0 + EXTEND_EVERY
    notifier.turn(100.0 + EXTEND_EVERY)
    assert [lines for lines, _ in manager.messages()] == [["EXTEND_TIMEOUT_USEC=15000000"]] * 2
    notifier.tell("serving", "")
    notifier.turn(200.0)
    assert notifier.next_deadline() is None


def test_messages_to_a_busy_manager_are_sent_later(manager):
    notifier = Notifier(manager.address)
    while notifier.send("STATUS=many"):
        pass
    notifier.tell("serving", "at last")
    assert notifier.next_deadline() is not None
    notifier.turn(100.0)
    manager.messages()
    notifier.turn(100.0)
    assert manager.messages() == []
    notifier.turn(notifier.next_deadline())
    assert manager.messages() == [(["STATUS=many"], 0), (["READY=1", "STATUS=at last"], 0)]
    assert notifier.next_deadline() is None


def test_descriptors_go_with_a_message(manager):
    with socket.socket() as sock:
        assert Notifier(manager.address).send("FDSTORE=1", "FDNAME=a", fds=[sock.fileno()])
    assert manager.messages() == [(["FDSTORE=1", "FDNAME=a"], 1)]


@pytest.mark.parametrize(
    ("pid", "interval"), [({}, 10.0), ({"WATCHDOG_PID": "7"}, 10.0), ({"WATCHDOG_PID": "8"}, None)]
)
def test_the_variables_are_removed_from_the_environment(manager, pid, interval):
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "20000000", "A": "b"} | pid
    notifier = Notifier.from_environment(environ, 7)
    assert environ == {"A": "b"}
    notifier.tell("serving", "")
    notifier.turn(50.0)
    assert notifier.next_deadline() == (None if interval is None else 50.0 + interval)


def test_without_listen_fds_nothing_is_handed_over():
    assert handed_over({"LISTEN_PID": "7"}, 7, needed=True) == ([], "")


def test_sockets_meant_for_another_process_are_not_taken():
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": "8", "LISTEN_FDNAMES": "a"}
    found, warning = handed_over(dict(environ), 7, needed=False)
    assert found == []
    assert warning == (
        "LISTEN_FDS=1 is meant for process 8 (LISTEN_PID), not for this one, 7: ignored"
    )
    with pytest.raises(ListenError, match="start esg with exec"):
        handed_over(environ, 7, needed=True)
    assert environ == {}


def test_listen_fds_with_a_closed_descriptor_is_refused():
    environ = {"LISTEN_FDS": "2000000", "LISTEN_PID": "7"}
    with pytest.raises(ListenError, match=r"LISTEN_FDS=2000000, but descriptor \d+ isn't open"):
        handed_over(environ, 7, needed=False)


@pytest.mark.parametrize("text", ["many", "\N{SUPERSCRIPT TWO}", "9" * 5000, "-1", "1 "])
def test_an_invalid_number_of_sockets_is_ignored_with_a_warning(text):
    environ = {"LISTEN_FDS": text, "LISTEN_PID": "7"}
    found, warning = handed_over(environ, 7, needed=True)
    assert found == []
    assert warning == f"LISTEN_FDS={text[:18]} is not a number: ignored"


@pytest.mark.parametrize("text", ["\N{SUPERSCRIPT TWO}", "9" * 5000, "-1", "1s"])
def test_an_invalid_interval_of_a_watchdog_is_ignored(manager, text):
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": text}
    notifier = Notifier.from_environment(environ, 7)
    notifier.tell("serving", "")
    assert notifier.next_deadline() is None


@pytest.mark.parametrize(
    ("given", "capacity"), [({"FDSTORE": "16"}, 16), ({}, None), ({"FDSTORE": "many"}, None)]
)
def test_the_capacity_of_the_store_is_read(given, capacity):
    """systemd.exec(5), $FDSTORE: since version 254, and only if the unit may store descriptors."""
    environ = {"NOTIFY_SOCKET": "/run/systemd/notify", **given}
    assert Notifier.from_environment(environ, 7).capacity == capacity
    assert environ == {}


def test_the_variables_of_sockets_are_removed_from_the_environment():
    environ = {"LISTEN_PIDFDID": "8", "LISTEN_FDNAMES": "a", "FDSTORE": "4", "A": "b"}
    assert handed_over(environ, 7, needed=True) == ([], "")
    assert environ == {"A": "b"}
