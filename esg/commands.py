"""What `esgctl` and the arbiter say to each other over the control socket. Knows neither.

A connection carries one request and one answer, each a line of JSON in ASCII:

    {"command": "reload"}
    {"ok": true, "text": "reloaded gen=2 workers=4", "detail": ""}
"""

from __future__ import annotations

import dataclasses
import json

COMMANDS = ("reload",)

REQUEST_LIMIT = 4096
"""Bytes that a request may have."""

DETAIL_LIMIT = 16 * 1024
"""Characters of a detail that are sent; of a longer one the end is kept."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended. `text` is one line; `detail` is longer, such as a traceback.

    `stopping` means that the arbiter was told to stop before the command was finished.
    """

    ok: bool
    text: str
    detail: str = ""
    stopping: bool = False


def encode_request(command: str) -> bytes:
    """The line that asks for a command."""
    return _line({"command": command})


def decode_request(line: bytes) -> str:
    """The command that a line asks for. Raises ValueError, whose text says what would work."""
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
    """The line that an answer is sent as."""
    fields = dataclasses.asdict(answer) | {"detail": answer.detail[-DETAIL_LIMIT:]}
    if not answer.stopping:
        del fields["stopping"]
    return _line(fields)


def decode_answer(line: bytes) -> Answer:
    """The answer in a line. Raises ValueError for one that is none."""
    try:
        answer = Answer(**json.loads(line))
        if [type(value) for value in dataclasses.astuple(answer)] != [bool, str, str, bool]:
            raise TypeError
        return answer
    except (ValueError, TypeError, RecursionError):
        raise ValueError("the answer can't be read; is it from another version of ESG?") from None


def _line(fields: dict[str, object]) -> bytes:
    return json.dumps(fields).encode("ascii") + b"\n"
