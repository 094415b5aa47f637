"""The tables of docs/howto/from-*.md: every option of each program, and its equivalent in ESG."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import hypercorn.__main__
import hypercorn.config
import pytest
from granian.cli import cli as granian_command
from gunicorn.config import KNOWN_SETTINGS
from uvicorn.main import main as uvicorn_command

from esg.cli import command
from esg.settings.schema import SETTINGS

HOWTO = Path(__file__).parents[2] / "docs" / "howto"

OURS = {flag: p for p in command.params for flag in (*p.opts, *p.secondary_opts)}
"""The options of the `esg` command by their flags."""


@dataclasses.dataclass(frozen=True)
class Theirs:
    """An option of another program: its names in a row, and its default."""

    names: tuple[str, ...]
    default: Any = None
    takes_value: bool = True

    @property
    def flags(self) -> list[str]:
        return [name for name in self.names if name.startswith("-")]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table: the other program's names, ESG's equivalent if there is one, the
    difference."""

    names: tuple[str, ...]
    ours: str
    told: str
    gone: bool
    """Whether the newest release doesn't have it any more; the row says since when."""

    def __str__(self) -> str:
        return self.names[0]

    @property
    def flag(self) -> str:
        """The single flag of ESG that the row names, if there is one."""
        return self.ours if self.ours.startswith("-") else ""


def gunicorns() -> Iterator[Theirs]:
    """Its settings, by their flags, and by their names if these differ from the flags."""
    for known in KNOWN_SETTINGS:
        flags = tuple(known.cli or ())
        spelt = known.name in [flag.lstrip("-").replace("-", "_") for flag in flags]
        takes_value = known.action not in ("store_true", "store_const") and known.nargs != "?"
        yield Theirs(flags if spelt else (*flags, known.name), known.default, takes_value)


def clicks(other: click.Command) -> Iterator[Theirs]:
    for parameter in other.params:
        if isinstance(parameter, click.Argument):
            yield Theirs((str(parameter.name).upper(),))
        elif isinstance(parameter, click.Option):
            names = (*parameter.opts, *parameter.secondary_opts)
            default = parameter.default
            default = None if "UNSET" in repr(default) else getattr(default, "value", default)
            yield Theirs(names, default, not parameter.is_flag)


HYPERCORN_CALLS = {
    "access_logfile": "accesslog",
    "access_logformat": "access_log_format",
    "binds": "bind",
    "error_logfile": "errorlog",
    "keep_alive": "keep_alive_timeout",
    "log_config": "logconfig",
    "log_level": "loglevel",
    "pid": "pid_path",
    "reload": "use_reloader",
}
"""Its attributes for options with another name."""


class ParserSeenError(Exception):
    """Gets hypercorn's parser out of its main function."""


def hypercorns() -> Iterator[Theirs]:
    def seen(parser: argparse.ArgumentParser, *_: Any) -> Any:
        raise ParserSeenError(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", seen)
        with pytest.raises(ParserSeenError) as caught:
            hypercorn.__main__.main(["example:app"])
    (parser,) = caught.value.args
    defaults = hypercorn.config.Config()
    for action in parser._actions:
        if action.dest == "help":
            continue
        name = HYPERCORN_CALLS.get(action.dest, action.dest)
        default = None if name == "cert_reqs" else getattr(defaults, name, None)
        names = tuple(action.option_strings) or (action.dest,)
        yield Theirs(names, default, action.nargs != 0)


PEERS: dict[str, Callable[[], Iterator[Theirs]]] = {
    "gunicorn": gunicorns,
    "uvicorn": lambda: clicks(uvicorn_command),
    "hypercorn": hypercorns,
    "granian": lambda: clicks(granian_command),
}

OPTIONS = {peer: list(options()) for peer, options in PEERS.items()}


def rows_of(peer: str) -> list[Row]:
    """The table of a page that begins with `| PEER | ESG | what differs |`."""
    text = (HOWTO / f"from-{peer}.md").read_text()
    _, _, table = text.partition(f"| {peer} | ESG | what differs |\n| --- | --- | --- |\n")
    lines = table.partition("\n\n")[0].splitlines()
    return [_row(line) for line in lines]


def _row(line: str) -> Row:
    theirs, ours, told = (cell.strip() for cell in line.strip("|").split(" | "))
    return Row(
        names=tuple(re.findall(r"`([^`]+)`", theirs)),
        ours=ours.strip("`") if ours != "none" else "",
        told=told,
        gone=bool(re.search(r"\(before [\d.]+\)$", theirs)),
    )


ROWS = {peer: rows_of(peer) for peer in PEERS}


def each_row() -> list[Any]:
    return [pytest.param(peer, row, id=f"{peer} {row}") for peer in PEERS for row in ROWS[peer]]


def options_of(peer: str, row: Row) -> list[Theirs]:
    return [theirs for theirs in OPTIONS[peer] if set(theirs.names) & set(row.names)]


@pytest.mark.parametrize("peer", PEERS)
def test_every_option_is_in_the_table_once(peer: str) -> None:
    told = sorted(name for row in ROWS[peer] if not row.gone for name in row.names)
    assert told == sorted(name for theirs in OPTIONS[peer] for name in theirs.names)


@pytest.mark.parametrize("peer", PEERS)
def test_every_flag_on_a_page_exists(peer: str) -> None:
    theirs = {name for option in OPTIONS[peer] for name in option.names}
    text = (HOWTO / f"from-{peer}.md").read_text()
    told = set(re.findall(r"(?<=[` ])--[a-z0-9][a-z0-9_-]+", text))
    assert told - theirs - set(OURS) == set()


@pytest.mark.parametrize(("peer", "row"), each_row())
def test_a_row_describes_the_equivalent_of_an_option(peer: str, row: Row) -> None:
    if not row.ours:
        accepted = [name for name in row.names if name in OURS and f"`{name}`" not in row.told]
        assert accepted == [], "the row says that there is none"
        return
    assert re.match("the same|differs: |accepted and ignored", row.told)
    if row.flag:
        assert row.flag in OURS
        pending = getattr(SETTINGS.get(str(OURS[row.flag].name)), "pending", False)
        assert pending == ("refused in this version" in row.told)


@pytest.mark.parametrize(
    ("peer", "row"),
    [each for each in each_row() if re.match("the same|accepted and ignored", each.values[1].told)],
)
def test_options_with_the_same_meaning_are_accepted_under_their_names(peer: str, row: Row) -> None:
    if not row.flag:
        assert row.ours == "APP"
        return
    wanted = OURS[row.flag]
    for theirs in options_of(peer, row) or [Theirs(row.names)]:
        for flag in theirs.flags:
            assert OURS.get(flag) is wanted, f"{flag} isn't another name of {row.ours}"
            if wanted.expose_value:
                value = ["1"] if theirs.takes_value else []
                context = command.make_context("esg", ["example:app", flag, *value])
                given = context.params[str(wanted.name)]
                assert given not in (None, ()), flag


EFFECTIVE = {
    ("gunicorn", "--bind"): "",  # --host and --port set it
    ("hypercorn", "--bind"): "",
    ("hypercorn", "--cert-reqs"): "none",
    ("gunicorn", "--chdir"): "",  # this folder
    ("gunicorn", "--user"): "",  # the current user
    ("gunicorn", "--group"): "",
    ("gunicorn", "--cert-reqs"): "none",
    ("uvicorn", "--ssl-cert-reqs"): "none",
    ("uvicorn", "--ssl-version"): "1.2",  # the versions of Python's default context
    ("uvicorn", "--workers"): "1",
    ("uvicorn", "--log-level"): "info",
    ("uvicorn", "--h11-max-incomplete-event-size"): "16384",  # the default of h11
    ("granian", "--log-config"): "",
    ("gunicorn", "--log-file"): "-",
}
"""Defaults that have another name, or are computed where they are used."""


def default_of(peer: str, theirs: Theirs) -> str:
    for flag in theirs.flags:
        if (peer, flag) in EFFECTIVE:
            return EFFECTIVE[peer, flag]
    return plain(theirs.default)


def plain(value: Any) -> str:
    """A default as text; "" if it means nothing."""
    if value in (None, False, 0, (), [], "", "off"):
        return ""
    if isinstance(value, bool):
        return "on"
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(value) if isinstance(value, (list, tuple)) else str(value).lower()


@pytest.mark.parametrize(
    ("peer", "row"),
    [each for each in each_row() if each.values[1].flag and "ignored" not in each.id],
)
def test_a_different_default_is_mentioned(peer: str, row: Row) -> None:
    declared = SETTINGS.get(str(OURS[row.flag].name))
    if declared is None or declared.pending or not set(row.names) & set(declared.flags):
        return  # not a setting, or missing, or renamed with a hint
    ours = "" if declared.default == 0 else plain(declared.default)
    for theirs in options_of(peer, row):
        if default_of(peer, theirs) != ours:
            assert "default" in row.told, f"{default_of(peer, theirs)!r} there, {ours!r} here"
