from __future__ import annotations

import importlib
import shutil
import subprocess
import sys

import pytest

from esg.server import packages
from esg.settings.schema import Config
from tests.support.runner import environment


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that installs a version of a package, which ESG and an application share."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(packages, "SHARED", {"shared": "shared_user"})
    monkeypatch.setattr(packages, "_imported", {})
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "shared_user.py").write_text("from shared.part import VERSION")

    def install(version):
        """Replace the package as pip does: its files are new ones."""
        shutil.rmtree(tmp_path / "shared", ignore_errors=True)
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared" / "__init__.py").write_text(f"# of version {version}")
        (tmp_path / "shared" / "part.py").write_text(f"VERSION = {version!r}")
        importlib.invalidate_caches()

    yield install
    for name in ("shared", "shared.part", "shared_user"):
        sys.modules.pop(name, None)


def imported():
    return importlib.import_module("shared_user"), importlib.import_module("shared.part")


def test_a_replaced_package_is_imported_again_with_the_one_that_uses_it(installed):
    installed("1")
    imported()
    packages.import_packages(Config(app="test:app"))
    installed("1.1")
    packages.forget_replaced()
    assert [module.VERSION for module in imported()] == ["1.1", "1.1"]


def test_a_package_that_was_removed_is_forgotten(installed, tmp_path):
    installed("1")
    imported()
    packages.import_packages(Config(app="test:app"))
    shutil.rmtree(tmp_path / "shared")
    packages.forget_replaced()
    with pytest.raises(ImportError):
        imported()


def test_a_package_that_is_unchanged_is_kept(installed):
    installed("1")
    before = imported()
    packages.import_packages(Config(app="test:app"))
    packages.forget_replaced()
    assert imported() == before


def test_a_package_that_cannot_be_imported_is_left_to_the_workers(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)  # an import of it raises ImportError
    monkeypatch.setitem(sys.modules, "httptools", None)
    packages.import_packages(Config(app="test:app", loop="uvloop", http="httptools"))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, {"uvloop", "httptools", "websockets.server"}),
        ({"loop": "asyncio", "http": "h11", "ws": "none"}, {"h11"}),
        ({"ws": "wsproto"}, {"uvloop", "httptools", "wsproto", "h11"}),
    ],
)
def test_only_packages_that_the_settings_select_are_imported(settings, names):
    code = (
        "import sys\n"
        "from esg.server.packages import import_packages\n"
        "from esg.settings.schema import Config\n"
        f"import_packages(Config(app='a:b', **{settings!r}))\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    every = {"uvloop", "httptools", "h11", "websockets.server", "wsproto"}
    assert every & set(done.stdout.split()) == names
