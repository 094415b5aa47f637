"""Every block of every page: commands write the output that is shown, files can be read.

A page is played from its top in a new folder that contains the README's `example.py`. The
commands and their output are in `build/transcripts` afterwards.
"""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import esg.settings.sources
from esg.settings.build import Raw
from tests.support.runner import CHECKOUT

from .pages import PAGES, PROMPT, Block, Command, blocks, excused, steps
from .terminal import Terminal

TRANSCRIPTS = CHECKOUT / "build" / "transcripts"

NOT_HERE = frozenset(
    (
        *("apt", "apt-get", "pip", "pip3", "pipx", "uv", "git", "ssh"),
        *("docker", "docker-compose", "helm", "kubectl", "podman"),
        *("certbot", "haproxy", "logrotate", "nginx", "sudo", "useradd"),
        *("circusctl", "circusd", "journalctl", "reboot", "service", "supervisorctl"),
        *("supervisord", "systemctl", "systemd-notify"),
        *("killall", "pgrep", "pkill"),
    )
)
"""Commands that a test must not run: they install, need root, or affect other processes."""

BLOCKS = {page: blocks(page) for page in PAGES}
LOOKED_INTO = [block for page in PAGES for block in BLOCKS[page] if block.excuse is None]


SEARCHED = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
"""The folders in which programs are looked for."""

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
OURS = PROJECT["scripts"]


def name(value: Any) -> str:
    return str(value.relative_to(CHECKOUT)) if isinstance(value, Path) else value.place


# -- what a block must be ----------------------------------------------------------------


def read_toml(block: Block) -> None:
    """Settings of ESG. TOML for another program has to be marked."""
    table = tomllib.loads(block.text)
    settings = table["tool"]["esg"] if "tool" in table else table
    assert settings, "no settings"
    app = {} if "app" in settings else {"app": Raw("example:app", "APP")}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "pyproject.toml" if "tool" in table else "esg.toml")
        file.write_text(block.text)
        esg.settings.sources.load(app, {}, file=str(file), folder=Path(folder))


def read_ini(block: Block) -> None:
    """Files of systemd, supervisor and circus, in which names may occur several times."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    parser.read_string(block.text)
    assert parser.sections()


def read_python(block: Block) -> None:
    compile(block.text, block.place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def read_shell(block: Block) -> None:
    """A script is a file; commands to type are `console`."""
    assert block.title, "a script needs a title; commands to type are a console block"
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


def read_text(block: Block) -> None:
    """Text that isn't typed."""
    assert PROMPT not in [line[:2] for line in block.lines], "commands are a console block"


def read_console(block: Block) -> None:
    for step in steps(block):
        if isinstance(step, Command):
            firsts = re.findall(r"(?:^|[|;&(]|\$\()\s*(?:\w+=\S* )*([\w.-]+)", step.text)
            for first in firsts:
                assert first not in NOT_HERE, f"{first} can't be run in a test; mark the block"


READERS: dict[str, Callable[[Block], object]] = {
    "console": read_console,
    "ini": read_ini,
    "json": lambda block: json.loads(block.text),
    "python": read_python,
    "sh": read_shell,
    "text": read_text,
    "toml": read_toml,
    "yaml": lambda block: list(yaml.safe_load_all(block.text)),
}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_can_be_read(page):
    wrong = []
    for block in BLOCKS[page]:
        if block.excuse is None:
            reader = READERS.get(block.language)
            if reader is None:
                wrong.append(f"{block.place}: {block.language or 'no language'!r} must be marked")
                continue
            try:
                reader(block)
            except Exception as error:  # noqa: BLE001 - each reader has its own
                wrong.append(f"{block.place}: {str(error).splitlines()[0]}")
    assert not wrong, "\n".join(wrong)


# -- the commands ------------------------------------------------------------------------


def played(page: Path) -> list[Block]:
    """The blocks of a page that create files or run commands."""
    return [
        block
        for block in BLOCKS[page]
        if block.excuse is None and (block.language == "console" or block.title)
    ]


@pytest.fixture
def terminal(request, tmp_path):
    page: Path = request.getfixturevalue("page")
    if missing(page):
        pytest.skip(f"needs {', '.join(missing(page))}")
    text = "".join(block.text for block in played(page))
    folder = tmp_path / "folder"
    folder.mkdir()
    terminal = Terminal(folder, text)
    for block in BLOCKS[CHECKOUT / "README.md"]:
        example = re.search(r"cat > (example\.py) <<EOF\n(.*?)\nEOF", block.text, re.DOTALL)
        if example:
            terminal.write(example[1], f"{example[2]}\n")
    if re.search(r"^\$ make ", text, re.MULTILINE):
        as_checkout(folder)
    yield terminal
    terminal.close()
    TRANSCRIPTS.mkdir(parents=True, exist_ok=True)
    file = "-".join(page.relative_to(CHECKOUT).with_suffix(".txt").parts)
    (TRANSCRIPTS / file).write_text(terminal.transcript)


def missing(page: Path) -> list[str]:
    """Programs that a page uses and that this machine lacks."""
    first = [
        step.text.split()[0]
        for block in played(page)
        if block.language == "console"
        for step in steps(block)
        if isinstance(step, Command)
    ]
    names = [name for name in dict.fromkeys(first) if re.fullmatch(r"[a-z][\w.-]*", name)]
    unknown = 'for name; do type -t -- "$name" >/dev/null || echo "$name"; done'
    command = ["bash", "-c", unknown, "bash", *names]
    found = subprocess.run(command, env={"PATH": SEARCHED}, stdout=subprocess.PIPE, text=True)
    return [name for name in found.stdout.split() if name not in OURS]


def as_checkout(folder: Path) -> None:
    """Make the folder look like a clone after its first `make`, without installing."""
    for name in ("Makefile", "pyproject.toml", "esg"):
        (folder / name).symlink_to(CHECKOUT / name)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python").chmod(0o755)
    (programs / "esg").symlink_to(folder.parent / "bin" / "esg")
    (programs / "activate").write_text(f"export PATH={programs}:$PATH\n")
    for stamp in (".run", ".test"):
        (folder / ".venv" / stamp).touch()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "console" for b in played(page))], ids=name
)
def test_commands_do_what_the_page_says(page, terminal):
    for block in played(page):
        if block.title and block.language != "console":
            if not block.title.startswith("/"):
                terminal.write(block.title, block.text)
        else:
            terminal.play(block)
    terminal.finish()


# -- blocks that no test reads -----------------------------------------------------------


def test_every_block_that_is_not_tested_has_a_reason():
    """`python -m tests.docs.pages` lists them."""
    wrong = []
    for block in excused():
        named = re.findall(r"tests/[\w./-]+\w", block.excuse)
        if len(block.excuse) < 10 or not all((CHECKOUT / path).exists() for path in named):
            wrong.append(f"{block.place}: {block.excuse!r}")
    assert wrong == []


def test_the_extras_that_pages_name_exist():
    named = {
        extra.strip()
        for page in PAGES
        for extras in re.findall(r"\besg(?:-server)?\[([\w, ]+)\]", page.read_text())
        for extra in extras.split(",")
    }
    assert named
    assert named <= set(PROJECT["optional-dependencies"])
