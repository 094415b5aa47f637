"""The commands of docs/howto/blue-green.md, run as the page shows them, under load."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.app import application
from tests.support.front import nginx, nginx_options, program
from tests.support.load import Load
from tests.support.runner import CHECKOUT, Esg
from tests.support.waiting import eventually

Start = Callable[..., Esg]

PAGE = (CHECKOUT / "docs/howto/blue-green.md").read_text()


def blocks(language: str) -> list[str]:
    """The blocks in this language that the page shows."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The commands that each console of the page shows, without the prompt."""
    return [re.sub(r"^\$ ", "", text, flags=re.MULTILINE) for text in blocks("console")]


def changed(text: str, values: dict[str, str]) -> str:
    """A text with values replaced for the test; each of them must be in the text."""
    for written, meant in values.items():
        assert written in text, written
        text = text.replace(written, meant)
    return text


def shell(line: str, folder: Path) -> None:
    done = subprocess.run(["sh", "-ec", line], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, (line, done.stdout, done.stderr)


def test_a_reload_serves_the_release_that_the_link_leads_to(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    for number in ("1", "2"):
        (folder / "releases" / number).mkdir(parents=True)
        (folder / "releases" / number / "example.py").write_text(application(number))
    (folder / "current").symlink_to("releases/1")
    esg = Esg(folder, "--app-dir", "current", "--pid", "esg.pid")
    try:
        esg.wait_for_log("serving workers=")
        assert esg.whoami()["version"] == "1"
        link, reload = commands()[0].splitlines()
        shell(link, folder)
        before = esg.workers()
        esg.claim("died: killed by SIGKILL")
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: esg.workers() not in ([], before), "another worker takes its place")
        esg.wait_for_log(" ready", count=2)
        assert esg.whoami()["version"] == "1"  # the release of its generation
        shell(reload, folder)
        esg.wait_for_log(" reloaded workers=")
        assert esg.whoami()["generation"] == 2
        assert esg.whoami()["version"] == "2"
    finally:
        esg.stop()


def test_a_switch_loses_nothing(start: Start, tmp_path: Path) -> None:
    program("curl")
    running: dict[str, Esg] = {}

    def colour(name: str, version: str) -> None:
        """What `systemctl start esg@NAME` does, with the file that the page shows."""
        values = {
            "app_dir = ": "#",
            "/run/esg-green/web": str(tmp_path / name),
            "drain_delay = 5": "drain_delay = 2",
        }
        file = {f"{name}.toml": changed(blocks("toml")[0], values)}
        listen = ("-c", f"{name}.toml")
        running[name] = start(listen=listen, files=file, source=application(version))
        server = changed(blocks("nginx")[0], {"/run/esg-green/web": str(tmp_path / name)})
        (tmp_path / f"esg-{name}").write_text(server)

    colour("blue", "old")
    (tmp_path / "esg-live").symlink_to(tmp_path / "esg-blue")
    values = {
        "/run/esg-green/web": str(tmp_path / "green"),
        "/etc/nginx": str(tmp_path),
        "example.org/healthz": "example.org/whoami",
        "nginx -": f"nginx {' '.join(nginx_options(tmp_path))} -",
    }
    include = changed("include /etc/nginx/esg-live;", {"/etc/nginx": str(tmp_path)})
    assert "`include /etc/nginx/esg-live;`" in PAGE
    with nginx(tmp_path, {"server 127.0.0.1:8000;": include}) as (front, _):
        assert front.get("/whoami")["version"] == "old"
        # At a reload nginx closes idle connections of its clients, so these clients don't keep any.
        with Load(front.port, tls=front.tls, fresh=3, slow=1, reconnect=True) as load:
            for line in changed(commands()[1], values).splitlines():
                if line == "systemctl start esg@green":
                    colour("green", "new")
                elif line == "systemctl stop esg@blue":
                    running["blue"].signal(signal.SIGTERM)
                    assert running["blue"].wait() == 0
                else:
                    shell(line, tmp_path)
            load.wait_until_answered("fresh", 20)
            assert front.get("/whoami")["version"] == "new"
    running["green"].signal(signal.SIGQUIT)


@pytest.mark.parametrize("language", ["console", "toml", "nginx"])
def test_the_page_has_the_blocks_that_these_tests_run(language: str) -> None:
    assert len(blocks(language)) == {"console": 2, "toml": 1, "nginx": 1}[language]
