"""Settings as text: the output of `--print-config`, and the reference page."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest

from esg.cli import command
from esg.settings import report
from esg.settings.build import Raw, build
from esg.settings.schema import SETTINGS, Config
from esg.settings.sources import load

REFERENCE = Path(__file__).parents[3] / "docs" / "settings.md"


def printed(**values):
    raw = {"app": Raw("example:app", "APP")} | values
    return "\n".join(report.lines(build(raw)))


def line_of(text, name):
    (line,) = (line for line in text.splitlines() if line.lstrip("# ").split(" =")[0] == name)
    return line


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_printed_with_its_origin(name):
    line = line_of(printed(), name)
    assert line.endswith("# command line APP" if name == "app" else "# default")


@pytest.mark.parametrize(
    ("origin", "shown"),
    [
        ("--port", "# command line --port"),
        ("environment PORT", "# environment PORT"),
        ("esg.toml: port", "# esg.toml: port"),
        ("argument port", "# argument port"),
    ],
)
def test_the_origin_of_a_value_is_next_to_it(origin, shown):
    line = line_of(printed(port=Raw("9000", origin)), "port")
    assert line.startswith("port = 9000 ")
    assert line.endswith(shown)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"bind": ["a:1", "[::1]:2"]},
        {"host": "::", "port": 0, "workers": 4, "timeout": 2.5, "debug": True},
        {"name": 'a "quoted" \\ \x7f \U0001f600', "header": ["X-A: b, c", "X-B: \xe9"]},
    ],
    ids=["defaults", "bind", "host", "text"],
)
def test_the_printed_settings_are_a_file_with_the_same_settings(tmp_path, values):
    config = build({"app": Raw("example:app", "APP")} | {k: Raw(v, k) for k, v in values.items()})
    path = tmp_path / "esg.toml"
    path.write_text("\n".join(report.lines(config)), encoding="utf-8")
    tomllib.loads(path.read_text(encoding="utf-8"))
    assert load({}, {}, folder=tmp_path) == config


def test_a_password_is_not_printed():
    text = "\n".join(report.lines(Config(app="example:app", ssl_keyfile_password="sesame")))
    assert "sesame" not in text
    assert line_of(text, "ssl_keyfile_password").split()[2] == f'"{report.MASK}"'


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "on"), (False, "off"), (None, ""), (("a", "b"), "a,b"), (5.0, "5"), (7, "7"), ("", "")],
)
def test_values_are_shown_as_on_the_command_line(value, text):
    assert report.plain(value) == text


def test_the_reference_has_every_option_of_the_command():
    shown = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", REFERENCE.read_text(encoding="utf-8")))
    options = command.get_params(click.Context(command, **command.context_settings))
    names = {flag for each in options if isinstance(each, click.Option) for flag in each.opts}
    assert names - shown == set()


def test_the_reference_is_up_to_date():
    assert REFERENCE.read_text() == report.reference(), "run: make docs"


@pytest.mark.parametrize("declared", SETTINGS.values(), ids=SETTINGS)
def test_the_reference_has_every_setting(declared):
    text = report.reference()
    assert declared.help in text
    assert f"`{declared.variables[0]}`" in text
