"""Typed messages between the arbiter and a worker.

The two directions are different channels, because a worker may be hostile and the arbiter may be
root. The arbiter sends over a socket (SOCK_SEQPACKET), which can carry descriptors: a worker needs
those of reopened log files. A worker sends over a pipe, which can't carry descriptors. Otherwise
the arbiter would have to close each descriptor that it is sent, and close(2) blocks on a TCP socket
with SO_LINGER and unsent data. The arbiter's end of the socket is shut down for reading before a
worker can write to it, so nothing can be queued there either: sending to it fails with EPIPE.

End of file on a mailbox means that the other side died: a worker's mailbox is its lifeline.
"""

from __future__ import annotations

import array
import dataclasses
import errno
import functools
import json
import logging
import os
import select
import socket
import time
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from esg.frozen import frozen
from esg.seldom import Seldom

logger = logging.getLogger("esg")

MESSAGE_LIMIT = 96 * 1024
"""The largest encoded message, in bytes; below the kernel's default send buffer
(net.core.wmem_default)."""

MOST_AT_ONCE = 1000
"""Messages received in one call, so that a flood can't keep the receiver from its work."""

READ_AT_ONCE = 16 * 1024
"""Bytes that are read from the pipe in one go."""

MOST_READS = 8
"""The most reads of the pipe in one call: twice as many as a pipe of default size needs
(pipe(7))."""

PIPE_ATOMIC = 4096
"""Bytes that one write(2) puts into a pipe whole or not at all: pipe(7), PIPE_BUF."""

PATIENCE = 1.0
"""Seconds that a worker waits for room for the rest of a message longer than `PIPE_BUF`.

Only BootFailed and a watcher's messages can be longer; their senders run no event loop.
"""

TEXT_LIMIT = 32 * 1024
"""The longest text in a message, in encoded bytes; only the end of a longer text is kept."""


@frozen
class Hello:
    """Child to arbiter: the pid of a child that the arbiter didn't fork itself."""

    pid: int


@frozen
class Ready:
    """Worker to arbiter: booted, accepting."""


@frozen
class Serves:
    """Worker to arbiter: the names of the application's interface, the event loop and the
    parser, for the log."""

    interface: str
    loop: str
    parser: str


@frozen
class BootFailed:
    """Worker to arbiter: can't boot. `exit_code` is what ESG should end with."""

    message: str
    detail: str
    exit_code: int


@frozen
class NoLifespan:
    """Worker to arbiter: the application ended its lifespan with an exception before it began.

    `usual`: the exception is one that applications without a lifespan raise. `reason` is its text.
    """

    reason: str
    usual: bool

    @property
    def line(self) -> str:
        """The text for the log."""
        if self.usual:
            return f"the application has no lifespan: {self.reason}"
        return (
            f"the application's lifespan failed before it began: {self.reason}; it is served "
            "without one (--lifespan on refuses that, off doesn't try)"
        )


@frozen
class InStartup:
    """Worker to arbiter: it is in the application's lifespan startup, which waits at `place`.

    Sent when the startup begins, with an empty place, and again when it waits at another place.
    """

    place: str


@frozen
class HeldRequests:
    """Worker to arbiter: its event loop stands still, and these requests are in progress.

    `requests` names the oldest ones, the oldest first. `ages` has the seconds for which each has
    been in progress, NaN if that isn't known. `count` is the number of all of them, and `blocking`
    the index of the one that the event loop is running, -1 if it isn't known.
    """

    requests: list[str]
    ages: list[float]
    count: int
    blocking: int


@frozen
class UntrustedPeer:
    """Worker to arbiter: a peer that isn't trusted has sent a field that names the client.

    `peer` is its address, empty on a UNIX socket. `trusted` are the entries of
    `--forwarded-allow-ips`, or none if there are too many for a line of the log.
    """

    peer: str
    field: str
    trusted: list[str]

    @property
    def line(self) -> str:
        """The text for the log."""
        peer = f"from {self.peer}" if self.peer else "from a UNIX socket"
        entry = self.peer or "unix:"
        what = f"set --forwarded-allow-ips {','.join([*self.trusted, entry])}"
        if not self.trusted:
            what = f"add {entry} to --forwarded-allow-ips"
        return (
            f"ignoring {self.field} {peer}, which isn't in --forwarded-allow-ips; if that is your "
            f"proxy, {what}"
        )


@frozen
class Due:
    """Worker to arbiter: it wants to be replaced, and serves until then."""

    reason: str


@frozen
class Draining:
    """Worker to arbiter: it has begun to drain without being told to."""

    reason: str


@frozen
class StoppedAccepting:
    """Worker to arbiter: from now on, it accepts no connections."""


@frozen
class Drain:
    """Arbiter to worker: finish your requests within `grace` seconds, then exit.

    `final`: no worker accepts after this one, so it also accepts the queued connections;
    `dropped`: the addresses for which this is true, if not for all.
    """

    reason: str
    grace: float
    final: bool
    dropped: list[str] = dataclasses.field(default_factory=list)


@frozen
class NewLogFiles:
    """Arbiter to worker: the log files of these paths were reopened; write to `fds` instead.

    The descriptors are copies, which the receiver has to close.
    """

    paths: list[str]
    fds: list[int] = dataclasses.field(default_factory=list, compare=False)


@frozen
class NewRow:
    """Arbiter to worker: the worker `number` is new; its row on the scoreboard is behind `fds`.

    The descriptor is a copy, which the receiver has to close.
    """

    number: int
    fds: list[int] = dataclasses.field(default_factory=list, compare=False)


@frozen
class RowGone:
    """Arbiter to worker: the worker `number` is gone, and its row couldn't be emptied."""

    number: int


@frozen
class NewListener:
    """Arbiter to worker: the socket that listened at `url` is broken; use the one in `fds` instead.

    The descriptor is a copy, which the receiver has to close.
    """

    url: str
    fds: list[int] = dataclasses.field(default_factory=list, compare=False)


@frozen
class ReloadFailed:
    """Arbiter to worker: new code or settings couldn't take over, and the reason."""

    reason: str
    detail: str


@frozen
class Watching:
    """Watcher to arbiter: from now on, changes in these folders are reported."""

    what: str


@frozen
class Changed:
    """Watcher to arbiter: these files have changed."""

    what: str


@frozen
class CantWatch:
    """Watcher to arbiter: it can't continue."""

    reason: str


FromWorker = (
    Ready
    | Serves
    | BootFailed
    | InStartup
    | NoLifespan
    | HeldRequests
    | UntrustedPeer
    | Due
    | Draining
    | StoppedAccepting
)
FromWatcher = Watching | Changed | CantWatch
FromArbiter = Drain | NewListener | NewLogFiles | NewRow | ReloadFailed | RowGone
Message = Hello | FromWorker | FromWatcher | FromArbiter


def descriptors_of(message: Message) -> list[int]:
    """The descriptors that go with a message. Only the arbiter's messages may carry any."""
    fds: list[int] = getattr(message, "fds", [])
    return fds


class MessageError(ValueError):
    """Bytes that aren't a message, or a message that the other side may not send."""


_FDS_SPACE = socket.CMSG_SPACE(8 * array.array("i").itemsize)
"""Room for the descriptors that one message may bring: eight."""

_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)
"""Errors of sendmsg(2) after which a later attempt may succeed; the last one is from unix(7)."""

_TYPES: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


@functools.cache
def _types_of_fields(name: str) -> dict[str, Any]:
    """The types of the fields of the message with this name."""
    return get_type_hints(_TYPES[name])


def encode(message: Message) -> bytes:
    """The bytes of a message. Long texts keep their end, where a traceback has the exception."""
    fields = dataclasses.asdict(message)
    fields.pop("fds", None)  # they are sent separately, and have other numbers in the receiver
    for name, value in fields.items():
        if isinstance(value, str):
            fields[name] = _end_of(value)
    return json.dumps([type(message).__name__, fields]).encode("ascii")


def _end_of(text: str) -> str:
    """The end of a text, short enough to fit into any message."""
    text = text[-TEXT_LIMIT:]
    while len(json.dumps(text)) > TEXT_LIMIT:
        text = text[len(text) // 4 + 1 :]
    return text


def decode(data: bytes) -> Message:
    """The message in bytes that `encode` made. Raises MessageError."""
    try:
        name, fields = json.loads(data)
        message = _TYPES[name](**fields)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MessageError(f"{len(data)} bytes that aren't a message") from None
    for field, kind in _types_of_fields(name).items():
        if not _is(getattr(message, field), kind):
            raise MessageError(f"a {name} whose {field} is of another type")
    return message


def _is(value: Any, kind: Any) -> bool:
    """Whether a value from JSON has the type of a field's annotation."""
    if get_origin(kind) is list:
        return type(value) is list and all(_is(item, *get_args(kind)) for item in value)
    return type(value) is kind or (kind is float and type(value) is int)


class Mailbox:
    """One end of a mailbox. Receiving never waits; sending waits only if a message is long."""

    sender: str = "the arbiter"
    """The name of the process that sends to this end, for the log."""

    def __init__(self, sock: socket.socket, pipe: int) -> None:
        self._sock = sock
        self._pipe = pipe
        self._refusals = Seldom()
        sock.setblocking(False)

    def fileno(self) -> int:
        """The descriptor that becomes readable when there is mail or the other side is gone."""
        raise NotImplementedError

    @property
    def descriptors(self) -> tuple[int, int]:
        """The descriptors that this end consists of."""
        return self._sock.fileno(), self._pipe

    def send(self, message: Message) -> bool:
        """Post a message; False if the other side is gone or doesn't read."""
        raise NotImplementedError

    def receive(self, expected: UnionType = Message) -> tuple[list[Any], bool]:
        """The messages of these kinds that have arrived, and whether the other side is still there.

        Anything else is ignored. The first time is logged as an error; later ones are only counted,
        since the sender decides how often this happens.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close this end; calling it again does no harm."""
        self._sock.close()
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _decoded(self, data: bytes, expected: UnionType) -> Message | None:
        """The message in these bytes; None, and an error in the log, if it isn't expected."""
        try:
            message = decode(data)
            if not isinstance(message, expected):
                raise MessageError(f"{type(message).__name__}, which isn't sent to this side")
        except MessageError as error:
            self.refuse(str(error))
            return None
        return message

    def refuse(self, what: str) -> None:
        """Log that something was ignored: the first time as an error; later times are counted."""
        more = self._refusals.now(time.monotonic())
        if more is not None:
            count = f" ({more} more before it)" if more else ""
            logger.error("ignored a message from %s: %s%s", self.sender, what, count)


class ArbitersEnd(Mailbox):
    """Sends over the socket, also descriptors; receives from the pipe, which can't carry any."""

    sender = "a worker"

    def __init__(self, sock: socket.socket, pipe: int) -> None:
        """Shuts down `sock` for reading, so no other process may have its other end yet."""
        super().__init__(sock, pipe)
        self._begun = b""
        self._skips = False
        sock.shutdown(socket.SHUT_RD)

    def fileno(self) -> int:
        return self._pipe

    def send(self, message: Message) -> bool:
        try:
            self._send(message)
        except OSError:
            return False
        return True

    def offer(self, message: Message) -> bool:
        """Post a message; returns False if there is no room until the other side has read some.

        A message to a side that has ended counts as posted, because no process is left to read it.
        """
        try:
            self._send(message)
        except OSError as error:
            return error.errno not in _FULL
        return True

    def _send(self, message: Message) -> None:
        fds = descriptors_of(message)
        if fds:
            socket.send_fds(self._sock, [encode(message)], fds)
        else:
            self._sock.send(encode(message))

    def receive(self, expected: UnionType = Message) -> tuple[list[Any], bool]:
        messages: list[Message] = []
        looked_at = 0
        for _ in range(MOST_READS):
            try:
                data = os.read(self._pipe, READ_AT_ONCE)
            except BlockingIOError:
                return messages, True
            except OSError:
                data = b""
            if not data:
                self._report_refusals()
                return messages, False
            for line in filter(None, self._lines(data)):
                looked_at += 1
                if looked_at > MOST_AT_ONCE:
                    self.refuse(f"more than {MOST_AT_ONCE} messages at once")
                elif (message := self._decoded(line, expected)) is not None:
                    messages.append(message)
        return messages, True

    def _report_refusals(self) -> None:
        """The other side is gone: log how many ignored messages haven't been logged yet."""
        more, self._refusals = self._refusals.suppressed, Seldom()
        if more:
            logger.error("ignored %d more messages from %s", more, self.sender)

    def _lines(self, data: bytes) -> list[bytes]:
        """The lines that end in this piece; the rest is kept as the beginning of the next line."""
        *lines, begun = (self._begun + data).split(b"\n")
        if self._skips and lines:
            del lines[0]
            self._skips = False
        if self._skips or len(begun) > MESSAGE_LIMIT:
            if not self._skips:
                self.refuse(f"a message of more than {MESSAGE_LIMIT} bytes")
            self._skips, begun = True, b""
        self._begun = begun
        return lines


class WorkersEnd(Mailbox):
    """Sends into the pipe; receives from the socket, also descriptors."""

    def __init__(self, sock: socket.socket, pipe: int) -> None:
        super().__init__(sock, pipe)
        self._torn = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Message) -> bool:
        data = encode(message) + b"\n"
        if self._torn:  # an earlier message was cut off for lack of room: end it here
            data = b"\n" + data
        left = memoryview(data)
        deadline = time.monotonic() + (PATIENCE if len(data) > PIPE_ATOMIC else 0.0)
        while left:
            try:
                left = left[os.write(self._pipe, left) :]
                self._torn = bool(left)
            except BlockingIOError:
                wait = deadline - time.monotonic()
                if wait <= 0:
                    return False
                poll = select.poll()
                poll.register(self._pipe, select.POLLOUT)
                poll.poll(wait * 1000)
            except OSError:
                return False
        return True

    def receive(self, expected: UnionType = Message) -> tuple[list[Any], bool]:
        messages: list[Message] = []
        for _ in range(MOST_AT_ONCE):
            try:
                data, ancillary, _, _ = self._sock.recvmsg(
                    MESSAGE_LIMIT, _FDS_SPACE, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return messages, True
            except OSError:
                return messages, False
            if not data:
                return messages, False
            fds = _fds_in(ancillary)
            message = self._decoded(data, expected)
            if message is not None:
                messages.append(message)
                room = getattr(message, "fds", None)
                if room is not None:
                    room[:], fds = fds, []
            for fd in fds:  # no message uses it
                os.close(fd)
        return messages, True


def _fds_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in the ancillary data of a message (unix(7), SCM_RIGHTS).

    `socket.recv_fds` does this, but in Python 3.11 it drops the flag that prevents programs that an
    application starts from inheriting them.
    """
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def pair() -> tuple[ArbitersEnd, WorkersEnd]:
    """A connected pair of mailboxes. Raises OSError, with nothing left open."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        ours.close()
        theirs.close()
        raise
    return ArbitersEnd(ours, reading), WorkersEnd(theirs, writing)
