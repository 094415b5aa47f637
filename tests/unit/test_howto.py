"""The command lines on how-to pages and in files of deploy/, and timeouts that must match."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from esg import api, cli
from esg.settings.schema import SETTINGS, Config
from tests.support.certificates import Authority

CHECKOUT = Path(__file__).resolve().parents[2]
SHOWN = [
    "README.md",
    "docs/howto/nginx.md",
    "docs/howto/haproxy.md",
    "docs/howto/cdn.md",
    "deploy/nginx/esg.conf",
    "deploy/haproxy/haproxy.cfg",
]


def lines(name: str) -> list[str]:
    """The command lines of ESG that a file shows: in a table, a block or a comment."""
    text = re.sub(r"\\\n(?:# )?", "", (CHECKOUT / name).read_text())
    return re.findall(r"(?:^(?:#   |\$ )?|`)(esg example:app[^`|#\n]*)", text, re.MULTILINE)


@pytest.fixture
def settings_of(monkeypatch, tmp_path):
    """The settings that ESG derives from a line."""
    for declared in SETTINGS.values():
        for variable in declared.variables:
            monkeypatch.delenv(variable, raising=False)
    authority = Authority(tmp_path)
    certificate, key = authority.issue()
    Path(certificate).rename(tmp_path / "chain.pem")
    Path(key).rename(tmp_path / "key.pem")
    monkeypatch.chdir(tmp_path)
    made: list[Config] = []

    class Spy:
        def __init__(self, settings, payload, read_settings):
            made.append(settings.config)

        def run(self):
            return 0

    monkeypatch.setattr(api, "Arbiter", Spy)

    def read(line: str) -> Config:
        assert cli.main(shlex.split(line)[1:]) == 0
        return made.pop()

    return read


@pytest.mark.parametrize("name", SHOWN)
def test_the_command_lines_shown_are_accepted(settings_of, name):
    assert lines(name)
    for line in lines(name):
        settings_of(line)


def seconds(name: str, pattern: str) -> float:
    """The seconds after some words of a file, which must occur exactly once."""
    (found,) = re.findall(rf"^ *{pattern} (\d+)s;?$", (CHECKOUT / name).read_text(), re.MULTILINE)
    return float(found)


def test_nginx_is_the_first_to_close_an_idle_connection(settings_of):
    kept = seconds("deploy/nginx/esg.conf", "keepalive_timeout")
    for line in lines("deploy/nginx/esg.conf"):
        assert kept < settings_of(line).timeout_keep_alive


def test_haproxy_is_the_first_to_close_an_idle_connection(settings_of):
    kept = seconds("deploy/haproxy/haproxy.cfg", "timeout http-keep-alive")
    for line in [*lines("deploy/haproxy/haproxy.cfg"), lines("docs/howto/haproxy.md")[0]]:
        assert kept < settings_of(line).timeout_keep_alive


def test_quiet_websockets_are_left_open():
    ping = SETTINGS["ws_ping_interval"].default
    assert seconds("deploy/nginx/esg.conf", "proxy_read_timeout") > 2 * ping
    assert seconds("deploy/haproxy/haproxy.cfg", "timeout tunnel") > 2 * ping
