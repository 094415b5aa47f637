"""The wheel and the source distribution, and installations from them."""

from __future__ import annotations

import email
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import esg
from tests.support.runner import CHECKOUT, environment, kill_session
from tests.support.waiting import DEADLINE, eventually

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None or importlib.util.find_spec("pip") is None,
    reason="needs pip and hatchling",
)

REQUIRED = ("click", "h11", "setproctitle", "websockets")
"""The required packages; uvloop and httptools are optional."""

OPTIONAL = ("httptools", "uvloop")

APPLICATION = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"installed"})
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with both distributions."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist"]
    subprocess.run([*command, "-d", str(folder)], cwd=CHECKOUT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory) -> Path:
    """A virtual environment with only the wheel and the required packages."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    install = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *options, str(wheel)], check=True)
    provide(folder, *REQUIRED)
    return folder


def provide(environment: Path, *packages: str) -> None:
    """Add our installed packages to an environment, without a download."""
    (site,) = environment.glob("lib/python*/site-packages")
    for package in packages:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        (site / package).symlink_to(spec.submodule_search_locations[0])


def run(environment_: Path, *arguments: str, code: int = 0) -> str:
    """Run the installed command to its end; returns its output."""
    command = [str(environment_ / "bin" / "esg"), *arguments]
    done = subprocess.run(command, env=bare(), capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def bare() -> dict[str, str]:
    """The environment of a run, without the checkout on the path."""
    return {name: value for name, value in environment().items() if name != "PYTHONPATH"}


def test_the_wheel_has_the_package_and_says_that_it_is_typed(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    ours = {str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("esg/**/*.py")}
    assert ours <= set(names)
    assert "esg/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {
        "esg", f"esg_server-{esg.__version__}.dist-info"
    }  # fmt: skip


def test_the_metadata_names_the_requirements_and_extras(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = email.message_from_bytes(
        archive.read(f"esg_server-{esg.__version__}.dist-info/METADATA")
    )
    needed = metadata.get_all("Requires-Dist") or []
    plain = {re.split(r"[<>=;\[ ]", line)[0] for line in needed if "extra ==" not in line}
    assert plain == {*REQUIRED, *OPTIONAL}
    extras = {"standard", "dotenv", "gunicorn", "reload", "yaml"}
    assert extras <= set(metadata.get_all("Provides-Extra") or [])
    assert metadata["Version"] == esg.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in (metadata.get_all("Classifier") or [])


def test_the_source_distribution_has_the_package_tests_and_docs(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "esg/py.typed"} <= names
    assert "tests/support/runner.py" in names
    assert "docs/settings.md" in names


def test_the_version_is_printed_as_by_uvicorn(installed: Path) -> None:
    told = run(installed, "--version")
    assert re.fullmatch(rf"Running esg {esg.__version__} with CPython [\d.]+\S* on Linux\n", told)


@pytest.fixture
def served(installed: Path, tmp_path: Path) -> Iterator[str]:
    """The response of a server from the installed wheel."""
    (tmp_path / "example.py").write_text(APPLICATION)
    with (tmp_path / "log").open("wb") as log:
        command = [str(installed / "bin" / "esg"), "example:app", "--port", "0", "--workers", "2"]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=bare(), stderr=log, stdout=log, start_new_session=True
        )
    try:
        text = (tmp_path / "log").read_text
        eventually(lambda: "serving workers=2" in text(), "it serves")
        url = re.search(r"listening on (http://\S+)", text())
        assert url
        with urllib.request.urlopen(url[1], timeout=DEADLINE) as response:
            yield response.read().decode()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
        assert "ERROR" not in text()
    finally:
        left = kill_session(process)
    assert left == []


def test_without_uvloop_and_httptools_the_installed_wheel_serves(served: str) -> None:
    assert served == "installed"


@pytest.mark.parametrize(("option", "package"), [("--loop", "uvloop"), ("--http", "httptools")])
def test_a_missing_package_is_named(
    installed: Path, tmp_path: Path, option: str, package: str
) -> None:
    (tmp_path / "example.py").write_text(APPLICATION)
    told = run(
        installed, "example:app", "--app-dir", str(tmp_path), "--port", "0", option, package, code=2
    )
    assert f"esg: error: {option}: {package} is not installed; try: pip install {package}, " in told


def test_reload_without_watchfiles_is_refused_in_one_line(installed: Path) -> None:
    told = run(installed, "esg.demo:app", "--reload", code=2)
    expected = "esg: error: --reload: watchfiles is not installed; try: pip install watchfiles\n"
    assert told == expected
