"""The sockets that a generation listens on, and when sockets that it doesn't need are closed."""

from __future__ import annotations

import dataclasses
import errno
import gc
import os
import socket
from collections.abc import Sequence
from typing import Any

import pytest

from esg.errors import ListenError
from esg.mailbox import NewListener
from esg.net.binds import Address, UnixAddress
from esg.net.listeners import Handed
from esg.settings.build import Raw, build
from esg.supervisor import fdstore
from esg.supervisor.sockets import Sockets


class Notes:
    """Replaces the notifier: notes the messages."""

    def __init__(self):
        self.said = []
        self.capacity = None

    def send(self, *lines, fds=()):
        self.said.append(" ".join(lines))
        return True

    def names(self, what):
        """The names that came with FDSTORE or FDSTOREREMOVE."""
        return [said.partition("FDNAME=")[2] for said in self.said if said.startswith(f"{what}=")]


@dataclasses.dataclass
class Worker:
    """Replaces a handle."""

    listeners: Sequence[Any]
    accepts: bool = True
    reaped: bool = False
    generation: int = 1
    number: int = 7
    pid: int = 4711
    mail: list[Any] = dataclasses.field(default_factory=list)

    def post(self, message):
        self.mail.append(message)


@pytest.fixture
def notifier():
    return Notes()


@pytest.fixture
def log():
    return []


@pytest.fixture
def workers():
    """Handles of workers, for a test to fill."""
    return []


@pytest.fixture
def sockets(notifier, log, workers):
    gc.collect()  # otherwise sockets that earlier tests left may be closed during this test
    before = os.listdir("/proc/self/fd")
    sockets = Sockets(notifier, log.append, lambda: workers)
    yield sockets
    sockets.close()
    assert os.listdir("/proc/self/fd") == before


def config(*binds, **values):
    raw = {name: Raw(value, f"--{name}") for name, value in values.items()}
    if binds:
        raw["bind"] = Raw(list(binds), "--bind")
    return build({"app": Raw("example:app", "APP")} | raw)


def handed(name, *, sock=None):
    """A descriptor without a socket object, as the service manager passes it."""
    sock = sock or socket.create_server(("127.0.0.1", 0))
    return Handed(sock.detach(), name)


def port_of(listener):
    return listener.sock.getsockname()[1]


def test_the_listeners_of_a_generation_are_known_by_its_number(sockets):
    listeners = sockets.open(1, config("127.0.0.1:0"))
    assert sockets.of(1) is listeners


def test_the_next_generation_keeps_the_sockets_of_shared_binds(sockets, log):
    first = sockets.open(1, config("127.0.0.1:0", "127.0.0.2:0"))
    wanted = config("127.0.0.2:0", "127.0.0.3:0")
    second = sockets.open(2, wanted)
    assert second[0] is first[1]
    port = port_of(first[0])
    sockets.retire(1)
    assert first[0].fileno() == -1
    assert second[0].fileno() > 0
    assert sockets.given_up(first) == [f"http://127.0.0.1:{port}"]
    assert log[-1] == f"no longer listening on http://127.0.0.1:{port}"


def test_a_listener_that_is_given_up_is_named_with_its_old_scheme(sockets, log):
    sockets.open(1, config("127.0.0.1:0"))
    tls = dataclasses.replace(config("127.0.0.2:0"), ssl_certfile="cert.pem")
    sockets.open(2, tls)
    sockets.retire(1)
    assert log[-1].startswith("no longer listening on http://")


def test_a_listener_stays_open_until_its_last_worker_drains(sockets, workers):
    sockets.open(1, config("127.0.0.1:0"))
    failed = sockets.open(2, config("127.0.0.1:0", "127.0.0.2:0"))
    workers.append(Worker(failed, generation=2))
    sockets.retire(2)
    assert sockets.given_up(failed) == []
    # A later generation with the same bind gets the same socket, which outlives that worker.
    assert sockets.open(3, config("127.0.0.1:0", "127.0.0.2:0")) == failed
    workers[0].accepts = False
    sockets.release()
    assert sockets.given_up(failed) == []
    sockets.retire(3)
    assert sockets.given_up(failed) == [failed[1].url()]


def test_a_worker_of_another_generation_only_keeps_its_own_listeners_open(sockets, workers):
    first = sockets.open(1, config("127.0.0.1:0", "127.0.0.2:0"))
    second = sockets.open(2, config("127.0.0.1:0"))
    workers += [Worker(first, generation=1), Worker(second, generation=2)]
    sockets.retire(1)
    assert sockets.given_up(first) == []
    workers[0].accepts = False
    sockets.release()
    assert sockets.given_up(first) == [first[1].url()]


def test_a_generation_that_has_nothing_open_can_be_retired(sockets):
    (listener,) = sockets.open(1, config("127.0.0.1:0"))
    sockets.retire(2)
    assert sockets.given_up([listener]) == []


def test_a_generation_that_cannot_be_opened_changes_nothing(sockets):
    first = sockets.open(1, config("127.0.0.1:0"))
    count = len(os.listdir("/proc/self/fd"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(ListenError, match="in use; stop the program"):
            sockets.open(2, config("127.0.0.1:0", "127.0.0.2:0", f"127.0.0.1:{taken}"))
    assert len(os.listdir("/proc/self/fd")) == count
    assert first[0].fileno() > 0


def test_a_worker_that_drains_is_named_if_it_has_the_address(sockets, workers):
    first = config("127.0.0.1:0", "127.0.0.2:0")
    listeners = sockets.open(1, first)
    address = f"127.0.0.2:{port_of(listeners[1])}"
    copy = listeners[1].sock.dup()  # like a worker's copy
    workers.append(Worker(listeners, accepts=False))
    less = config("127.0.0.1:0")
    sockets.open(2, less)
    sockets.retire(1)
    said = r"in use, perhaps by worker 7 \(pid 4711\), which is stopping; try again"
    with copy, pytest.raises(ListenError, match=said):
        sockets.open(3, config("127.0.0.1:0", address))
    sockets.open(3, config("127.0.0.1:0", address))


def test_an_opened_listener_is_stored_and_removed_when_it_is_closed(sockets, notifier):
    wanted = config("127.0.0.1:0", "127.0.0.2:0")
    sockets.open(1, wanted)
    less = config("127.0.0.1:0")
    sockets.open(2, less)
    one, two = notifier.names("FDSTORE")
    assert one.startswith("esg/127.0.0.1_0/")
    assert two.startswith("esg/127.0.0.2_0/")
    sockets.retire(1)
    assert notifier.names("FDSTOREREMOVE") == [two]
    sockets.close()
    assert notifier.names("FDSTOREREMOVE") == [two, one]


@pytest.mark.parametrize(
    ("capacity", "stored"),
    [(None, [None] * 3), (0, [False] * 3), (2, [True, True, False]), (5, [True] * 3)],
)
def test_only_descriptors_within_the_stores_capacity_count_as_stored(
    sockets, notifier, capacity, stored
):
    notifier.capacity = capacity
    found = sockets.open(1, config("127.0.0.1:0", "127.0.0.2:0", "127.0.0.3:0"))
    assert [listener.stored for listener in found] == stored
    assert len(notifier.names("FDSTORE")) == 3 - stored.count(False)
    sockets.close()
    assert notifier.names("FDSTOREREMOVE") == notifier.names("FDSTORE")


def test_a_removed_descriptor_makes_room_in_the_store(sockets, notifier):
    notifier.capacity = 1
    (old,) = sockets.open(1, config("127.0.0.1:0"))
    wanted = config("127.0.0.2:0")
    (waiting,) = sockets.open(2, wanted)
    assert (old.stored, waiting.stored) == (True, False)
    sockets.retire(1)
    (new,) = sockets.open(3, config("127.0.0.3:0"))
    assert (old.stored, new.stored) == (False, True)


def test_without_a_manager_nothing_is_stored(sockets, notifier, monkeypatch):
    monkeypatch.setattr(notifier, "send", lambda *lines, fds=(): False)
    (listener,) = sockets.open(1, config("127.0.0.1:0"))
    assert listener.stored is False


# -- handed over -----------------------------------------------------------------------


def test_without_a_setting_every_handed_over_socket_is_listened_on(sockets, notifier):
    items = [handed("web"), handed("web"), handed("esg-admin.socket")]
    wanted = config()
    assert sockets.begin(1, wanted, items) == []
    found = sockets.of(1)
    assert [listener.fileno() for listener in found] == [item.fd for item in items]
    assert sockets.open(2, config()) == found
    assert sockets.open(3, config(port="0", host="127.0.0.4")) != found
    assert len(notifier.names("FDSTORE")) == 1


def test_a_socket_that_no_bind_claims_is_closed_and_named(sockets):
    item = handed("web")
    assert sockets.begin(1, config("127.0.0.1:0"), [item]) == [f"web (fd://{item.fd})"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(item.fd)


def test_a_closed_socket_cannot_be_used_again(sockets):
    """Its number belongs to another file by now."""
    item = handed("web")
    sockets.begin(1, config("127.0.0.1:0"), [item])
    for bind in (f"fd://{item.fd}", "fd://web"):
        with pytest.raises(
            ListenError, match=r"handed over only at startup.*; restart ESG to use it"
        ):
            sockets.open(2, config(bind))
    with pytest.raises(ListenError, match=r"handed over only at startup.*; restart ESG to use it"):
        sockets.open(2, config())


def test_a_reload_does_not_take_descriptors_of_our_own(sockets):
    wanted = config("127.0.0.1:0")
    (listener,) = sockets.open(1, wanted)
    with pytest.raises(ListenError, match="handed over only at startup"):
        sockets.open(2, config(f"fd://{listener.fileno()}"))
    assert sockets.of(1)[0].fileno() > 0


def test_a_later_bind_may_name_a_handed_over_socket_in_another_way(sockets):
    item = handed("web")
    first = config()
    sockets.begin(1, first, [item])
    for bind in ("fd://web", f"fd://{item.fd}", f"127.0.0.1:{port_of(sockets.of(1)[0])}"):
        assert sockets.open(2, config(bind)) == sockets.of(1)


# -- the service manager's store -------------------------------------------------------


def stored(sock, bind, identity="1"):
    return handed(f"{fdstore.name_of(bind)}/{identity}", sock=sock)


def identity_of(path):
    status = os.lstat(path)
    return f"{status.st_dev:x}-{status.st_ino:x}"


def unix_socket(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    return sock


def test_names_in_the_store_tell_binds_apart():
    names = {fdstore.name_of(UnixAddress(path)) for path in ("/a/b", "/a_b", "/" + 100 * "\u00e9")}
    assert len(names) == 3
    for name in names:
        assert name.isascii()
        assert ":" not in name
        assert len(name) < 200


def test_a_stored_socket_is_taken_back_once(sockets, notifier):
    """Even though the store has it twice."""
    sock = socket.create_server(("127.0.0.1", 0))
    port, twin = sock.getsockname()[1], sock.dup()
    items = [stored(one, Address("127.0.0.1", 0)) for one in (sock, twin)]
    wanted = config("127.0.0.1:0")
    assert sockets.begin(1, wanted, items) == []
    (listener,) = sockets.of(1)
    assert (port_of(listener), listener.stored, listener.borrowed) == (port, True, None)
    assert notifier.said == []
    sockets.close()
    assert notifier.names("FDSTOREREMOVE") == [items[0].name]


def test_a_stored_unix_socket_belongs_to_esg_again(sockets, tmp_path):
    path = str(tmp_path / "web")
    item = stored(unix_socket(path), UnixAddress(path), identity_of(path))
    wanted = config(f"unix:{path}")
    sockets.begin(1, wanted, [item])
    (listener,) = sockets.of(1)
    assert listener.stored
    assert listener.fileno() == item.fd
    sockets.close()
    assert not os.path.lexists(path)


def test_a_stored_unix_socket_without_its_file_is_replaced(sockets, notifier, tmp_path):
    path = str(tmp_path / "web")
    item = stored(unix_socket(path), UnixAddress(path), identity_of(path))
    os.unlink(path)
    wanted = config(f"unix:{path}")
    sockets.begin(1, wanted, [item])
    assert notifier.names("FDSTOREREMOVE") == [item.name]
    assert notifier.names("FDSTORE") == [item.name.rpartition("/")[0] + "/" + identity_of(path)]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_another_file_at_the_path_of_a_stored_unix_socket_stays(sockets, tmp_path):
    path = str(tmp_path / "web")
    item = stored(unix_socket(path), UnixAddress(path), identity_of(path))
    os.unlink(path)
    with unix_socket(path), pytest.raises(ListenError, match="a program listens on it"):
        sockets.begin(1, config(f"unix:{path}"), [item])
    assert os.path.lexists(path)


def test_a_start_that_fails_leaves_the_store_and_its_files(notifier, tmp_path):
    path = str(tmp_path / "web")
    sock = unix_socket(path)
    item = stored(sock, UnixAddress(path), identity_of(path))
    again = Sockets(notifier, lambda line: None, lambda: ())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        binds = (f"unix:{path}", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ListenError, match="in use"):
            again.begin(1, config(*binds), [item])
    assert os.path.lexists(path)
    assert notifier.said == []


def test_unwanted_stored_sockets_are_closed_before_anything_is_opened(sockets, notifier, tmp_path):
    sock = socket.create_server(("0.0.0.0", 0))
    port, path = sock.getsockname()[1], str(tmp_path / "web")
    items = [
        stored(sock, Address("0.0.0.0", port)),
        stored(unix_socket(path), UnixAddress(path), identity_of(path)),
        Handed(os.open(os.devnull, os.O_RDONLY), "esg/this/is/no-socket"),
    ]
    assert sockets.begin(1, config(f"127.0.0.1:{port}"), items) == []
    assert notifier.names("FDSTOREREMOVE") == [item.name for item in items]
    assert not os.path.lexists(path)


def test_a_stored_socket_for_ipv6_alone_is_not_taken_for_all(sockets, notifier):
    before = config("[::]:0", "0.0.0.0:0")
    (six, _) = sockets.open(1, before)
    port = port_of(six)
    sock = six.sock.dup()
    sockets.close()
    item = stored(sock, Address("::", port))
    wanted = config(f"[::]:{port}")
    assert sockets.begin(1, wanted, [item]) == []
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
    assert item.name in notifier.names("FDSTOREREMOVE")


def test_the_filter_of_an_interrupted_stop_is_removed(sockets):
    (blocked,) = sockets.open(1, config("127.0.0.2:0"))
    assert blocked.refuse_new()
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.2", port_of(blocked)), timeout=0.2)
    again = Sockets(Notes(), lambda line: None, lambda: ())
    wanted = config("127.0.0.2:0")
    again.begin(1, wanted, [stored(blocked.sock.dup(), Address("127.0.0.2", 0))])
    (listener,) = again.of(1)
    socket.create_connection(("127.0.0.2", port_of(listener)), timeout=5).close()
    again.close()


# -- listeners that somebody broke ----------------------------------------------------------------


def test_a_socket_that_was_shut_down_listens_again(sockets, log, workers):
    (listener,) = sockets.open(1, config("127.0.0.1:0"))
    workers.append(Worker([listener]))
    listener.sock.shutdown(socket.SHUT_RD)
    sockets.look_after()
    assert listener.fault == ""
    assert log[-1].endswith("shut it down; listening again")
    assert workers[0].mail == []


def test_a_reload_does_not_keep_a_dead_socket(sockets):
    wanted = config("127.0.0.1:0")
    (listener,) = sockets.open(1, wanted)
    listener.sock.shutdown(socket.SHUT_RD)
    (kept,) = sockets.open(2, dataclasses.replace(wanted, workers=3))
    assert kept is listener
    assert kept.fault == ""


def test_workers_get_the_socket_that_replaces_one_beyond_repair(
    sockets, log, workers, notifier, tmp_path
):
    (listener,) = sockets.open(1, config(f"unix:{tmp_path}/socket"))
    other, gone = Worker([]), Worker([listener], reaped=True)
    workers += [Worker([listener]), other, gone]
    listener.sock.shutdown(socket.SHUT_RD)
    sockets.look_after()
    assert log[-1].endswith("listening again with a new socket")
    assert workers[0].mail == [NewListener(f"unix:{tmp_path}/socket")]
    assert workers[0].mail[0].fds == [listener.fileno()]
    assert other.mail == gone.mail == []
    stored, forgotten = notifier.names("FDSTORE"), notifier.names("FDSTOREREMOVE")
    assert len(stored) == 2
    assert forgotten == stored[:1]


def test_a_fault_that_comes_back_is_logged_once_a_minute(sockets, log):
    (listener,) = sockets.open(1, config("127.0.0.1:0"))
    before = len(log)
    for _ in range(5):
        listener.sock.shutdown(socket.SHUT_RD)
        sockets.look_after()
        assert listener.fault == ""
    assert len(log) == before + 1


def test_a_listener_that_cannot_be_repaired_is_logged(sockets, log):
    name = f"@esg-test-{os.getpid()}"
    (listener,) = sockets.open(1, config(f"unix:{name}"))
    with listener.sock.dup():
        listener.sock.shutdown(socket.SHUT_RD)
        sockets.look_after()
    assert "can't listen again: an abstract name is in use" in log[-1]


def test_a_worker_that_cannot_be_sent_a_new_socket_keeps_no_other_from_getting_it(
    sockets, log, workers, tmp_path
):
    class Full(Worker):
        def post(self, message):
            raise OSError(errno.EMFILE, "Too many open files")

    (listener,) = sockets.open(1, config(f"unix:{tmp_path}/socket"))
    workers += [Full([listener], number=8), Worker([listener])]
    listener.sock.shutdown(socket.SHUT_RD)
    sockets.look_after()
    assert log[-1].endswith(
        "a new socket; worker=8 can't be sent it: [Errno 24] Too many open files"
    )
    assert [type(mail) for mail in workers[1].mail] == [NewListener]
