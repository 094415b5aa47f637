r"""The corpus: requests as bytes, and their expected results, each in a file in `cases/`.

A file begins with lines `# key: value` about the case:

    section   the section of the RFC with the rule
    reason    what the case is about
    expect    the statuses of the responses, then `close` or `open`: the connection's state
    seen      method, target, version and body of a request that the application gets whole,
              and after ` | ` a field that is among its headers; a line for each request
    unfinished  requests that the application may begin to read, and never gets whole
    without   names of fields that must not be among the headers
    httptools, seen by httptools  the same as `expect` and `seen`, where the parsers differ

`3*` before a status or a request stands for three of them. The bytes follow. Line ends of the file
are ignored; \r, \n, \t, \0, \\ and \xHH are bytes, and \{3*x} is x three times.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable

from tests.support.stage import Verdict

_FOLDER = pathlib.Path(__file__).with_name("cases")
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|\{([0-9]+)\*((?:[^}\\]|\\[^{])*)\}|([rnt0\\]))")
_NAMED = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}
_TIMES = re.compile(r"([0-9]+)\*(.*)")


@dataclasses.dataclass(frozen=True)
class Seen:
    """A request that the application gets whole."""

    method: str
    target: bytes
    version: str
    body: bytes
    field: bytes = b""


@dataclasses.dataclass(frozen=True)
class Expected:
    """The expected result of a case."""

    statuses: tuple[int, ...]
    closed: bool
    seen: tuple[Seen, ...]


@dataclasses.dataclass(frozen=True)
class Case:
    """One file of the corpus."""

    name: str
    data: bytes
    section: str
    expected: Expected
    expected_of_httptools: Expected
    unfinished: int
    without: tuple[bytes, ...]

    def check(self, verdict: Verdict, parser: str) -> None:
        """Assert that the bytes had the expected result."""
        expected = self.expected_of_httptools if parser == "httptools" else self.expected
        assert verdict.statuses == expected.statuses
        assert verdict.closed is expected.closed
        assert len(verdict.requests) == len(expected.seen)
        for request, seen in zip(verdict.requests, expected.seen, strict=True):
            target = request.raw_path + (b"?" + request.query if request.query else b"")
            assert Seen(request.method, target, request.version, request.body, seen.field) == seen
            if seen.field:
                assert tuple(seen.field.split(b": ")) in request.headers
            assert not {name for name, _ in request.headers} & set(self.without)


def _unescape(text: str) -> bytes:
    """The bytes of an escaped text."""
    data, at = b"", 0
    for match in _ESCAPE.finditer(text):
        data += text[at : match.start()].encode("ascii")
        code, times, repeated, name = match.groups()
        if times:
            data += _unescape(repeated) * int(times)
        else:
            data += bytes.fromhex(code) if code else _NAMED[name]
        at = match.end()
    return data + text[at:].encode("ascii")


def _repeated(text: str) -> list[str]:
    match = _TIMES.fullmatch(text)
    return [match[2]] * int(match[1]) if match else [text]


def _seen(text: str) -> Seen:
    text, _, field = text.partition(" | ")
    method, target, version, body = (*text.split(" ", 3), "")[:4]
    return Seen(method, _unescape(target), version, _unescape(body), field.encode())


def _expected(expect: str, seen: list[str]) -> Expected:
    *statuses, state = expect.split()
    assert state in ("open", "close")
    return Expected(
        tuple(int(status) for text in statuses for status in _repeated(text)),
        state == "close",
        tuple(_seen(request) for text in seen for request in _repeated(text)),
    )


def _read(path: pathlib.Path) -> Case:
    known: dict[str, list[str]] = {}
    lines = path.read_text("ascii").splitlines()
    while lines and lines[0].startswith("# "):
        key, _, value = lines.pop(0)[2:].partition(": ")
        known.setdefault(key, []).append(value)

    def one(key: str, default: str = "") -> str:
        (value,) = known.pop(key, [default])
        return value

    expect, seen = one("expect"), known.pop("seen", [])
    case = Case(
        path.stem,
        _unescape("".join(lines)),
        one("section"),
        _expected(expect, seen),
        _expected(one("httptools", expect), known.pop("seen by httptools", seen)),
        int(one("unfinished", "0")),
        tuple(name.encode() for name in one("without").split()),
    )
    assert one("reason"), path
    assert case.section, path
    assert not known, (path, known)
    return case


def cases(wanted: Callable[[Case], bool] = lambda _: True) -> list[Case]:
    """The whole corpus, by name."""
    return [case for case in map(_read, sorted(_FOLDER.glob("*.http"))) if wanted(case)]
