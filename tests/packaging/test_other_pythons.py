"""The wheel on the other versions of Python that this machine has, with its dependencies.

They come from the package index, so this takes a while, and only runs with `-m pythons`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.runner import CHECKOUT, Esg

pytestmark = [pytest.mark.pythons, pytest.mark.timeout(300)]

VERSIONS = ("3.11", "3.12", "3.13")


def interpreters() -> Iterator[tuple[str, str]]:
    """Version and path of each other supported Python: on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for version in VERSIONS:
        if version == f"{sys.version_info.major}.{sys.version_info.minor}":
            continue
        found = [str(path) for path in pyenv.glob(f"versions/{version}.*/bin/python{version}")]
        for python in filter(None, (*found, shutil.which(f"python{version}"))):
            check = subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True)
            if check.returncode == 0:
                yield version, python
                break


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.parametrize(("version", "python"), list(interpreters()))
@pytest.mark.parametrize("reduced", [False, True], ids=["whole", "pure"])
def test_the_wheel_installs_and_serves(
    wheel: Path, tmp_path: Path, version: str, python: str, reduced: bool
) -> None:
    """`reduced`: without optional packages, on asyncio and h11."""
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True)
    own = str(tmp_path / "venv" / "bin" / "python")
    pip = [own, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "install", str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if reduced:
        subprocess.run([*pip, "uninstall", "--yes", "uvloop", "httptools"], check=True)
    folder = tmp_path / "app"
    folder.mkdir()
    esg = Esg(folder, "--workers", "2", python=own, extra={"PYTHONPATH": ""})
    try:
        esg.wait_for_log("serving workers=2")
        assert esg.whoami()["generation"] == 1
        esg.reload()
        assert esg.whoami()["generation"] == 2
        esg.stop()
    finally:
        esg.kill()
        print(esg.log)  # noqa: T201 - for a test that fails
    told = subprocess.run([own, "-m", "esg", "--version"], capture_output=True, text=True, cwd="/")
    assert f"with CPython {version}." in told.stdout
