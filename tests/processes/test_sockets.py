"""Listening: several binds, UNIX sockets, sockets that were handed over, and reloads of these."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import signal
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.app import application
from tests.support.descriptors import open_files, wait_for_open_files
from tests.support.load import Load
from tests.support.runner import Esg, answer, run_to_its_end
from tests.support.unix import UnixConnection, ask
from tests.support.waiting import eventually

Start = Callable[..., Esg]

SCOPES = """
import json, os

async def app(scope, receive, send):
    if scope["type"] == "http":
        said = json.dumps({"client": scope["client"], "server": scope["server"]}).encode()
        headers = [(b"content-length", b"%d" % len(said))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": said})
    else:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, because the path of a UNIX socket must be short."""
    path = Path(f"/tmp/esg-test-{os.getpid()}")
    path.mkdir()
    try:
        yield path
    finally:
        for file in path.iterdir():
            file.rmdir() if file.is_dir() else file.unlink()
        path.rmdir()


@contextlib.contextmanager
def listening(family: int = socket.AF_INET, where: object = ("127.0.0.1", 0)) -> Iterator:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind(where)
        sock.listen(64)
        sock.set_inheritable(True)
        yield sock


# -- UNIX sockets ----------------------------------------------------------------------


def test_several_binds_are_served_at_once(start: Start, folder: Path) -> None:
    path, name = f"{folder}/web", f"@esg-test-{os.getpid()}"
    binds = ("--bind", "127.0.0.1:0", "--bind", f"unix:{path}", "--bind", f"unix:{name}")
    esg = start("--workers", "2", listen=binds)
    pids = {esg.whoami()["pid"], ask(path)["pid"], ask(name)["pid"]}
    assert pids <= set(esg.workers())
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0
    assert not os.path.lexists(path)
    with pytest.raises(ConnectionRefusedError):
        ask(name)


def test_a_unix_client_has_no_address_in_scope_and_access_log(start: Start, folder: Path) -> None:
    path, name = f"{folder}/web", f"@esg-test-{os.getpid()}"
    esg = start(listen=("--bind", f"unix:{path}", "--bind", f"unix:{name}"), source=SCOPES)
    assert ask(path) == {"client": None, "server": [path, None]}
    assert ask(name) == {"client": None, "server": [name, None]}
    lines = eventually(
        lambda: (lines := (esg.folder / "stdout").read_text().splitlines())[1:] and lines,
        "two lines in the access log",
    )
    assert set(lines) == {'INFO:      - "GET /whoami HTTP/1.1" 200 OK'}


def test_forwarded_fields_of_a_unix_proxy_count_if_it_is_trusted(
    start: Start, folder: Path
) -> None:
    path = f"{folder}/web"
    esg = start("--forwarded-allow-ips", "unix:", listen=("--uds", path), source=SCOPES)
    assert esg.logged(f"listening on unix:{re.escape(path)}$")
    connection = UnixConnection(path)
    connection.request("GET", "/", headers={"X-Forwarded-For": "203.0.113.9"})
    assert b'"client": ["203.0.113.9", 0]' in connection.getresponse().read()
    connection.close()


def test_an_untrusted_unix_proxy_causes_one_warning(start: Start, folder: Path) -> None:
    path = f"{folder}/web"
    esg = start("--workers", "2", listen=("--uds", path))
    seen = set()

    def ask_as_proxy() -> int:
        connection = UnixConnection(path)
        connection.request("GET", "/whoami", headers={"X-Forwarded-Proto": "https"})
        seen.add(json.loads(connection.getresponse().read())["worker"])
        connection.close()
        return len(seen)

    eventually(lambda: ask_as_proxy() == 2, "both workers have served")
    line = (
        "ignoring X-Forwarded-Proto from a UNIX socket, which isn't in --forwarded-allow-ips; "
        "if that is your proxy, set --forwarded-allow-ips 127.0.0.1,::1,unix:"
    )
    esg.wait_for_log(f"{line}$")
    esg.reload()
    ask_as_proxy()
    esg.stop()
    (record,) = esg.logged("--forwarded-allow-ips")
    assert (record.level, record.event) == ("WARNING", line)


@pytest.mark.parametrize(("mode", "bits"), [(None, 0o666), ("600", 0o600), ("0660", 0o660)])
def test_a_socket_has_the_mode_of_uds_mode(
    start: Start, folder: Path, mode: str | None, bits: int
) -> None:
    path = f"{folder}/web"
    arguments = () if mode is None else ("--uds-mode", mode)
    esg = start(*arguments, listen=("--uds", path), prefix=("sh", "-c", 'umask 077; "$@"', "-"))
    assert stat.S_IMODE(os.stat(path).st_mode) == bits
    esg.signal(signal.SIGTERM)
    assert esg.wait() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_socket_has_the_owner_of_uds_owner(start: Start, folder: Path) -> None:
    path = f"{folder}/web"
    start("--uds-owner", "nobody:daemon", "--uds-mode", "660", listen=("--uds", path))
    status = os.stat(path)
    assert (status.st_uid, status.st_gid) == (65534, 1)


def test_an_abandoned_socket_file_is_replaced(start: Start, folder: Path) -> None:
    path = f"{folder}/web"
    esg = start(listen=("--uds", path))
    esg.process.kill()
    esg.claim("the arbiter is gone")
    esg.exit_code = -signal.SIGKILL
    eventually(lambda: not served(path), "its workers are gone too")
    assert os.path.exists(path)
    start(listen=("--uds", path))
    assert ask(path)["generation"] == 1


def served(path: str) -> bool:
    try:
        UnixConnection(path).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_socket_file_of_another_program_is_not_removed_at_the_end(
    start: Start, folder: Path
) -> None:
    path = f"{folder}/web"
    esg = start(listen=("--uds", path))
    os.unlink(path)
    with listening(socket.AF_UNIX, path):
        esg.signal(signal.SIGTERM)
        assert esg.wait() == 0
        assert served(path)


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda path: path.write_text("precious"), "which isn't a socket"),
        (lambda path: path.mkdir(), "which is a folder"),
        (lambda path: path.symlink_to("/nowhere"), "which isn't a socket"),
    ],
)
def test_a_file_that_is_not_a_socket_is_not_replaced(
    folder: Path, tmp_path: Path, prepare: Callable[[Path], object], reason: str
) -> None:
    path = folder / "web"
    prepare(path)
    before = os.lstat(path)
    finished = run_to_its_end(tmp_path, "example:app", "--uds", str(path))
    assert finished.code == 1
    assert finished.log.startswith(f"esg: error: can't listen on unix:{path} (--uds): ")
    assert reason in finished.log
    assert len(finished.log.splitlines()) == 1
    assert os.lstat(path).st_ino == before.st_ino


def test_a_socket_that_another_program_serves_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    path = f"{folder}/web"
    with listening(socket.AF_UNIX, path):
        finished = run_to_its_end(tmp_path, "example:app", "--uds", path)
        assert finished.code == 1
        assert "a program listens on it" in finished.log
        assert served(path)


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    finished = run_to_its_end(tmp_path, "example:app", "--bind", "unix:/" + 120 * "x")
    assert finished.code == 2
    assert "has 121 bytes, but the path of a UNIX socket has at most 107" in finished.log


# -- sockets that are handed over ------------------------------------------------------


@pytest.mark.parametrize("option", ["--fd {}", "--bind fd://{}"])
def test_a_socket_of_another_program_is_served_and_left_open(start: Start, option: str) -> None:
    with listening() as sock:
        listen = option.format(sock.fileno()).split()
        esg = start("--workers", "2", listen=listen, pass_fds=(sock.fileno(),))
        assert esg.port == sock.getsockname()[1]
        esg.reload()
        with Load(esg.port, keep_alive=2, fresh=2) as load:
            load.wait_until_answered("fresh", 20)
        esg.signal(signal.SIGTERM)
        assert esg.wait() == 0
        # It belongs to the other program: it still listens, and accepts connections.
        with socket.create_connection(sock.getsockname(), timeout=5):
            sock.accept()[0].close()


@pytest.mark.parametrize(
    ("family", "where"), [(socket.AF_INET6, ("::1", 0)), (socket.AF_UNIX, "{}/web")]
)
def test_ipv6_and_unix_sockets_can_be_handed_over(
    start: Start, folder: Path, family: int, where: object
) -> None:
    where = where.format(folder) if isinstance(where, str) else where
    with listening(family, where) as sock:
        esg = start(listen=("--fd", str(sock.fileno())), pass_fds=(sock.fileno(),))
        with socket.socket(family) as client:
            client.settimeout(5)
            client.connect(sock.getsockname())
            client.sendall(b"GET /whoami HTTP/1.0\r\nHost: a\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
        esg.signal(signal.SIGTERM)
        assert esg.wait() == 0
        assert family != socket.AF_UNIX or os.path.exists(f"{folder}/web")


@pytest.mark.parametrize(
    ("family", "where"), [(socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, "{}/web")]
)
def test_a_handed_over_socket_may_be_only_bound(
    start: Start, folder: Path, family: int, where: object
) -> None:
    with socket.socket(family) as sock:
        sock.bind(where.format(folder) if isinstance(where, str) else where)
        listen = ("--fd", str(sock.fileno()), "--port", "1")
        esg = start(listen=listen, pass_fds=(sock.fileno(),))
        assert esg.logged("--port has no effect: --fd says where to listen")
        with socket.socket(family) as client:
            client.settimeout(5)
            client.connect(sock.getsockname())
            client.sendall(b"GET /whoami HTTP/1.0\r\nHost: a\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_programs_of_the_application_do_not_inherit_the_socket(start: Start) -> None:
    with listening() as sock:
        source = SCOPES.replace(
            "said =", 'said = os.popen("ls -l /proc/self/fd").read().encode(); _ ='
        )
        esg = start(listen=("--fd", "0"), source=source, stdin=sock.fileno())
        connection = esg.begin("/")
        seen = connection.getresponse().read().decode()
        connection.close()
    assert "/dev/null" in seen
    assert "socket:" not in seen


def connected() -> socket.socket:
    """A client's socket; its other end may be closed."""
    with listening() as listener:
        return socket.create_connection(listener.getsockname())


BAD_DESCRIPTORS = {
    "not open": (None, "isn't open"),
    "a file": (tempfile.TemporaryFile, "isn't a socket"),
    "UDP": (lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "that socket is UDP"),
    "not bound": (lambda: socket.socket(), "isn't bound"),
    "connected": (connected, "can't listen: Invalid argument"),
    "UNIX datagrams": (
        lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        "that socket is SOCK_DGRAM",
    ),
}


@pytest.mark.parametrize(("make", "reason"), BAD_DESCRIPTORS.values(), ids=BAD_DESCRIPTORS)
def test_descriptors_that_cannot_listen_are_refused(
    tmp_path: Path, make: Callable[[], socket.socket] | None, reason: str
) -> None:
    with contextlib.ExitStack() as stack:
        fd = 99 if make is None else stack.enter_context(make()).fileno()
        passed = (fd,) if make else ()
        finished = run_to_its_end(tmp_path, "example:app", "--fd", str(fd), pass_fds=passed)
    assert finished.code == 1
    assert finished.log.startswith(f"esg: error: can't listen on fd://{fd} (--fd): ")
    assert reason in finished.log
    assert len(finished.log.splitlines()) == 1


# -- systemd's variables ---------------------------------------------------------------

HAND_OVER = """
import os, socket, sys
names = sys.argv[1].split(":")
for number, name in enumerate(names):
    os.dup2(int(sys.argv[2 + number]), 3 + number)
os.environ |= {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": sys.argv[1]}
if "FAKE_FDS" in os.environ:
    os.environ["LISTEN_FDS"] = os.environ["FAKE_FDS"]
os.environ["LISTEN_PID"] = os.environ.get("FAKE_PID") or str(os.getpid())
os.execv(sys.executable, [sys.executable, *sys.argv[2 + len(names):]])
"""


def activated(names: str, *socks: socket.socket) -> dict[str, object]:
    """Options that start ESG as sd_listen_fds(3) describes."""
    fds = [str(sock.fileno()) for sock in socks]
    return {
        "wrapper": ("-c", HAND_OVER, names, *fds),
        "pass_fds": tuple(sock.fileno() for sock in socks),
    }


def high(sock: socket.socket) -> socket.socket:
    """The same socket under a descriptor number that isn't used otherwise."""
    fd = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, 100)
    return socket.socket(fileno=fd)


def test_all_sockets_of_a_unit_are_listened_on(start: Start) -> None:
    with listening() as a, listening() as b, high(a) as c, high(b) as d:
        esg = start(listen=(), **activated("web:admin", c, d))
        for sock in (a, b):
            esg._port = sock.getsockname()[1]
            assert esg.whoami()["worker"] == 1
        esg.reload()
        assert esg.whoami()["generation"] == 2


def test_a_socket_of_a_unit_is_found_by_its_name(start: Start) -> None:
    with listening() as a, listening() as b, high(a) as c, high(b) as d:
        esg = start(listen=("--bind", "fd://admin"), **activated("web:admin", c, d))
        assert esg.port == b.getsockname()[1]
        assert esg.whoami()["worker"] == 1
        assert esg.logged(r"web \(fd://3\) was handed over, and no --bind uses it")


def test_a_socket_name_that_was_not_handed_over_is_refused(tmp_path: Path) -> None:
    with listening() as a, high(a) as c:
        finished = run_to_its_end(
            tmp_path, "example:app", "--bind", "fd://admin", **activated("web", c)
        )
    assert finished.code == 1
    assert "no socket of that name was handed over (LISTEN_FDNAMES: web)" in finished.log


def test_an_address_that_a_unit_holds_is_taken_from_it(start: Start) -> None:
    with listening() as a, high(a) as c:
        port = a.getsockname()[1]
        esg = start(listen=("--port", str(port)), **activated("web", c))
        assert esg.whoami()["worker"] == 1
        assert not esg.logged("no --bind uses it")


@pytest.mark.parametrize("count", ["2", "4"])
def test_esgs_own_descriptors_do_not_count_as_handed_over(tmp_path: Path, count: str) -> None:
    with listening() as a, high(a) as c:
        port = str(a.getsockname()[1])
        finished = run_to_its_end(
            tmp_path,
            *("example:app", "--port", port, "--error-logfile", "log"),
            extra={"FAKE_FDS": count},
            **activated("web", c),
        )
    assert finished.code == 1
    assert finished.log == f"esg: error: LISTEN_FDS={count}, but descriptor 4 isn't open\n"


def test_sockets_meant_for_another_process_are_refused(tmp_path: Path) -> None:
    extra = {"FAKE_PID": "1"}
    with listening() as a, high(a) as c:
        options = activated("web", c)
        finished = run_to_its_end(tmp_path, "example:app", extra=extra, **options)
    assert finished.code == 1
    assert "meant for process 1 (LISTEN_PID), not for this one" in finished.log
    assert len(finished.log.splitlines()) == 1


def test_sockets_meant_for_another_process_are_ignored_if_there_is_a_bind(start: Start) -> None:
    with listening() as a, high(a) as c:
        esg = start(extra={"FAKE_PID": "1"}, **activated("web", c))
        assert esg.port != a.getsockname()[1]
        assert esg.logged("meant for process 1 .*: ignored")


# -- reloads that change binds -----------------------------------------------------------


def test_a_reload_adds_and_drops_binds_and_keeps_the_rest(start: Start, folder: Path) -> None:
    keep, drop, add = (f"unix:{folder}/{name}" for name in ("keep", "drop", "add"))
    text = 'bind = ["127.0.0.1:0", "{}", "{}"]\nworkers = 2\n'
    esg = start("-c", "esg.toml", listen=(), files={"esg.toml": text.format(keep, drop)})
    before, files = os.lstat(f"{folder}/keep"), open_files(esg.arbiter)
    with Load(esg.port, keep_alive=2, fresh=2, slow=1):
        esg.write(text.format(keep, add), "esg.toml")
        esg.reload()
        assert ask(f"{folder}/add")["generation"] == 2
        assert ask(f"{folder}/keep")["generation"] == 2
        eventually(lambda: not os.path.lexists(f"{folder}/drop"), "what was dropped is gone")
        assert esg.logged(f"no longer listening on {drop}$")
    assert os.lstat(f"{folder}/keep").st_ino == before.st_ino
    esg.wait_for_workers(2)
    wait_for_open_files(esg.arbiter, files)


def test_queued_connections_of_a_dropped_bind_are_served(start: Start) -> None:
    text = 'bind = ["127.0.0.1:0", "127.0.0.2:0"]\nworkers = 2\n'
    esg = start("-c", "esg.toml", listen=(), files={"esg.toml": text})
    port = esg.port
    with Load(port, fresh=4, keep_alive=2) as load:
        load.shutdown_begins()
        esg.write('bind = ["127.0.0.2:0"]\nworkers = 2\n', "esg.toml")
        esg.reload()
        eventually(lambda: refuses(port), "nobody listens there any more")


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except (ConnectionRefusedError, TimeoutError):
        return True
    return False


BOTH = 'bind = ["127.0.0.1:0", "{}"]\nworkers = 2\n'
ONE = 'bind = ["127.0.0.1:0"]\nworkers = 2\n'


@pytest.mark.parametrize("kind", ["TCP", "UNIX"])
def test_a_bind_that_returns_before_it_is_closed_is_served(
    start: Start, folder: Path, kind: str
) -> None:
    """While the reload that drops it runs, a reload that has it again is requested."""
    port = free_port()
    where = f"127.0.0.2:{port}" if kind == "TCP" else f"unix:{folder}/web"
    both = BOTH.format(where)
    slow = application(at_startup="await asyncio.sleep(0.2)")
    esg = start("-c", "esg.toml", listen=(), files={"esg.toml": both}, source=slow)
    files = open_files(esg.arbiter)
    esg.write(ONE, "esg.toml")
    esg.signal(signal.SIGHUP)
    esg.wait_for_log(r"gen=2 .*ready")
    esg.write(both, "esg.toml")
    esg.signal(signal.SIGHUP)
    esg.wait_for_log(" reloaded workers=2", count=2)
    esg.wait_for_workers(2)
    assert asked(kind, port, folder)["generation"] == 3
    assert len(esg.logged("listening on")) == 2
    wait_for_open_files(esg.arbiter, files)


def test_a_bind_of_a_generation_that_fails_is_served_if_the_next_one_has_it(start: Start) -> None:
    port = free_port()
    source = application(
        at_startup="await asyncio.sleep(0.2)\n    "
        "if os.path.exists('fail'): raise RuntimeError('no')"
    ).replace("import asyncio", "import asyncio, os", 1)
    esg = start(
        *("-c", "esg.toml", "--lifespan", "on"),
        listen=(),
        files={"esg.toml": ONE},
        source=source,
    )
    esg.claim("can't boot", "reload failed")
    esg.write(BOTH.format(f"127.0.0.2:{port}"), "esg.toml")
    esg.signal(signal.SIGHUP)
    esg.wait_for_log(r"gen=2 .*ready")
    esg.write("", "fail")
    esg.signal(signal.SIGHUP)
    esg.wait_for_log("reload failed, gen=1 goes on serving")
    (esg.folder / "fail").unlink()
    esg.wait_for_log(" reloaded workers=2")
    esg.wait_for_workers(2)
    assert asked("TCP", port)["generation"] == 3


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.2", 0))
        return int(sock.getsockname()[1])


def asked(kind: str, port: int, folder: Path | None = None) -> dict[str, object]:
    """The application's response on a new connection, over TCP at 127.0.0.2."""
    if kind == "UNIX":
        return ask(f"{folder}/web")
    connection = http.client.HTTPConnection("127.0.0.2", port, timeout=5)
    try:
        connection.request("GET", "/whoami")
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def test_a_bind_that_returns_while_a_worker_closes_it_is_refused_with_the_workers_name(
    start: Start,
) -> None:
    both = BOTH.format(f"127.0.0.2:{free_port()}").replace("workers = 2", "workers = 1")
    esg = start("-c", "esg.toml", listen=(), files={"esg.toml": both})
    esg.claim("reload refused")
    pid = esg.workers()[0]
    blocked = esg.in_flight("/block/3")
    esg.write(ONE.replace("workers = 2", "workers = 1"), "esg.toml")
    esg.reload()
    esg.write(both, "esg.toml")
    esg.signal(signal.SIGHUP)
    esg.wait_for_log(rf"in use, perhaps by worker 1 \(pid {pid}\), which is stopping")
    answer(blocked)
    blocked.close()
    eventually(lambda: esg.workers() != [] and pid not in esg.workers(), "it is gone")
    esg.reload()


def test_the_ipv6_wildcard_accepts_ipv4_clients_or_is_refused(start: Start) -> None:
    with socket.socket() as free:
        free.bind(("0.0.0.0", 0))
        port = free.getsockname()[1]
    text = f'bind = ["[::]:{port}", "0.0.0.0:{port}", "127.0.0.1:0"]\n'
    esg = start("-c", "esg.toml", listen=(), files={"esg.toml": text})
    esg.claim("reload refused")
    files = open_files(esg.arbiter)
    refusal = rf"can't listen on \[::\]:{port} .*: it accepts no IPv4 clients, .* restart"
    for attempt in (1, 2):
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, port), timeout=5).close()
        esg.write(f'bind = ["[::]:{port}"]\n', "esg.toml")
        esg.signal(signal.SIGHUP)
        esg.wait_for_log(refusal, count=attempt)
    wait_for_open_files(esg.arbiter, files)


def test_a_reload_does_not_adopt_the_arbiters_own_descriptors(start: Start) -> None:
    esg = start("-c", "esg.toml", listen=(), files={"esg.toml": 'bind = ["127.0.0.1:0"]\n'})
    esg.claim("reload refused")
    files = open_files(esg.arbiter)
    for fd in range(3, 3 + len(files)):
        esg.write(f'bind = ["fd://{fd}"]\n', "esg.toml")
        esg.signal(signal.SIGHUP)
        esg.wait_for_log(rf"can't listen on fd://{fd} \(.*handed over only at startup")
    wait_for_open_files(esg.arbiter, files)
    assert esg.whoami()["generation"] == 1


def test_a_bind_that_fails_refuses_the_reload(start: Start, folder: Path) -> None:
    esg = start("-c", "esg.toml", files={"esg.toml": ""}, listen=())
    esg.claim("reload refused")
    files = open_files(esg.arbiter)
    with listening() as taken:
        port = taken.getsockname()[1]
        esg.write(f'bind = ["unix:{folder}/new", "127.0.0.1:{port}"]\n', "esg.toml")
        esg.signal(signal.SIGHUP)
        esg.wait_for_log(f"reload refused, gen=1 goes on serving: can't listen on .*:{port}")
    assert not os.path.lexists(f"{folder}/new")
    wait_for_open_files(esg.arbiter, files)
    assert esg.whoami()["generation"] == 1


def test_a_generation_that_cannot_boot_leaves_no_socket(start: Start, folder: Path) -> None:
    esg = start("-c", "esg.toml", listen=(), files={"esg.toml": 'bind = ["127.0.0.1:0"]'})
    esg.claim("can't boot", "reload failed")
    files = open_files(esg.arbiter)
    esg.write(f'bind = ["127.0.0.1:0", "unix:{folder}/new"]', "esg.toml")
    esg.write("import no_such_module")
    esg.signal(signal.SIGHUP)
    esg.wait_for_log("reload failed, gen=1 goes on serving")
    eventually(lambda: not os.path.lexists(f"{folder}/new"), "its socket is gone")
    wait_for_open_files(esg.arbiter, files)
    assert esg.whoami()["generation"] == 1
