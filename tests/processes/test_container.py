"""deploy/container: builds the Dockerfile and runs the image as a container engine would."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from esg.settings.schema import SETTINGS
from tests.support.container import Builder, Container, Image, Unavailable, repacked
from tests.support.runner import CHECKOUT
from tests.support.waiting import DEADLINE, eventually

FILES = CHECKOUT / "deploy" / "container"

NEEDED = ("click", "h11", "httptools", "setproctitle", "uvloop", "websockets")
"""The packages that pip installs with ESG."""

APPLICATION = """\
import asyncio
import os
import pathlib
import subprocess


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    status, body = 200, f"{os.getuid()} {os.getppid()}"
    match scope["path"]:
        case "/healthz":
            status = 503 if pathlib.Path("/tmp/sick").exists() else 200
        case "/slow":
            pathlib.Path("/tmp/slow").touch()
            await asyncio.sleep(1)
        case "/orphan":
            body = subprocess.check_output(["sh", "-c", "sleep 0.1 >/dev/null & echo $!"]).decode()
        case "/write":
            try:
                pathlib.Path(__file__).write_text("")
            except OSError as error:
                body = error.strerror
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body.encode()})
"""

GET = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=10).read().decode())"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Builder, Image]]:
    """The image, and the program that runs it."""
    if importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("needs pip and hatchling")
    context, wheels, folder = (tmp_path_factory.mktemp(name) for name in ("app", "wheels", "image"))
    shutil.copytree(FILES, context, dirs_exist_ok=True)
    (context / "example.py").write_text(APPLICATION)
    (context / "requirements.txt").write_text("esg-server\n")
    (context / ".env").write_text("SECRET=1\n")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True)
    repacked(wheels, *NEEDED)
    try:
        builder = Builder(folder, wheels)
    except Unavailable as reason:
        pytest.skip(str(reason))
    try:
        yield builder, builder.build(context)
    except Unavailable as reason:
        pytest.skip(str(reason))
    finally:
        builder.close()


@contextlib.contextmanager
def started(
    built: tuple[Builder, Image], folder: Path, arguments: Sequence[str] = ()
) -> Iterator[Container]:
    """A container of the image that serves; `arguments` replace the image's."""
    builder, image = built
    command = [*image.entrypoint, *(arguments or image.command)]
    container = Container(builder, image, command, folder / "log")
    try:
        container.wait_for_log("serving workers=")
        yield container
    finally:
        container.kill()
        print(container.log)  # noqa: T201 - for a test that fails


@pytest.fixture(scope="module")
def container(
    built: tuple[Builder, Image], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """One container for all tests that don't change it."""
    with started(built, tmp_path_factory.mktemp("container")) as container:
        yield container


def get(container: Container, path: str) -> str:
    code, output = container.run("python", "-c", GET, f"http://127.0.0.1:8000{path}")
    assert code == 0, output
    return output.strip()


def test_hadolint_reports_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("needs hadolint")
    command = [str(hadolint), "--failure-threshold=style", "--no-color", "Dockerfile"]
    done = subprocess.run(command, cwd=FILES, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_serves_without_privileges(container: Container, built: tuple[Builder, Image]) -> None:
    assert get(container, "/") == "10001 1"
    assert get(container, "/write") in ("Permission denied", "Read-only file system")
    assert built[1].user == "10001:10001"
    assert built[1].port == 8000
    code, listed = container.run("sh", "-c", "ls -a . __pycache__; stat -c %u . example.py")
    assert code == 0
    assert "example.cpython" in listed
    assert ".env" not in listed
    assert "Dockerfile" not in listed
    assert listed.split()[-2:] == ["0", "0"]
    assert container.run("python", "-m", "pip", "--version")[0] == 1


def test_its_bytecode_is_used(container: Container) -> None:
    code, output = container.run("python", "-v", "-c", "import esg.server.worker, example")
    assert code == 0
    loaded = re.findall(r"^# code object from '(/(?:opt/venv|srv/app)/.*)'$", output, re.MULTILINE)
    assert len(loaded) > 10
    assert [path for path in loaded if not path.endswith(".pyc")] == []


def test_the_health_check_fails_while_the_application_is_unhealthy(
    container: Container, built: tuple[Builder, Image]
) -> None:
    check = built[1].healthcheck
    assert container.run(*check) == (0, "")
    assert container.run("touch", "/tmp/sick")[0] == 0
    assert container.run(*check) == (1, "")
    assert container.run("rm", "/tmp/sick")[0] == 0
    assert container.run(*check) == (0, "")


def test_the_health_check_fails_if_nothing_serves(
    built: tuple[Builder, Image], tmp_path: Path
) -> None:
    builder, image = built
    container = Container(builder, image, image.healthcheck, tmp_path / "log")
    try:
        assert container.wait() == 1
        assert "ConnectionRefusedError" in container.log
    finally:
        container.kill()


def test_it_reaps_orphaned_processes(container: Container) -> None:
    before = {child.pid for child in container.init.children()}
    orphan = int(get(container, "/orphan"))
    assert orphan > 1

    def left() -> set[int]:
        return {child.pid for child in container.init.children()} - before

    eventually(lambda: not left(), "nothing is left of it")


def test_it_finishes_requests_when_it_stops(built: tuple[Builder, Image], tmp_path: Path) -> None:
    with started(built, tmp_path) as container:
        slow = container.begin("python", "-c", GET, "http://127.0.0.1:8000/slow")
        eventually(lambda: container.run("test", "-e", "/tmp/slow")[0] == 0, "it has the request")
        os.kill(container.init.pid, signal.Signals[built[1].stop_signal])
        assert slow.communicate(timeout=DEADLINE)[0].strip() == "10001 1"
        assert container.wait() == 0
        assert "stopped, exit status 0" in container.log


def test_compose_matches_the_dockerfile(built: tuple[Builder, Image]) -> None:
    service: dict[str, Any] = yaml.safe_load((FILES / "compose.yaml").read_text())["services"][
        "web"
    ]
    image = built[1]
    assert service["build"] == "."
    assert service["command"] == image.command
    assert service["ports"] == [f"127.0.0.1:8000:{image.port}"]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert int(service["stop_grace_period"].rstrip("s")) > SETTINGS["graceful_timeout"].default


def test_the_arguments_for_kubernetes_serve_what_its_probe_asks_for(
    built: tuple[Builder, Image], tmp_path: Path
) -> None:
    manifest = (CHECKOUT / "deploy/kubernetes/deployment.yaml").read_text()
    deployment, *_ = yaml.safe_load_all(manifest)
    (pod,) = deployment["spec"]["template"]["spec"]["containers"]
    with started(built, tmp_path, pod["args"]) as container:
        assert get(container, pod["readinessProbe"]["httpGet"]["path"]) == "10001 1"
        os.kill(container.init.pid, signal.SIGTERM)
        container.wait_for_log("(--drain-delay)")
        assert get(container, pod["readinessProbe"]["httpGet"]["path"]) == "10001 1"
        os.kill(container.init.pid, signal.SIGQUIT)
        assert container.wait() == 0
