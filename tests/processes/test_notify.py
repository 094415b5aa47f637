"""The messages that a service manager gets, and when: the test plays the manager."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.app import application
from tests.support.descriptors import open_files, wait_for_open_files
from tests.support.load import Load
from tests.support.manager import Manager
from tests.support.runner import Esg, answer, session
from tests.support.waiting import all_along, eventually

from .test_sockets import activated, high, listening

Start = Callable[..., Esg]

SLOW_START = application(at_startup="await asyncio.sleep(0.3 * esg.current_worker().number)")

ENVIRONMENT = """
import json, os

async def app(scope, receive, send):
    assert scope["type"] == "http"
    said = json.dumps(dict(os.environ)).encode()
    headers = [(b"content-length", b"%d" % len(said))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})
"""


@pytest.fixture
def manager() -> Iterator[Manager]:
    folder = Path(f"/tmp/esg-manager-{os.getpid()}")
    folder.mkdir()
    manager = Manager(folder)
    try:
        yield manager
    finally:
        manager.close()
        (folder / "notify").unlink()
        folder.rmdir()


def test_ready_is_sent_when_every_worker_serves(start: Start, manager: Manager) -> None:
    esg = start("--workers", "3", source=SLOW_START, extra=manager.environment, wait=False)
    manager.wait_for("READY")
    assert len(esg.notes("startup")) == 3
    assert esg.whoami()["generation"] == 1  # a request succeeds at this very moment
    assert manager.states() == ["READY"]
    assert manager.said("STATUS")[-1] == "gen 1: 3 of 3 workers ready"
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0
    assert manager.states() == ["READY", "STOPPING"]


def test_a_failed_startup_never_sends_ready(start: Start, manager: Manager) -> None:
    esg = start(source="import no_such_module", extra=manager.environment, wait=False)
    esg.claim("can't boot")
    esg.exit_code = 4
    assert esg.wait() == 4
    assert manager.states() == ["STOPPING"]


def test_a_reload_is_reported_with_its_time(start: Start, manager: Manager) -> None:
    esg = start("--workers", "2", extra=manager.environment)
    files = open_files(esg.arbiter)
    begin = time.monotonic_ns() // 1000
    esg.reload()
    manager.wait_for("READY", count=2)
    message = manager.wait_for("RELOADING")
    assert begin <= int(message["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert manager.states() == ["READY", "RELOADING", "READY"]
    esg.wait_for_workers(2)
    wait_for_open_files(esg.arbiter, files)


def test_a_refused_reload_is_reported_as_ended(start: Start, manager: Manager) -> None:
    esg = start("-c", "esg.toml", files={"esg.toml": ""}, extra=manager.environment)
    esg.claim("reload refused")
    esg.write("wrokers = 2", "esg.toml")
    esg.signal(signal.SIGHUP)
    manager.wait_for("READY", count=2)
    assert manager.states() == ["READY", "RELOADING", "READY"]
    assert manager.said("STATUS")[-1] == (
        "gen 1: 1 of 1 workers ready; last reload refused: esg.toml: unknown key 'wrokers'; "
        "did you mean workers?"
    )


def test_a_failed_reload_is_reported_as_ended(start: Start, manager: Manager) -> None:
    esg = start(extra=manager.environment)
    esg.claim("can't boot", "reload failed")
    esg.write("import no_such_module")
    esg.signal(signal.SIGHUP)
    manager.wait_for("READY", count=2)
    assert "; last reload failed: a worker could not boot" in manager.said("STATUS")[-1]


def test_workers_do_not_inherit_the_managers_variables(start: Start, manager: Manager) -> None:
    extra = manager.environment | {"WATCHDOG_USEC": "60000000", "FDSTORE": "4"}
    with listening() as a, high(a) as c:
        extra |= {"LISTEN_PIDFDID": "7", "WATCHDOG_PID": "1"}
        esg = start(source=ENVIRONMENT, listen=(), extra=extra, **activated("web", c))
        esg._port = a.getsockname()[1]
        connection = esg.begin("/")
        seen = json.loads(connection.getresponse().read())
        connection.close()
    ours = ("NOTIFY_", "WATCHDOG_", "LISTEN_", "FDSTORE")
    assert not [name for name in seen if name.startswith(ours)]


def test_a_status_that_is_not_utf8_is_escaped(start: Start, manager: Manager) -> None:
    name = os.fsdecode(b"\xff.toml")
    esg = start("-c", name, listen=(), files={name: "port = 0"}, extra=manager.environment)
    esg.claim("reload refused")
    esg.write("wrokers = 0", name)
    esg.signal(signal.SIGHUP)
    manager.wait_for("READY", count=2)
    assert "last reload refused: \\udcff.toml: unknown key 'wrokers'" in manager.said("STATUS")[-1]
    esg.write("port = 0", name)
    esg.reload()


def test_the_watchdog_is_answered_while_the_arbiter_lives(start: Start, manager: Manager) -> None:
    esg = start(extra=manager.environment | {"WATCHDOG_USEC": "400000"})
    manager.wait_for("WATCHDOG", count=5)
    os.kill(esg.pid, signal.SIGSTOP)
    eventually(lambda: esg.arbiter.status() == "stopped", "it is stopped")
    count = len(manager.said("WATCHDOG"))
    all_along(0.6, lambda: len(manager.said("WATCHDOG")) == count, "nobody answers for it")
    os.kill(esg.pid, signal.SIGCONT)
    manager.wait_for("WATCHDOG", count=count + 3)


def test_a_watchdog_for_another_process_is_ignored(start: Start, manager: Manager) -> None:
    extra = {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    esg = start(extra=manager.environment | extra)
    esg.reload()
    manager.wait_for("READY", count=2)
    assert manager.said("WATCHDOG") == []


def test_listeners_survive_a_crash_of_the_arbiter(start: Start, manager: Manager) -> None:
    """No client is refused: the store keeps the sockets until the next arbiter has them."""
    esg = start("--workers", "2", extra=manager.environment)
    esg.claim("the arbiter is gone")
    esg.exit_code = -signal.SIGKILL
    port = esg.port
    assert [name.rsplit("/", 2)[0] for name in manager.said("FDNAME")] == ["esg/127.0.0.1_0"]
    with Load(port, fresh=2, keep_alive=2) as load:
        esg.process.kill()
        esg.process.wait()
        names, fds = zip(*((n, fd) for n, fds in manager.store.items() for fd in fds), strict=True)
        socks = [socket.socket(fileno=os.dup(fd)) for fd in fds]
        again = start(
            "--workers", "2", extra=manager.environment, **activated(":".join(names), *socks)
        )
        for sock in socks:
            sock.close()
        assert again.port == port
        load.wait_until_answered("fresh", 20)
    assert manager.said("FDSTORE") == ["1"]
    again.signal(signal.SIGTERM)
    assert again.wait() == 0
    assert manager.said("FDSTOREREMOVE") == ["1"]
    assert manager.store == {}


@pytest.mark.parametrize("store", [None, "1"])
def test_queued_connections_are_answered_after_a_crash_without_a_store(
    start: Start, manager: Manager, store: str | None
) -> None:
    """There may be no store, or the store may be emptied because the unit isn't started again."""
    manager.stores = False
    extra = manager.environment | ({} if store is None else {"FDSTORE": store})
    esg = start(extra=extra)
    esg.claim("the arbiter is gone")
    esg.exit_code = -signal.SIGKILL
    blocked = esg.in_flight("/block/1")
    queued = [esg.begin("/whoami") for _ in range(5)]
    assert len(manager.said("FDSTORE")) == 1
    esg.process.kill()
    esg.process.wait()
    pid = answer(blocked)["pid"]
    assert [answer(connection)["pid"] for connection in queued] == [pid] * 5
    for connection in (blocked, *queued):
        connection.close()
    eventually(lambda: session(esg.process.pid) == [], "the worker ends")


def test_a_stored_socket_without_a_bind_is_removed(start: Start, manager: Manager) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        start(extra=manager.environment, **activated("esg/10.0.0.1_80/ab/1", sock))
    removed = [m["FDNAME"] for m in manager.messages if "FDSTOREREMOVE" in m]
    assert removed[0] == "esg/10.0.0.1_80/ab/1"


def test_sockets_of_a_unit_lose_nothing_in_a_restart_under_load(
    start: Start, manager: Manager
) -> None:
    """As with a socket unit, the manager keeps the socket, and starts ESG again when it ends."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(2048)
        port = sock.getsockname()[1]
        options = activated("web", sock)
        esg = start("--workers", "2", listen=(), extra=manager.environment, **options)
        with Load(port, fresh=4, keep_alive=2, slow=1) as load:
            for _ in range(2):
                esg.signal(signal.SIGTERM)
                assert esg.wait() == 0
                esg = start("--workers", "2", listen=(), extra=manager.environment, **options)
                load.wait_until_answered("fresh", 20)
                assert esg.zombies() == []
    assert "FDSTORE" not in {name for message in manager.messages for name in message}
