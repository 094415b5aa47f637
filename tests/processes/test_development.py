"""`--reload`: a saved file is served; after any error, the last good code is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from esg.supervisor.watcher.watch import stamp
from tests.support.app import application
from tests.support.load import Load
from tests.support.runner import Esg, answer
from tests.support.waiting import all_along, eventually

Start = Callable[..., Esg]

pytest.importorskip("watchfiles")


@pytest.fixture
def watching(start: Start) -> Start:
    """Like `start`, with `--reload`; waits until the servers watch files."""

    def watching(*arguments: str, **options: object) -> Esg:
        esg = start("--reload", *arguments, **options)
        esg.wait_for_log(r" watching /")
        return esg

    return watching


def wait_for_version(esg: Esg, version: str) -> None:
    eventually(lambda: esg.whoami()["version"] == version, f"version {version} is served")


@pytest.mark.parametrize("workers", ["1", "3"])
def test_a_saved_file_is_served(watching: Start, workers: str) -> None:
    esg = watching("--workers", workers)
    with Load(esg.port, fresh=2, slow=1):
        esg.write(application("two"))
        assert esg.wait_for_log("changed: ").event == "changed: example.py"
        assert esg.wait_for_log(" reloaded workers=").event == f"reloaded workers={workers}"
    assert {esg.whoami()["version"] for _ in range(6)} == {"two"}


def test_the_new_code_is_served_soon(watching: Start) -> None:
    """A save takes little longer than the reload that it causes.

    A fixed delay, such as that of a watcher that looks once a second, must fail here.
    """
    esg = watching("--workers", "2")
    saved, asked = [], []
    for number in range(4):
        begun = time.monotonic()
        esg.write(application(str(number)))
        wait_for_version(esg, str(number))
        saved.append(time.monotonic() - begun)
        esg.wait_for_log(" reloaded workers=", count=2 * number + 1)
        begun = time.monotonic()
        generation = esg.whoami()["generation"]
        esg.signal(signal.SIGHUP)
        eventually(lambda before=generation: esg.whoami()["generation"] > before, "it reloads")
        asked.append(time.monotonic() - begun)
        esg.wait_for_log(" reloaded workers=", count=2 * number + 2)
    assert min(saved) < 3 * min(asked), (saved, asked)


def save_in_place(file: Path, text: str) -> None:
    file.write_text(text)


def save_by_rename(file: Path, text: str) -> None:
    new = file.with_name(f".{file.name}.swp")
    new.write_text(text)
    new.rename(file)


def save_with_a_backup(file: Path, text: str) -> None:
    """Like vim with `backupcopy=no`."""
    file.rename(file.with_name(file.name + "~"))
    file.write_text(text)
    file.with_name(file.name + "~").unlink()


def save_as_a_new_file(file: Path, text: str) -> None:
    file.unlink()
    file.write_text(text)


@pytest.mark.parametrize(
    "save",
    [save_in_place, save_by_rename, save_with_a_backup, save_as_a_new_file],
    ids=lambda f: f.__name__,
)
def test_editors_save_in_several_ways(watching: Start, save: Callable[[Path, str], None]) -> None:
    esg = watching()
    for version in ("two", "three"):
        save(esg.folder / "example.py", application(version))
        wait_for_version(esg, version)


def test_polling_finds_changes(watching: Start) -> None:
    esg = watching("--reload-engine", "poll")
    esg.write(application("two"))
    wait_for_version(esg, "two")


def test_a_burst_of_changes_is_one_reload_or_two(watching: Start) -> None:
    esg = watching(files={f"module{number}.py": "" for number in range(50)})
    for number in range(50):
        (esg.folder / f"module{number}.py").write_text("VALUE = 2")
    esg.write(application("two"))
    wait_for_version(esg, "two")
    esg.wait_for_log(" reloaded workers=")
    all_along(0.6, lambda: len(esg.logged("changed: ")) <= 2, "at most two reloads")


def test_the_delay_is_the_shortest_time_between_two_reloads(watching: Start) -> None:
    esg = watching("--reload-delay", "1.5")
    esg.write(application("two"))
    esg.wait_for_log("changed: ")
    esg.write(application("three"))
    esg.wait_for_log("changed: ", count=2)
    first, second = (record.time for record in esg.logged("changed: "))
    assert (second - first).total_seconds() > 1.4
    wait_for_version(esg, "three")


def test_patterns_select_the_files_that_count(watching: Start) -> None:
    esg = watching("--reload-include", "*.html", "--reload-exclude", "data.py")
    esg.write("<p>", "page.txt")
    esg.write("x = 1", "data.py")
    esg.write("<p>", "page.html")
    assert esg.wait_for_log("changed: ").event == "changed: page.html"
    esg.wait_for_log(" reloaded workers=")


def test_a_folder_can_be_chosen(watching: Start, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    esg = watching("--reload-dir", str(other))
    assert esg.logged(f" watching {other}$")
    esg.write(application("two"))
    (other / "module.py").write_text("x = 1")
    esg.wait_for_log(f"changed: {other}/module.py")
    esg.wait_for_log(" reloaded workers=")
    assert len(esg.logged("changed: ")) == 1


def test_files_and_folders_behind_links_are_watched(watching: Start, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared.py").write_text("VERSION = 'old'")
    (tmp_path / "shared" / "__init__.py").write_text("")
    esg = watching(
        source=application(at_import="from linked import VERSION"),
        wait=False,
        files={"linked.py": "VERSION = 'old'"},
    )
    esg.wait_for_log("serving workers=")
    link, package = esg.folder / "linked.py", esg.folder / "package"
    link.unlink()
    link.symlink_to(tmp_path / "shared.py")
    package.symlink_to(tmp_path / "shared")
    esg.wait_for_log(" reloaded workers=")
    (tmp_path / "shared.py").write_text("VERSION = 'behind the link'")
    wait_for_version(esg, "behind the link")
    before = len(esg.logged("changed: "))
    (package / "__init__.py").write_text("x = 1")
    esg.wait_for_log("changed: ", count=before + 1)
    esg.wait_for_log(" reloaded workers=", count=before + 1)


def test_a_folder_moved_into_place_is_noticed(watching: Start, tmp_path: Path) -> None:
    esg = watching()
    package = tmp_path / "package"
    package.mkdir()
    (package / "module.py").write_text("")
    package.rename(esg.folder / "package")
    assert esg.wait_for_log("changed: ").event == "changed: package/module.py"
    esg.wait_for_log(" reloaded workers=")


def test_a_replaced_folder_is_still_watched(watching: Start, tmp_path: Path) -> None:
    folder = tmp_path / "watched"
    folder.mkdir()
    esg = watching("--reload-dir", str(folder))
    folder.rename(tmp_path / "gone")
    folder.mkdir()
    esg.wait_for_log(f"changed: {folder}$")
    esg.wait_for_log(f" watching {folder}", count=2)
    # Otherwise the next change would only overtake this reload.
    esg.wait_for_log(" reloaded workers=")
    (folder / "module.py").write_text("")
    esg.wait_for_log(f"changed: {folder}/module.py")
    esg.wait_for_log(" reloaded workers=", count=2)


def test_code_that_cannot_be_imported_leaves_the_last_good_code_serving(watching: Start) -> None:
    esg = watching("--workers", "2")
    esg.claim("can't boot: ", "reload failed, gen=1 goes on serving")
    old = esg.workers()
    with Load(esg.port, keep_alive=1) as load:
        esg.write("def app(:\n")
        esg.wait_for_log("reload failed, gen=1 goes on serving")
        assert esg.logged("(?s)can't boot: .*SyntaxError")
        load.wait_until_answered("keep-alive", 10)
        assert esg.wait_for_workers(2) == old
    assert esg.whoami()["version"] == "one"
    esg.write(application("two"))
    wait_for_version(esg, "two")
    esg.wait_for_log(" reloaded workers=2")


def test_with_debug_a_browser_shows_why_a_reload_failed(watching: Start) -> None:
    esg = watching("--debug", "--workers", "2")
    esg.claim("can't boot: ", "reload failed, gen=1 goes on serving")
    assert esg.whoami()["version"] == "one"
    esg.write("def app(:\n")
    eventually(lambda: b"SyntaxError" in page(esg)[1], "the page says why")
    status, text = page(esg)
    assert status == 500
    assert b"Reload failed: SyntaxError" in text
    assert b"def app(:" in text
    assert esg.whoami()["version"] == "one"
    esg.write(application("two"))
    esg.wait_for_log(" reloaded workers=2")
    assert b'"two"' in page(esg)[1]


def test_without_debug_a_browser_does_not_show_why_a_reload_failed(watching: Start) -> None:
    esg = watching()
    esg.claim("can't boot: ", "reload failed, gen=1 goes on serving")
    esg.write("def app(:\n")
    esg.wait_for_log("reload failed, gen=1 goes on serving")
    assert page(esg)[0] == 200


def page(esg: Esg) -> tuple[int, bytes]:
    """Send a request like a browser."""
    connection = esg.connect()
    try:
        connection.request("GET", "/whoami", headers={"Accept": "text/html,*/*;q=0.8"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_reload_closes_idle_connections(watching: Start) -> None:
    esg = watching("--timeout-keep-alive", "60")
    connection = esg.begin("/whoami")
    assert answer(connection)["version"] == "one"
    sock = connection.sock
    all_along(2.2, lambda: not is_closed(sock), "the connection is open")
    esg.write(application("two"))
    esg.wait_for_log(" reloaded workers=")
    eventually(lambda: is_closed(sock), "the server has closed it")
    connection.close()


def is_closed(sock) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False


# -- settings ------------------------------------------------------------------------------


def test_the_settings_file_is_watched(watching: Start) -> None:
    esg = watching(files={"esg.toml": "workers = 1"})
    esg.write("workers = 2", "esg.toml")
    assert esg.wait_for_log("changed: ").event == "changed: esg.toml"
    esg.wait_for_log(" reloaded workers=2")


def test_the_env_file_is_watched(watching: Start) -> None:
    pytest.importorskip("dotenv")
    source = application(at_import="VERSION = os.environ['RELEASE']")
    esg = watching("--env-file", "local.env", source=source, files={"local.env": "RELEASE=one"})
    assert esg.whoami()["version"] == "one"
    esg.write("RELEASE=two", "local.env")
    wait_for_version(esg, "two")


def test_a_bad_settings_file_changes_nothing(watching: Start) -> None:
    esg = watching(files={"esg.toml": "workers = 1"})
    esg.claim("reload refused, gen=1 goes on serving")
    esg.write("wrokers = 2", "esg.toml")
    esg.wait_for_log("reload refused, .* did you mean workers")
    assert esg.whoami()["generation"] == 1


def test_a_reload_can_start_and_end_the_watcher(start: Start) -> None:
    esg = start("-c", "esg.toml", files={"esg.toml": ""})
    assert esg.watchers() == []
    esg.write("reload = true", "esg.toml")
    saved = (esg.folder / "esg.toml").stat().st_ctime_ns
    eventually(lambda: stamp() > saved, "it can't have been saved after the reload began")
    esg.signal(signal.SIGHUP)
    esg.wait_for_log(" watching /")
    assert len(esg.watchers()) == 1
    esg.write("reload = false", "esg.toml")
    esg.wait_for_log(" reloaded workers=", count=2)
    eventually(lambda: esg.watchers() == [], "the watcher is gone")
    esg.write(application("two"))
    esg.reload()
    assert len(esg.logged("changed: ")) == 1


def test_a_reload_with_the_same_settings_keeps_the_watcher(watching: Start) -> None:
    esg = watching()
    before = esg.watchers()
    esg.write(application("two"))
    esg.wait_for_log(" reloaded workers=")
    assert esg.watchers() == before


# -- the process -----------------------------------------------------------------------------


def test_a_watcher_that_dies_is_replaced(watching: Start) -> None:
    esg = watching()
    esg.claim("the watcher of --reload ended")
    worker = esg.workers()
    for count, then in enumerate(("at once", "in 0.5 s", "in 1.0 s"), 1):
        (watcher,) = esg.watchers()
        os.kill(watcher, signal.SIGKILL)
        record = esg.wait_for_log("the watcher of --reload ended", count=count)
        assert record.level == "ERROR"
        assert f"next start {then}: killed by SIGKILL from another process" in record.event
        esg.wait_for_log(" watching /", count=count + 1)
    assert esg.workers() == worker
    esg.write(application("two"))
    wait_for_version(esg, "two")


def test_files_saved_while_no_watcher_runs_are_served(watching: Start) -> None:
    esg = watching()
    esg.claim("the watcher of --reload ended")
    esg.write(application("two"))
    esg.wait_for_log(" reloaded workers=")
    os.kill(esg.watchers()[0], signal.SIGKILL)
    esg.wait_for_log(" watching /", count=2)
    os.kill(esg.watchers()[0], signal.SIGKILL)
    esg.wait_for_log("next start in 0.5 s")
    esg.write(application("three"))
    wait_for_version(esg, "three")
    assert len(esg.logged("changed: ")) == 2, "nothing is reported twice"


def test_files_saved_during_startup_are_served(start: Start) -> None:
    late = "os.path.exists('late.py') or open('late.py', 'w').close()"
    esg = start("--reload", source=application(at_import=late))
    assert esg.wait_for_log("changed: ").event == "changed: late.py"
    esg.wait_for_log(" reloaded workers=")


def test_the_watcher_ignores_signals_to_the_whole_group(watching: Start) -> None:
    esg = watching()
    (watcher,) = esg.watchers()
    for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        os.kill(watcher, signum)
    esg.write(application("two"))
    wait_for_version(esg, "two")
    assert esg.watchers() == [watcher]


def test_the_watcher_dies_with_the_arbiter(watching: Start) -> None:
    esg = watching()
    esg.claim("the arbiter is gone, draining")
    esg.exit_code = -signal.SIGKILL
    watcher, port = psutil.Process(esg.watchers()[0]), esg.port
    worker = psutil.Process(esg.workers()[0])
    esg.signal(signal.SIGKILL)
    eventually(lambda: ended(watcher), "the watcher has ended", timeout=3)
    eventually(lambda: ended(worker), "the worker has ended", timeout=5)
    assert port not in {c.laddr.port for c in psutil.net_connections() if c.status == "LISTEN"}


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_the_watcher_holds_no_descriptors_of_the_arbiter(watching: Start) -> None:
    esg = watching("--error-logfile", "log", log="log")
    folder = f"/proc/{esg.watchers()[0]}/fd"
    numbers = {int(name): os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
    sockets = [what for fd, what in numbers.items() if what.startswith("socket:") and fd > 2]
    pipes = [what for fd, what in numbers.items() if what.startswith("pipe:") and fd > 2]
    assert (len(sockets), len(pipes)) == (1, 1), "its mailbox, and nothing else"
    assert not any(what.endswith("/log") for what in numbers.values())


def test_a_shutdown_ends_the_watcher(watching: Start) -> None:
    esg = watching("--workers", "2")
    connection = esg.in_flight("/slow/0.5")
    esg.signal(signal.SIGTERM)
    eventually(lambda: esg.watchers() == [], "the watcher is gone before the workers")
    assert answer(connection)["version"] == "one"
    assert esg.wait() == 0


def test_a_first_generation_that_cannot_boot_leaves_no_watcher(start: Start) -> None:
    esg = start("--reload", source="def app(:\n", wait=False)
    esg.claim("can't boot")
    esg.exit_code = 4
    assert esg.wait() == 4
