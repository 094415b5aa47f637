"""Reads the documentation's pages for tests: fenced blocks, and the lines of transcripts.

`python -m tests.docs.pages` lists every block that no test runs or reads, with the page's reason.
The rules for authors are in CONTRIBUTING.md.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.runner import CHECKOUT

PAGES = [
    *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((CHECKOUT / "bench").glob("*.md")),
    *sorted((CHECKOUT / "docs").rglob("*.md")),
]
"""Every page for users and contributors."""

_FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>.*)")
_TITLE = re.compile(r'title="([^"]+)"')
_MARK = re.compile(r"<!-- not run: *(.*?) *-->")
_AFRESH = "<!-- run afresh -->"


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    `excuse` is the page's reason why no test reads it. `afresh`: programs that earlier blocks have
    left running are stopped first.
    """

    page: Path
    line: int
    language: str
    title: str
    excuse: str | None
    afresh: bool
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)

    @property
    def place(self) -> str:
        """Its place, in a form that editors understand."""
        return f"{self.page.relative_to(CHECKOUT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return list(_blocks(page, page.read_text(encoding="utf-8").splitlines()))


def _blocks(page: Path, lines: list[str]) -> Iterator[Block]:
    numbered = iter(enumerate(lines, 1))
    above = ""
    for number, line in numbered:
        opening = _FENCE.fullmatch(line)
        if opening is None:
            above = line.strip() or above
            continue
        indent, fence = len(opening["indent"]), opening["fence"]
        inside = []
        for _, text in numbered:
            if text.strip() == fence:
                break
            inside.append(text[indent:] if not text[:indent].strip() else text)
        else:
            raise AssertionError(f"{page}:{number}: the block has no end")
        title, mark = _TITLE.search(opening["info"]), _MARK.fullmatch(above)
        yield Block(
            page,
            number,
            (opening["info"].split() or [""])[0],
            title[1] if title else "",
            mark[1] if mark else None,
            above == _AFRESH,
            tuple(inside),
        )
        above = ""


@dataclasses.dataclass(frozen=True)
class Command:
    """A typed command, and the output that the page shows."""

    text: str
    shown: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Meanwhile:
    """The output of the program that still runs in the foreground."""

    shown: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Interrupt:
    """Ctrl-C for that program, and its output after that."""

    shown: tuple[str, ...]


Step = Command | Meanwhile | Interrupt

PROMPT = "$ "
_INCOMPLETE = re.compile(r"unexpected (EOF|end of file)|delimited by end-of-file")


def steps(block: Block) -> list[Step]:
    """The steps of a `console` block."""
    found: list[Step] = []
    lines = list(block.lines)
    while lines:
        line = lines.pop(0)
        if line.startswith(PROMPT):
            text = _whole(line.removeprefix(PROMPT), lines)
            found.append(Command(text, _shown(lines)))
        elif line == "^C":
            found.append(Interrupt(_shown(lines)))
        else:
            lines.insert(0, line)
            found.append(Meanwhile(_shown(lines)))
    return found


def _whole(text: str, lines: list[str]) -> str:
    """A command with its further lines, for example of a heredoc."""
    while lines and _goes_on(text):
        text += "\n" + lines.pop(0)
    return text


def _goes_on(text: str) -> bool:
    """Whether bash would wait for another line."""
    check = subprocess.run(["bash", "-nc", text], stderr=subprocess.PIPE, text=True)
    return text.endswith("\\") or bool(_INCOMPLETE.search(check.stderr))


def _shown(lines: list[str]) -> tuple[str, ...]:
    shown = []
    while lines and not lines[0].startswith(PROMPT) and lines[0] != "^C":
        shown.append(lines.pop(0))
    return tuple(shown)


def excused() -> list[Block]:
    """The blocks that no test reads."""
    return [block for page in PAGES for block in blocks(page) if block.excuse is not None]


if __name__ == "__main__":
    for each in excused():
        print(f"{each.place}: {each.excuse}")  # noqa: T201
