"""The page that explains log lines and the code contain the same lines."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.support.runner import CHECKOUT

PAGE = (CHECKOUT / "docs" / "troubleshooting.md").read_text()
FILES = sorted((CHECKOUT / "esg").rglob("*.py"))
LITERALS = re.sub(r'"\s*\n\s*f?"', "", "".join(path.read_text() for path in FILES))
"""The code, with each string literal in one piece."""

OF_OTHERS = ("Task exception was never retrieved", "[Errno 24] Too many open files",
             "is not installed")  # fmt: skip
"""Messages of asyncio and the C library, and messages that are composed."""

_VARIES = r"%[-\d.]*[a-z]|\{\}|(?<![-_])\b[A-Z]+\b(?!_)"
"""Placeholders on the page or in the code."""

METHODS = ("warning", "error", "critical", "exception", "log_error", "_log_error", "complain")
"""Calls whose first argument is the text of a warning or an error."""

WITH_LEVEL = ("log", "_log", "write", "Log")
"""Calls that have the level as an argument."""

HIGH = {"warning", "error", "critical", "WARNING", "ERROR", "CRITICAL"}


def shown() -> list[str]:
    """The lines in the first column of the tables."""
    return re.findall(r"^\| `(.*?)` \|", PAGE, re.MULTILINE)


def pieces(line: str) -> list[str]:
    """The parts of a line; each is in one literal of the code."""
    found = re.split(_VARIES + r"|: |, |; | from | than |(?<=returned) ", line)
    return [piece.strip(" :=();") for piece in found if len(piece.strip(" :=();")) > 6]


def logged() -> Iterator[str]:
    """The literal warnings and errors in the code; `{}` replaces variable parts."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and is_high(node):
                yield from filter(None, map(literal, node.args))


def is_high(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", "")
    levels = {getattr(each, "attr", getattr(each, "value", None)) for each in call.args}
    return name in METHODS or (name in WITH_LEVEL and any(level in HIGH for level in levels))


def literal(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        parts = (getattr(part, "value", "") for part in node.values)
        return "".join(part if isinstance(part, str) else "{}" for part in parts)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_lines_on_the_page_are_in_the_code():
    lines = [line for line in shown() if not any(words in line for words in OF_OTHERS)]
    assert len(lines) > 60
    assert [line for line in lines for piece in pieces(line) if piece not in LITERALS] == []


def test_logged_warnings_and_errors_are_on_the_page():
    texts = [text for text in logged() if " " in text]
    assert len(texts) > 30
    page = "\n".join(shown())
    missing = []
    for text in texts:
        first = next(iter(pieces(text)), "")
        if first not in page:
            missing.append(text)
    assert missing == []
