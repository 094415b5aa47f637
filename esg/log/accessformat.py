"""Formats of access log lines: the grammar of `--access-logformat`, which is gunicorn's.

An atom is `%(NAME)s`, with printf's flags, width and precision between the parenthesis and the `s`.
`%%` is a percent sign. `server/accesslog/access_log.py` has the value of each atom for a request.
"""

from __future__ import annotations

import difflib
import re

from esg.frozen import frozen

ATOMS = {
    "h": "the client's address",
    "l": "a dash",
    "u": "the user of Basic authentication",
    "t": "the time at which the response ended, as in [21/Nov/2026:09:52:58 +0000]",
    "r": "the request line",
    "m": "the method",
    "U": "the path, decoded",
    "q": "the query string",
    "H": "the protocol, as in HTTP/1.1",
    "s": "the status",
    "B": "bytes of response body",
    "b": "bytes of response body, as text",
    "f": "the Referer field",
    "a": "the User-Agent field",
    "T": "the duration in whole seconds",
    "M": "the duration in whole milliseconds",
    "D": "the duration in microseconds",
    "L": "the duration in seconds, with six decimals",
    "p": "the worker's process id, as in <4711>",
}
"""Atoms without a parameter, with gunicorn's order and meaning."""

NUMBERS = frozenset("sBTMD")
"""Atoms whose value is a number; they may end in `d` instead of `s`."""

PRESETS = {
    "common": '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s',
    "combined": '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"',
}
"""Formats with a name: Apache's two, of which `combined` is gunicorn's default."""

UVICORN = "uvicorn"
"""The name of uvicorn's format. Atoms can't express it, because it has the reason phrase."""

_WORDS = {
    "host": "h", "client": "h", "user": "u", "time": "t", "request": "r", "method": "m",
    "path": "U", "query": "q", "protocol": "H", "status": "s", "bytes": "B", "size": "B",
    "referer": "f", "agent": "a", "duration": "D", "seconds": "L", "pid": "p",
}  # fmt: skip
"""Words that people may write instead of an atom's letter."""

_PIECE = re.compile(
    r"%(?:(?P<percent>%)|"
    r"\((?:\{(?P<field>[^{}()]+)\}(?P<where>[a-zA-Z])|(?P<atom>[^{}()]*))\)"
    r"(?P<flags>[-#0 +]*[0-9]*(?:\.[0-9]+)?)(?P<kind>[a-zA-Z]))"
)


@frozen
class Atom:
    """One value in a line. `field` is the parameter of `{field}i` in lower case, or empty."""

    name: str
    field: str = ""


def parse(text: str) -> tuple[str, tuple[Atom, ...]]:
    """A template for printf-style formatting, and the atoms for its values, in order.

    `text` is a format, or the name of a preset. Raises ValueError for a format without atoms or
    with an unknown atom.
    """
    text = PRESETS.get(text.strip(), text)
    template, atoms, end = "", [], 0
    for match in _PIECE.finditer(text):
        template += _literal(text[end : match.start()])
        end = match.end()
        if match["percent"]:
            template += "%%"
        else:
            atoms.append(_atom(match))
            template += f"%{match['flags']}{match['kind']}"
    template += _literal(text[end:])
    if not atoms:
        names = f"{', '.join(PRESETS)} or {UVICORN}"
        raise ValueError(f"expected atoms such as %(h)s, or the name of a format: {names}")
    return template, tuple(atoms)


def _literal(text: str) -> str:
    if "%" in text:
        raise ValueError(
            f"expected an atom such as %(h)s, or %%, at {text[text.index('%') :][:12]!r}"
        )
    return text


def _atom(match: re.Match[str]) -> Atom:
    whole, name, field, kind = match[0], match["atom"], match["field"], match["kind"]
    if field:
        if match["where"] not in ("i", "o", "e"):
            raise ValueError(f"unknown atom {whole!r}; a name in braces is followed by i, o or e")
        atom = Atom(match["where"], field.lower())
    elif name in ATOMS:
        atom = Atom(name)
    else:
        raise ValueError(f"unknown atom {whole!r}{_hint(name)}; there are {' '.join(ATOMS)}")
    if kind != "s" and (kind != "d" or atom.field or atom.name not in NUMBERS):
        raise ValueError(f"{whole!r} must end in s" + (" or d" if atom.name in NUMBERS else ""))
    return atom


def _hint(name: str) -> str:
    words = difflib.get_close_matches(name.lower(), _WORDS, 1)
    swapped = name.swapcase()
    meant = _WORDS[words[0]] if words else swapped if swapped in ATOMS else ""
    return f" (did you mean %({meant})s?)" if meant else ""
