"""The reference pages and the code agree: they list what exists, and nothing else."""

from __future__ import annotations

import inspect
import json
import logging
import re
import signal

import esg
from esg import errors
from esg.log.records import TRACE, JSONFormatter
from esg.supervisor.signals import HANDLED
from tests.support.runner import CHECKOUT

DOCS = CHECKOUT / "docs"
SOURCES = "".join(path.read_text() for path in sorted((CHECKOUT / "esg").rglob("*.py")))
LITERALS = re.sub(r'"\s*\n\s*f?"', "", SOURCES)
"""The code, with each string literal in one piece."""


def section(page: str, title: str) -> str:
    """The text of a heading's section, with its subsections."""
    text = (DOCS / page).read_text()
    match = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1? ?#{{1,2}} |\Z)", text, re.M | re.S)
    assert match, title
    return match[2]


def first_cells(text: str) -> list[str]:
    return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:]


def test_the_documented_signals_are_the_handled_ones():
    named = set(
        re.findall(r"`([A-Z0-9]+)`", "".join(first_cells(section("signals.md", "Signals"))))
    )
    assert {signal.Signals[f"SIG{name}"] for name in named} == set(HANDLED) - {signal.SIGCHLD}


def test_the_documented_exit_codes_are_those_of_the_errors():
    codes = {int(cell) for cell in first_cells(section("signals.md", "Exit codes"))}
    classes = [each for _, each in inspect.getmembers(errors, inspect.isclass)]
    raised = {each.exit_code for each in classes if issubclass(each, errors.ESGError)}
    assert codes == {0} | raised


def test_events_are_in_the_code():
    events = re.findall(
        r"^\| (?:arbiter|worker) \| \w+ \| (.*?) \| ", section("logging.md", "Events"), re.M
    )
    assert len(events) > 20
    for event in re.findall(r"`([^`]+)`", "".join(events)):
        for piece in re.split(r"\b[A-Z]+\b", event):
            assert piece.strip(" :") in LITERALS, event


def test_every_line_of_the_supervisor_is_among_the_events():
    listed = section("logging.md", "Events")
    level = r'(?:logging\.(?!DEBUG)\w+|"\w+"),\s*'
    calls = rf"\b(?:(?:_log|_out\.log)\(\s*{level}|_journal\.(?:(?:info|error)\(|log\(\s*{level}))"
    logged = re.findall(rf'{calls}\s*f?"([^"]*)"', LITERALS)
    assert len(logged) > 25
    for event in logged:
        for piece in re.split(r"\{.*?\}|MODULE:ATTRIBUTE", event):
            assert piece.strip(" :") in listed, event


def test_the_documented_fields_of_json_requests_are_complete():
    where = (CHECKOUT / "esg" / "server" / "accesslog" / "access_log.py").read_text()
    made = re.findall(r'^            "(\w+)": |fields\["(\w+)"\] = ', where, re.M)
    made_names = {one or other for one, other in made}
    table = section("logging.md", "JSON")
    assert set(re.findall(r"`(\w+)`", "".join(first_cells(table)))) - {"exception"} == made_names


def test_the_documented_levels_are_those_of_the_log():
    grammar = section("logging.md", "The log's grammar")
    names = [logging.getLevelName(level) for level in (TRACE, 10, 20, 30, 40, 50)]
    assert all(f'"{name:<8}"' in grammar for name in names)


def test_the_documented_fields_of_json_records_are_complete():
    table = section("logging.md", "JSON")
    cells = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    listed = [
        name
        for names, where in cells
        for name in re.findall(r"`(\w+)`", names)
        if where.strip() in ("both", "the log")
    ]
    record = logging.makeLogRecord({"name": "esg", "msg": "x", "exc_text": "trace"})
    assert listed == list(json.loads(JSONFormatter().format(record)))


def test_the_python_interface_is_documented_completely():
    headings = re.findall(r"^## esg\.(\w+)\(", (DOCS / "api.md").read_text(), re.M)
    assert sorted(headings) == sorted(set(esg.__all__) - {"__version__", "WorkerInfo"})


def test_hints_name_packages_of_the_index():
    """`esg` on the package index is another project, and `esg-server` isn't published yet."""
    assert "pip install" in SOURCES
    assert re.findall(r"pip install '?esg", SOURCES) == []
