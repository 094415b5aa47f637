"""The messages between `esgctl` and the arbiter on the control socket. Imports neither of them.

A connection carries one request and one answer, each a line of JSON in ASCII:

    {"command": "reload"}
    {"ok": true, "text": "reloaded gen=2 workers=4", "detail": ""}
"""

from __future__ import annotations

import dataclasses
import json

from esg.frozen import frozen

COMMANDS = ("reload",)

REQUEST_LIMIT = 4096
"""The most bytes of a request."""

DETAIL_LIMIT = 16 * 1024
"""The most characters of a detail; if it is longer, only its end is sent."""


@frozen
class Answer:
    """The outcome of a command. `text` is one line; `detail` is longer, such as a traceback.

    `stopping` means that the arbiter was told to stop before the command was finished.
    """

    ok: bool
    text: str
    detail: str = ""
    stopping: bool = False


def encode_request(command: str) -> bytes:
    """The line that requests a command."""
    return _line({"command": command})


def decode_request(line: bytes) -> str:
    """The command that a line requests. Raises ValueError with a text that says what would work."""
    try:
        command = json.loads(line)["command"]
        if not isinstance(command, str):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError('expected a line such as {"command": "reload"}') from None
    if command not in COMMANDS:
        raise ValueError(f"unknown command {command!r}; known: {', '.join(COMMANDS)}")
    return command


def encode_answer(answer: Answer) -> bytes:
    """An answer as a line to send."""
    fields = dataclasses.asdict(answer) | {"detail": answer.detail[-DETAIL_LIMIT:]}
    if not answer.stopping:
        del fields["stopping"]
    return _line(fields)


def decode_answer(line: bytes) -> Answer:
    """The answer in a line. Raises ValueError if the line isn't an answer."""
    try:
        answer = Answer(**json.loads(line))
        if [type(value) for value in dataclasses.astuple(answer)] != [bool, str, str, bool]:
            raise TypeError
        return answer
    except (ValueError, TypeError, RecursionError):
        raise ValueError("the answer can't be read; is it from another version of ESG?") from None


def _line(fields: dict[str, object]) -> bytes:
    return json.dumps(fields).encode("ascii") + b"\n"
