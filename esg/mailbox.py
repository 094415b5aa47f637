"""Typed messages between the arbiter and a worker, over a socket pair that keeps their borders.

End of file on a mailbox means that the other side died: a worker's mailbox is its lifeline.
"""

from __future__ import annotations

import array
import dataclasses
import json
import logging
import os
import socket
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

logger = logging.getLogger("esg")

MESSAGE_LIMIT = 96 * 1024
"""Largest encoded message, in bytes; below the kernel's default send buffer (net.core.wmem)."""

MOST_AT_ONCE = 1000
"""Messages that are received in one call; who sends without end must not keep it from ending."""

TEXT_LIMIT = 32 * 1024
"""Longest text in a message, in bytes as encoded; of a longer one the end is kept."""


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """Worker to arbiter: booted, accepting."""


@dataclasses.dataclass(frozen=True, slots=True)
class BootFailed:
    """Worker to arbiter: can't boot. `exit_code` is what ESG should end with."""

    message: str
    detail: str
    exit_code: int


@dataclasses.dataclass(frozen=True, slots=True)
class Due:
    """Worker to arbiter: wants to be replaced, and goes on serving until then."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Draining:
    """Worker to arbiter: has begun to drain of its own accord."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Drain:
    """Arbiter to worker: finish what is in flight within `grace` seconds, then exit.

    `final`: nobody accepts after this worker, so it takes what the kernel's queues still hold;
    `dropped`: the addresses of which that is so, if not of all.
    """

    reason: str
    grace: float
    final: bool
    dropped: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class NewLogFiles:
    """Arbiter to worker: the log files of these paths were reopened; write to `fds` instead.

    The descriptors are copies, which the receiver has to close.
    """

    paths: list[str]
    fds: list[int] = dataclasses.field(default_factory=list, compare=False)


@dataclasses.dataclass(frozen=True, slots=True)
class ReloadFailed:
    """Arbiter to worker: code or settings that should have taken over could not, and why."""

    reason: str
    detail: str


@dataclasses.dataclass(frozen=True, slots=True)
class Watching:
    """Watcher to arbiter: changes in these folders are told of from now on."""

    what: str


@dataclasses.dataclass(frozen=True, slots=True)
class Changed:
    """Watcher to arbiter: these files have changed."""

    what: str


@dataclasses.dataclass(frozen=True, slots=True)
class CantWatch:
    """Watcher to arbiter: it can't go on."""

    reason: str


FromWorker = Ready | BootFailed | Due | Draining
FromWatcher = Watching | Changed | CantWatch
FromArbiter = Drain | NewLogFiles | ReloadFailed
Message = FromWorker | FromWatcher | FromArbiter


class MessageError(ValueError):
    """Bytes that are no message, or one that the other side has no business to send."""


_FDS_SPACE = socket.CMSG_SPACE(8 * array.array("i").itemsize)
"""Room for the descriptors that one message may bring: eight."""

_TYPES: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}

_FIELDS = {kind: get_type_hints(kind) for kind in _TYPES.values()}


def encode(message: Message) -> bytes:
    """The bytes of a message; long texts keep their end, where a traceback says what happened."""
    fields = dataclasses.asdict(message)
    fields.pop("fds", None)  # they go beside the bytes, and have other numbers over there
    for name, value in fields.items():
        if isinstance(value, str):
            fields[name] = _end_of(value)
    return json.dumps([type(message).__name__, fields]).encode("ascii")


def _end_of(text: str) -> str:
    """As much of the end of a text as is sure to fit."""
    text = text[-TEXT_LIMIT:]
    while len(json.dumps(text)) > TEXT_LIMIT:
        text = text[len(text) // 4 + 1 :]
    return text


def decode(data: bytes) -> Message:
    """The message that `encode` made these bytes of. Raises MessageError."""
    try:
        name, fields = json.loads(data)
        message = _TYPES[name](**fields)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MessageError(f"{len(data)} bytes that are no message") from None
    for field, kind in _FIELDS[type(message)].items():
        if not _is(getattr(message, field), kind):
            raise MessageError(f"a {name} whose {field} is of another type")
    return message


def _is(value: Any, kind: Any) -> bool:
    """Whether a value that JSON gave is what a field's annotation says."""
    if get_origin(kind) is list:
        return type(value) is list and all(_is(item, *get_args(kind)) for item in value)
    return type(value) is kind or (kind is float and type(value) is int)


class Mailbox:
    """One end of the pair. Neither `send` nor `receive` ever waits."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Message) -> bool:
        """Post a message; False if the other side is gone or doesn't read."""
        try:
            if isinstance(message, NewLogFiles):
                socket.send_fds(self._sock, [encode(message)], message.fds)
            else:
                self._sock.send(encode(message))
        except OSError:
            return False
        return True

    def receive(self, expected: UnionType = Message) -> tuple[list[Any], bool]:
        """All messages of these kinds that have come, and whether the other side is still there.

        Whatever else comes is logged as an error, and ignored.
        """
        messages: list[Message] = []
        for _ in range(MOST_AT_ONCE):
            try:
                data, ancillary, _, _ = self._sock.recvmsg(
                    MESSAGE_LIMIT, _FDS_SPACE, socket.MSG_CMSG_CLOEXEC
                )
                fds = _fds_in(ancillary)
            except BlockingIOError:
                return messages, True
            except OSError:
                return messages, False
            if not data:
                return messages, False
            try:
                message = decode(data)
                if not isinstance(message, expected):
                    raise MessageError(f"{type(message).__name__}, which isn't sent to this side")
                if isinstance(message, NewLogFiles):
                    message.fds[:], fds = fds, []
                messages.append(message)
            except MessageError as error:
                logger.error("ignored what came by mailbox: %s", error)
            finally:
                for fd in fds:  # that nobody has asked for
                    os.close(fd)
        return messages, True

    def close(self) -> None:
        self._sock.close()


def _fds_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in what came beside a message (unix(7), SCM_RIGHTS).

    `socket.recv_fds` does this, but in Python 3.11 it drops the flag that has programs which an
    application starts not inherit them.
    """
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def pair() -> tuple[Mailbox, Mailbox]:
    """A connected pair of mailboxes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Mailbox(ours), Mailbox(theirs)
