"""Releases behind a symbolic link that is switched, for all ways of naming the folder."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.support.app import application
from tests.support.runner import CHECKOUT, Esg, run_to_its_end
from tests.support.waiting import eventually


class Releases:
    """Two releases in a folder, and a link to the first one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.link = folder / "current"
        for number in ("1", "2"):
            self.path(number).mkdir(parents=True)
            (self.path(number) / "example.py").write_text(application(number))
        self.link.symlink_to("releases/1")

    def path(self, number: str) -> Path:
        return self.folder / "releases" / number

    def switch(self, *, delete: bool = False) -> None:
        new = self.folder / "new"
        new.symlink_to("releases/2")
        new.rename(self.link)
        if delete:
            shutil.rmtree(self.path("1"))


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    return Releases(tmp_path / "app")


@pytest.fixture(params=["--chdir", "PWD"])
def esg(request: pytest.FixtureRequest, releases: Releases, tmp_path: Path) -> Iterator[Esg]:
    """A server with `--chdir` to the link, or started in it as from a shell."""
    if request.param == "--chdir":
        esg = Esg(tmp_path, "--chdir", str(releases.link), source="1 / 0")
    else:
        esg = Esg(
            releases.link,
            source=application("1"),
            log=str(releases.path("1") / "stderr"),
            extra={"PWD": str(releases.link)},
        )
    esg.wait_for_log("serving workers=")
    yield esg
    esg.stop()


def test_a_reload_follows_the_link(esg: Esg, releases: Releases) -> None:
    assert str(releases.path("1")) in esg.logged("running in")[0].text
    assert esg.whoami()["version"] == "1"
    releases.switch()
    esg.reload()
    assert esg.whoami()["version"] == "2"
    esg.wait_for_log(f"running in {releases.path('2')}, where")
    worker = Path(f"/proc/{esg.whoami()['pid']}/cwd")
    assert worker.readlink() == Path(f"/proc/{esg.pid}/cwd").readlink() == releases.path("2")


def test_a_reload_follows_the_link_after_the_old_release_was_deleted(
    tmp_path: Path, releases: Releases
) -> None:
    esg = Esg(tmp_path, "--chdir", "app/current", source="1 / 0")
    try:
        esg.wait_for_log("serving workers=")
        releases.switch(delete=True)
        (before,) = esg.workers()
        esg.claim("died: killed by SIGKILL")
        os.kill(before, signal.SIGKILL)
        esg.wait_for_log(r"is gone; this worker uses .*/releases/2")
        esg.wait_for_log(" ready", count=2)
        assert esg.whoami()["version"] == "2"
        esg.reload()
        assert esg.whoami()["generation"] == 2
    finally:
        esg.stop()


def test_a_refused_reload_leaves_the_old_generation_in_its_release(
    tmp_path: Path, releases: Releases
) -> None:
    (releases.path("2") / "example.py").write_text("1 / 0")
    esg = Esg(tmp_path, "--chdir", "app/current", source="1 / 0")
    try:
        esg.wait_for_log("serving workers=")
        releases.switch()
        esg.claim("ZeroDivisionError", "reload", "killed by SIGKILL")
        esg.signal(signal.SIGHUP)
        esg.wait_for_log("reload.*failed|failed.*reload")
        esg.wait_for_workers(1)
        (before,) = esg.workers()
        os.kill(before, signal.SIGKILL)
        eventually(lambda: esg.workers() not in ([], [before]), "another worker")
        esg.wait_for_log(" ready", count=2)
        assert esg.whoami()["version"] == "1"
    finally:
        esg.stop()


def test_relative_paths_belong_to_the_release(
    releases: Releases,
) -> None:
    """`esg.toml` is found by the startup path; other paths are relative to the release."""
    for number, workers in (("1", 1), ("2", 2)):
        text = f"workers = {workers}\nbind = ['unix:web']\nerror_logfile = '../../log'\n"
        (releases.path(number) / "esg.toml").write_text(text)
    extra = {"PWD": str(releases.link)}
    esg = Esg(releases.link, listen=(), source=application("1"), extra=extra, log="../../log")
    try:
        esg.wait_for_log("serving workers=")
        assert (releases.path("1") / "web").is_socket()
        releases.switch()
        esg.signal(signal.SIGHUP)
        eventually(lambda: (releases.path("2") / "web").is_socket(), "the socket of the release")
        esg.wait_for_log("reloaded workers=2")
        eventually(lambda: not (releases.path("1") / "web").exists(), "the old socket has gone")
    finally:
        esg.stop()


def test_startup_in_a_deleted_folder_fails_with_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = run_to_its_end(
        gone,
        "example:app",
        prefix=["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh"],
    )
    assert done.code == 2
    assert done.log == (
        "esg: error: the working directory was deleted; change to a folder that exists, and start "
        "again\n"
    )


USES_WEBSOCKETS = """\
import websockets.version
from websockets.server import ServerProtocol

VERSION = websockets.version.version
"""

WITH_WEBSOCKETS = """\
import usual


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return await usual.app(scope, receive, send)
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
"""


def test_a_reload_uses_a_package_that_was_replaced_meanwhile(tmp_path: Path) -> None:
    """The arbiter has imported websockets, too, but workers mustn't mix it with the new files."""
    packages = tmp_path / "packages"
    source = Path(importlib.util.find_spec("websockets").origin).parent  # type: ignore[union-attr,arg-type]

    def install(version: str) -> None:
        new = packages / "new"
        shutil.copytree(source, new, ignore=shutil.ignore_patterns("__pycache__"))
        text = (source / "version.py").read_text()
        (new / "version.py").write_text(f"{text}\nversion = {version!r}\n")
        shutil.rmtree(packages / "websockets", ignore_errors=True)
        new.rename(packages / "websockets")

    install("1.0")
    path = os.pathsep.join([str(packages), str(CHECKOUT)])
    (tmp_path / "usual.py").write_text(application(at_import=USES_WEBSOCKETS))
    esg = Esg(tmp_path, source=WITH_WEBSOCKETS, extra={"PYTHONPATH": path})
    try:
        esg.wait_for_log("serving workers=")
        assert esg.whoami()["version"] == "1.0"
        install("2.0")
        esg.reload()
        assert esg.whoami()["generation"] == 2
        assert esg.whoami()["version"] == "2.0"
        with connect(f"ws://127.0.0.1:{esg.port}/echo") as client:
            client.send("hello")
            assert client.recv() == "hello"
    finally:
        esg.stop()
