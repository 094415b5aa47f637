"""The line that says what is served."""

from __future__ import annotations

import pytest

from esg import __version__ as version
from esg.introduction import introduction
from esg.mailbox import Serves
from esg.settings.schema import Config

SERVES = Serves("WSGI", "uvloop", "httptools")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def line(on_terminal=False, **settings):
    return introduction(Config(**settings), SERVES, on_terminal=on_terminal)


def test_it_names_everything_that_serves():
    text = f"esg {version} serves shop.wsgi (WSGI, uvloop, httptools), no settings file"
    assert line(app="shop.wsgi") == text


def test_it_says_on_a_terminal_how_to_stop():
    assert line(True, app="m:app").endswith("; press Ctrl-C to stop")


def test_a_name_of_the_service_does_not_hide_the_application():
    assert " serves m:app as shop (" in line(app="m:app", name="shop")


def test_files_without_settings_are_not_named(folder):
    toml, project, env = str(folder / "esg.toml"), str(folder / "pyproject.toml"), "/etc/shop.env"
    files, gaps = (toml, project, env), {toml: "is missing", env: ""}
    text = line(app="m:app", files=files, gaps={**gaps, project: ""})
    assert text.endswith(", settings from pyproject.toml and /etc/shop.env")
    assert line(app="m:app", files=files, gaps=gaps).endswith(", settings from /etc/shop.env")
