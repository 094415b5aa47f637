"""What a generation listens on, and what becomes of what it doesn't."""

from __future__ import annotations

import os
import socket

import pytest

from esg.config import Raw, build
from esg.errors import ListenError
from esg.listeners import Handed
from esg.supervisor.sockets import Sockets, only_in


class Notes:
    """In place of the notifier: notes what would be said."""

    def __init__(self):
        self.said = []

    def send(self, *lines, fds=()):
        self.said.append(" ".join(lines))
        return True


@pytest.fixture
def notifier():
    return Notes()


@pytest.fixture
def sockets(notifier):
    before = os.listdir("/proc/self/fd")
    sockets = Sockets(notifier, lambda line: None)
    yield sockets
    sockets.close()
    assert os.listdir("/proc/self/fd") == before


def config(*binds, **values):
    raw = {name: Raw(value, f"--{name}") for name, value in values.items()}
    if binds:
        raw["bind"] = Raw(list(binds), "--bind")
    return build({"app": Raw("example:app", "APP")} | raw)


def handed(name, *, sock=None):
    """As the service manager would give it: a descriptor that is nobody's object."""
    sock = sock or socket.create_server(("127.0.0.1", 0))
    return Handed(sock.detach(), name)


def port_of(listener):
    return listener.sock.getsockname()[1]


def test_a_configuration_is_listened_for_once(sockets):
    wanted = config("127.0.0.1:0")
    assert sockets.of(wanted) is sockets.of(wanted)


def test_the_next_one_keeps_what_it_has_too(sockets):
    first = sockets.of(config("127.0.0.1:0", "127.0.0.2:0"))
    wanted = config("127.0.0.2:0", "127.0.0.3:0")
    second = sockets.of(wanted)
    assert second[0] is first[1]
    assert only_in(first, [second]) == ["127.0.0.1:0"]
    sockets.keep_only(wanted)
    assert first[0].fileno() == -1
    assert second[0].fileno() > 0


def test_one_that_fails_leaves_the_rest(sockets):
    first = sockets.of(config("127.0.0.1:0"))
    count = len(os.listdir("/proc/self/fd"))
    taken = port_of(first[0])
    with pytest.raises(ListenError, match="in use"):
        sockets.of(config("127.0.0.1:0", "127.0.0.2:0", f"127.0.0.1:{taken}"))
    assert len(os.listdir("/proc/self/fd")) == count
    assert first[0].fileno() > 0


def test_what_is_opened_is_stored_and_removed_when_it_is_closed(sockets, notifier):
    wanted = config("127.0.0.1:0", "127.0.0.2:0")
    sockets.of(wanted)
    less = config("127.0.0.1:0")
    sockets.of(less)
    sockets.keep_only(less)
    sockets.close()
    assert notifier.said == [
        "FDSTORE=1 FDNAME=esg-127.0.0.1_0",
        "FDSTORE=1 FDNAME=esg-127.0.0.2_0",
        "FDSTOREREMOVE=1 FDNAME=esg-127.0.0.2_0",
        "FDSTOREREMOVE=1 FDNAME=esg-127.0.0.1_0",
    ]


def test_without_a_setting_all_that_is_handed_over_is_listened_on(sockets, notifier):
    items = [handed("web"), handed("web"), handed("admin")]
    sockets.take_over(items)
    found = sockets.of(config())
    assert [listener.fileno() for listener in found] == [item.fd for item in items]
    assert sockets.discard_unused() == []
    assert sockets.of(config(port="0", host="127.0.0.4")) != found
    assert [said for said in notifier.said if "esg-fd" in said] == []


def test_a_stored_socket_is_taken_back_once(sockets, notifier):
    """Though the store has it twice."""
    sock = socket.create_server(("127.0.0.1", 0))
    port, twin = sock.getsockname()[1], sock.dup()
    items = [handed("esg-127.0.0.1_0", sock=sock), handed("esg-127.0.0.1_0", sock=twin)]
    sockets.take_over(items)
    (listener,) = sockets.of(config("127.0.0.1:0"))
    assert (port_of(listener), listener.stored, listener.borrowed) == (port, True, None)
    assert sockets.discard_unused() == []
    assert notifier.said == []


def test_a_stored_socket_is_known_by_its_address_too(sockets, notifier):
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    sockets.take_over([handed(f"esg-localhost_{port}", sock=sock)])
    (listener,) = sockets.of(config(f"127.0.0.1:{port}"))
    assert listener.borrowed is None
    sockets.discard_unused()
    assert notifier.said == [
        f"FDSTOREREMOVE=1 FDNAME=esg-localhost_{port}",
        f"FDSTORE=1 FDNAME=esg-127.0.0.1_{port}",
    ]


def test_a_stored_unix_socket_is_ours_again(sockets):
    path = f"/tmp/esg-unit-{os.getpid()}"
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    name = "esg-unix__tmp_esg-unit-" + str(os.getpid())
    sockets.take_over([handed(name, sock=sock)])
    (listener,) = sockets.of(config(f"unix:{path}"))
    assert listener.stored
    sockets.close()
    assert not os.path.lexists(path)


def test_what_is_stored_and_not_wanted_is_closed(sockets, notifier):
    sockets.take_over([handed("esg-10.0.0.1_80")])
    sockets.of(config("127.0.0.1:0"))
    assert sockets.discard_unused() == []
    assert notifier.said[-1] == "FDSTOREREMOVE=1 FDNAME=esg-10.0.0.1_80"


def test_a_filter_of_a_stop_that_was_cut_short_is_taken_off(sockets):
    (blocked,) = sockets.of(config("127.0.0.2:0"))
    assert blocked.refuse_new()
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.2", port_of(blocked)), timeout=0.2)
    again = Sockets(Notes(), lambda line: None)
    again.take_over([handed("esg-127.0.0.2_0", sock=blocked.sock.dup())])
    (listener,) = again.of(config("127.0.0.2:0"))
    socket.create_connection(("127.0.0.2", port_of(listener)), timeout=5).close()
    again.close()
