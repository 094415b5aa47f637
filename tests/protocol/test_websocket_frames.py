"""However a client's bytes are split into reads, a WebSocket gets what a library reads from them.

A message that is complete, short and alone in its read takes a different path from all others. So
every example is also read by `websockets`, in one piece, and the results must be the same.
"""

from __future__ import annotations

import codecs
import contextvars
import itertools
import logging
import struct
from collections.abc import Callable
from sys import getsizeof
from types import SimpleNamespace
from typing import Any, NamedTuple

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from websockets.frames import Opcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from esg.server.holdings import Holdings
from esg.server.turns import Turns
from esg.server.websocket.frames import Failure, read_close
from esg.server.websocket.inbox import Inbox
from esg.server.websocket.libraries import library
from esg.server.websocket.limits import QUICK
from esg.settings.schema import Config

from .ws_client import BINARY, CLOSE, CONT, MASK, PING, PONG, TEXT, close_payload, frame, masked

SILENT = logging.getLogger("tests.websockets")
SILENT.setLevel(logging.CRITICAL + 1)


class Reading(NamedTuple):
    """What was read from a client."""

    messages: list[str | bytes]
    pings: list[bytes]
    code: int | None
    """The code of the client's close frame, or of the failure; None if it is still open."""


def read_by_library(stream: bytes, limit: int) -> Reading:
    protocol = ServerProtocol(state=OPEN, max_size=limit or None, logger=SILENT)
    protocol.receive_data(stream)
    reading = Reading([], [], None)
    decoder: codecs.IncrementalDecoder | None = None
    pieces: list[str | bytes] = []
    for event in protocol.events_received():
        if event.opcode is Opcode.PING:
            reading.pings.append(bytes(event.data))
        elif event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if event.opcode is not Opcode.CONT:
                text = event.opcode is Opcode.TEXT
                decoder = codecs.getincrementaldecoder("utf-8")() if text else None
                pieces = []
            try:
                data = bytes(event.data)
                pieces.append(decoder.decode(data, event.fin) if decoder else data)
            except UnicodeDecodeError:
                return reading._replace(code=1007)
            if event.fin:
                empty: Any = "" if decoder else b""
                reading.messages.append(empty.join(pieces))
    closed = protocol.close_sent
    return reading._replace(code=int(closed.code) if closed else None)


class Reader:
    """An inbox with an application that takes messages, and an owner that answers."""

    def __init__(self, limit: int, queue: int) -> None:
        self.reading = Reading([], [], None)
        self.due: list[Callable[[], None]] = []
        config = Config(app="test:app", ws_max_size=limit, ws_max_queue=queue)
        context = contextvars.copy_context()
        service: Any = SimpleNamespace(
            config=config,
            now=0.0,
            turns=Turns(self, context, lambda: 0.0),  # type: ignore[arg-type]
            holdings=Holdings(config.ws_max_buffered, config.ws_max_size),
        )
        self.inbox = Inbox(service, self)
        found = library(config)
        assert found is not None
        self.inbox.agree(lambda: found.codec(limit, None), compresses=False)

    def call_soon(self, callback: Callable[[], None], context: object) -> None:
        self.due.append(callback)

    def take(self, most: int) -> None:
        """The application takes messages, and the loop turns once."""
        for _ in range(min(most, len(self.inbox.queue))):
            self.reading.messages.append(self.inbox.next())
        due, self.due = self.due, []
        for callback in due:
            callback()

    def finish(self) -> Reading:
        while self.due or self.inbox.queue:
            self.take(100)
        assert self.inbox.exhausted
        return self.reading

    def _end(self, code: int) -> None:
        if self.reading.code is None:
            self.reading = self.reading._replace(code=code)
        self.inbox.stop()

    # what an inbox calls

    def on_arrival(self) -> None: ...

    def on_beginning(self) -> None: ...

    def on_ping(self, content: bytes) -> None:
        self.reading.pings.append(content)

    def on_pong(self, content: bytes) -> None: ...

    def on_close(self, content: bytes) -> None:
        self._end(read_close(content)[0])

    def on_failure(self, failure: Failure) -> None:
        self._end(failure.code)

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


# -- streams of frames -----------------------------------------------------------------------

SIZES = (0, 1, 5, 124, 125, 126, 127, 128, 505, 506, QUICK - 9, QUICK - 8, QUICK - 7, QUICK, 20_000)
BAD_UTF8 = (b"\xff", b"ab\xe2\x82", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf5\x80\x80\x80", b"\x80")

contents = st.one_of(
    st.sampled_from(SIZES).map(lambda size: b"ab\x00c" * (size // 4) + b"x" * (size % 4)),
    st.text(max_size=40).map(str.encode),
    st.text(alphabet="aé€😀", max_size=300).map(str.encode),
)
kinds = st.sampled_from((TEXT, BINARY))


def long_form(whole: bytes, wide: bool) -> bytes:
    """The same short frame, with its length in more bytes than it needs."""
    size = whole[1] & 0x7F
    if size > 125:
        return whole
    field = struct.pack("!BQ", 0xFF, size) if wide else struct.pack("!BH", 0xFE, size)
    return whole[:1] + field + whole[2:]


def in_fragments(kind: int, content: bytes, sizes: list[int]) -> list[bytes]:
    """A message in fragments, with a ping between them.

    The ping is empty, because the library counts its content as a part of the message. The message
    is within all limits, because ESG would handle a close behind it first if the queue were full.
    """
    frames, at = [], 0
    for size in sizes:
        frames.append(frame(CONT if frames else kind, content[at : at + size], fin=False))
        at += size
    return [*frames, frame(PING), frame(CONT if frames else kind, content[at:])]


whole_messages = st.builds(frame, kinds, contents).map(lambda made: [made])
long_forms = st.builds(
    lambda kind, content, wide: [long_form(frame(kind, content), wide)],
    kinds,
    st.binary(max_size=60).map(lambda data: data.hex().encode()),
    st.booleans(),
)
fragmented = st.builds(
    in_fragments,
    kinds,
    st.text(max_size=30).map(str.encode),
    st.lists(st.integers(0, 30), min_size=1, max_size=4),
)
controls = st.builds(frame, st.sampled_from((PING, PONG)), st.binary(max_size=125)).map(
    lambda made: [made]
)
units = st.one_of(whole_messages, whole_messages, long_forms, fragmented, controls)


few = st.binary(max_size=126)
"""Content within all limits: an invalid frame that is also too long may fail for either reason."""


def unmasked(kind: int, content: bytes) -> bytes:
    return frame(kind, content, mask=False) + b"\0" * 4


endings = st.one_of(
    st.just(b""),
    st.builds(
        lambda code, reason: frame(CLOSE, close_payload(code, reason.encode())),
        st.sampled_from((999, 1000, 1001, 1004, 1005, 1006, 1011, 1015, 2999, 3000, 4999, 5000)),
        st.text(max_size=20),
    ),
    st.sampled_from((frame(CLOSE), frame(CLOSE, b"\x03"), frame(CLOSE, b"\x03\xe8\xff"))),
    st.builds(frame, st.just(TEXT), st.sampled_from(BAD_UTF8)),
    st.builds(lambda data, bad: frame(TEXT, data + bad), contents, st.sampled_from(BAD_UTF8)),
    st.builds(frame, st.integers(3, 7), few),
    st.builds(lambda code, content: frame(code, content[:125]), st.integers(11, 15), few),
    st.builds(
        lambda kind, content, rsv: frame(kind, content, rsv=rsv), kinds, few, st.integers(1, 7)
    ),
    st.builds(unmasked, kinds, few),
    st.builds(lambda kind: frame(kind, b"x" * 126), st.sampled_from((PING, PONG, CLOSE))),
    st.builds(lambda kind: frame(kind, b"x", fin=False), st.sampled_from((PING, PONG, CLOSE))),
    st.builds(lambda content: frame(CONT, content), few),
    st.just(frame(TEXT, b"a", fin=False) + frame(BINARY, b"b")),
)
"""How a stream ends: not at all, with a close frame, or with something invalid."""

few_more = st.builds(frame, st.just(BINARY), few).map(lambda made: [made])
afterwards = st.lists(st.one_of(few_more, controls), max_size=2)


class Play(NamedTuple):
    """A stream in reads, and how many messages the application takes after each of them."""

    reads: list[bytes]
    takes: list[int]


@st.composite
def plays(draw: st.DrawFn) -> Play:
    frames = [one for unit in draw(st.lists(units, max_size=6)) for one in unit]
    frames += [draw(endings), *(one for unit in draw(afterwards) for one in unit)]
    stream = b"".join(frames)
    boundaries, at = set(), 0
    for one in frames:
        at += len(one)
        boundaries.add(at)
    anywhere = st.sets(st.integers(0, len(stream)), max_size=12)
    cuts = draw(
        st.one_of(
            st.just(boundaries),  # each frame in a read
            anywhere,
            anywhere.map(lambda more: boundaries | more),
            st.just(set(range(min(len(stream), 600)))),  # each byte in a read
        )
    )
    edges = sorted({0, len(stream), *cuts})
    reads = [stream[start:stop] for start, stop in itertools.pairwise(edges)]
    takes = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    return Play(reads, takes)


@settings(
    max_examples=400,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(plays(), st.sampled_from((0, 126, 127, 500, QUICK, 1 << 20)), st.sampled_from((1, 2, 32)))
@example(Play([frame(TEXT, b"\xff")], [1]), 0, 32)
@example(Play([frame(BINARY, b"x" * 501)], [1]), 500, 32)
@example(Play([b"\x82\xff" + b"\0" * 131], [1]), 0, 32)  # 64 bits of length, 133 bytes in all
def test_every_split_reads_the_same(play: Play, limit: int, queue: int) -> None:
    reader = Reader(limit, queue)
    for number, data in enumerate(play.reads):
        reader.inbox.feed(data)
        waiting = reader.inbox.queue
        assert len(waiting) <= queue
        assert reader.inbox._held == sum(map(getsizeof, waiting))
        reader.take(play.takes[number % len(play.takes)])
    found, expected = reader.finish(), read_by_library(b"".join(play.reads), limit)
    assert found.code == expected.code
    assert found.messages == expected.messages
    if found.code is None:
        assert found.pings == expected.pings
    else:  # if messages wait for the application, pings behind the invalid one are answered
        assert found.pings[: len(expected.pings)] == expected.pings


def test_a_short_message_alone_is_unmasked() -> None:
    """The mask is applied from the first byte of the content on, wherever the content begins."""
    for size in (*range(9), 125, 126, QUICK - 8):
        data = bytes(range(256)) * (size // 256 + 1)
        reader = Reader(0, 32)
        reader.inbox.feed(frame(BINARY, data[:size]))
        reader.take(1)
        assert reader.reading.messages == [data[:size]]
    assert masked(b"\0" * 5) == MASK + MASK[:1]
