"""How many of a WebSocket client's bytes are handled in one turn of the event loop."""

from __future__ import annotations

import contextvars
import math
import random
import struct
import tracemalloc
import zlib
from types import SimpleNamespace

import pytest

from esg.server.holdings import FREE, Holdings
from esg.server.turns import SMALL, Turns
from esg.server.websocket.inbox import Inbox
from esg.server.websocket.libraries import library
from esg.server.websocket.limits import (
    COMPRESSED,
    FREE_FRAGMENTS,
    MOST_CONTROLS,
    MOST_FRAMES,
)
from esg.settings.schema import Config

MASK = b"\0\0\0\0"


def frame(first, content=b""):
    return bytes((first, 0x80 | len(content))) + MASK + content


class Owner:
    """Notes its calls."""

    def __init__(self):
        self.pings = self.pongs = self.beginnings = 0
        self.reading = True
        self.failure = None

    def on_arrival(self):
        pass

    def on_beginning(self):
        self.beginnings += 1

    def on_ping(self, content):
        self.pings += 1

    def on_pong(self, content):
        self.pongs += 1

    def on_failure(self, failure):
        self.failure = failure

    def pause_reading(self):
        assert self.reading
        self.reading = False

    def resume_reading(self):
        assert not self.reading
        self.reading = True


class Counted:
    """A codec that counts the frames it is fed."""

    def __init__(self, codec):
        self._codec = codec
        self.frames = 0

    @property
    def unfinished(self):
        return self._codec.unfinished

    def feed(self, data, sink):
        self.frames += 1
        self._codec.feed(data, sink)


class Desk:
    """An inbox, and a loop that the test turns."""

    def __init__(self, ws="websockets", **settings):
        self.due = []
        self.now = 0.0
        context = contextvars.copy_context()
        config = Config(app="test:app", ws=ws, **settings)
        self.service = SimpleNamespace(
            config=config,
            loop=self,
            now=0.0,
            context=context,
            turns=Turns(self, context, lambda: self.now),
            holdings=Holdings(config.ws_max_buffered, config.ws_max_size),
        )
        self.owner = Owner()
        self.inbox = Inbox(self.service, self.owner)
        self._codec = Counted(library(config).codec(config.ws_max_size, None))
        self.inbox.agree(lambda: self._codec, compresses=False)

    @property
    def decoded(self):
        return self._codec.frames

    def call_soon(self, callback, *args, context):
        self.due.append(callback)

    def turn(self):
        due, self.due = self.due, []
        for callback in due:
            callback()


@pytest.fixture(params=["websockets", "wsproto"])
def desk(request):
    return Desk(request.param)


def test_a_turn_handles_a_limited_number_of_fragments(desk):
    desk.inbox.feed(frame(0x02) + frame(0x00) * 1000)
    assert desk.decoded == MOST_FRAMES
    assert not desk.owner.reading
    desk.turn()
    assert desk.decoded == 2 * MOST_FRAMES
    while desk.due:
        desk.turn()
    assert desk.decoded == 1001
    assert desk.owner.reading


def test_a_turn_handles_a_limited_number_of_pings(desk):
    desk.inbox.feed(frame(0x89) * 900)
    assert desk.owner.pings == MOST_FRAMES
    while desk.due:
        before = desk.owner.pings
        desk.turn()
        assert desk.owner.pings - before <= MOST_FRAMES
    assert desk.owner.pings == 900
    assert desk.owner.reading


def test_a_turn_handles_a_limited_number_of_messages():
    desk = Desk(ws_max_queue=0)
    desk.inbox.feed(frame(0x82, b"x") * 1000)
    assert len(desk.inbox.queue) == MOST_FRAMES
    while desk.due:
        desk.turn()
    assert len(desk.inbox.queue) == 1000


def test_a_turn_takes_a_limited_number_of_frames_from_the_backlog(desk):
    most = desk.service.config.ws_max_queue
    desk.inbox.feed((frame(0x82, b"x") * (most + 1)) + frame(0x02) + frame(0x00) * 600)
    while desk.due:
        desk.turn()
    assert (len(desk.inbox.queue), desk.decoded) == (most, 0)
    for _ in range(most):
        desk.inbox.next()
    desk.turn()
    assert desk.decoded <= MOST_FRAMES
    assert desk.inbox.next() == b"x"
    while desk.due:
        before = desk.decoded
        desk.turn()
        assert desk.decoded - before <= MOST_FRAMES
    assert desk.decoded == 601
    assert desk.owner.reading


def test_data_that_arrives_while_the_rest_waits_stays_in_order(desk):
    desk.inbox.feed(frame(0x02) + frame(0x00, b"a") * 200)
    desk.inbox.feed(frame(0x80, b"b"))
    while desk.due:
        desk.turn()
    assert desk.inbox.next() == b"a" * 200 + b"b"


def test_a_full_queue_keeps_the_client_from_being_read_when_the_rest_is_done():
    desk = Desk(ws_max_queue=1)
    desk.inbox.feed(frame(0x82, b"x" * 100) * 1000)
    while desk.due:
        desk.turn()
    assert desk.inbox.paused
    assert not desk.owner.reading
    for _ in range(1000):
        while not desk.inbox.queue:
            desk.turn()
        assert desk.inbox.next() == b"x" * 100
    desk.turn()
    assert desk.owner.reading


def test_stopping_in_the_middle_drops_the_rest_and_continues_to_read(desk):
    desk.inbox.feed(frame(0x89) * 500)
    desk.inbox.stop()
    desk.turn()
    assert desk.owner.pings == MOST_FRAMES
    assert desk.owner.reading
    assert desk.due == []


def test_large_reads_wait_while_the_turn_is_full(desk):
    desk.service.turns.spend(1.0)
    desk.inbox.feed(frame(0x89))
    assert desk.owner.pings == 1
    desk.inbox.feed(frame(0x89) * (SMALL // 6 + 1))
    assert desk.owner.pings == 1
    desk.turn()
    assert desk.owner.pings == 1 + SMALL // 6 + 1


def test_too_many_pings_in_one_tick_are_a_failure(desk):
    for _ in range(3):
        for _ in range(MOST_CONTROLS // 10):
            desk.inbox.feed(frame(0x89) * 5 + frame(0x8A) * 5)
        assert desk.owner.failure is None
        desk.service.now += 1
    for _ in range(MOST_CONTROLS + 1):
        desk.inbox.feed(frame(0x8A))
    assert desk.owner.failure.code == 1008


@pytest.mark.parametrize("size", [0, 2, 7])
def test_too_many_tiny_fragments_are_a_failure(desk, size):
    desk.inbox.feed(frame(0x02))
    for _ in range(FREE_FRAGMENTS // 10):
        desk.inbox.feed(frame(0x00, b"x" * size) * 10)
        while desk.due:
            desk.turn()
    assert desk.owner.failure is None
    for _ in range(FREE_FRAGMENTS):
        desk.inbox.feed(frame(0x00, b"x" * size) * 10)
        if desk.owner.failure:
            break
    assert desk.owner.failure.code == 1008


def test_many_fragments_with_enough_content_are_accepted(desk):
    desk.inbox.feed(frame(0x02))
    for _ in range(FREE_FRAGMENTS * 2):
        desk.inbox.feed(frame(0x00, b"12345678"))
    desk.inbox.feed(frame(0x80))
    assert desk.owner.failure is None
    assert desk.inbox.next() == b"12345678" * FREE_FRAGMENTS * 2


# -- memory held by all connections ------------------------------------------------------------


def large_frame(first, size):
    """A large frame."""
    return bytes((first, 0xFF)) + size.to_bytes(8, "big") + MASK + bytes(size)


ROOM = 1_000_000


@pytest.fixture(params=["websockets", "wsproto"])
def room(request):
    """An inbox in a worker that may hold 1 MB."""
    desk = Desk(request.param, ws_max_buffered=ROOM, ws_max_size=ROOM)
    assert desk.service.holdings.left == ROOM
    return desk


def left(desk):
    return desk.service.holdings.left


def test_small_messages_are_not_counted(room):
    for _ in range(20):
        room.inbox.feed(frame(0x82, b"x" * 100))
    assert left(room) == ROOM


def test_a_large_message_is_counted_until_it_is_taken(room):
    room.inbox.feed(large_frame(0x82, 300_000))
    assert left(room) < ROOM - 300_000 + FREE
    assert len(room.inbox.next()) == 300_000
    room.turn()
    assert left(room) == ROOM


def test_a_frame_that_is_not_whole_is_counted(room):
    data = large_frame(0x82, 300_000)
    room.inbox.feed(data[:200_000])
    assert left(room) == ROOM - 200_000 + FREE
    room.inbox.feed(data[200_000:])
    room.inbox.next()
    room.turn()
    assert left(room) == ROOM


def test_a_message_in_fragments_is_counted(room):
    room.inbox.feed(large_frame(0x02, 200_000))
    assert left(room) == ROOM - 200_000 + FREE
    room.inbox.feed(large_frame(0x80, 100_000))
    assert left(room) < ROOM - 300_000 + FREE
    room.inbox.next()
    room.turn()
    assert left(room) == ROOM


@pytest.mark.parametrize("begin", [large_frame(0x02, 300_000), large_frame(0x82, 300_000)[:-1]])
def test_the_end_of_a_connection_releases_its_unfinished_message(room, begin):
    room.inbox.feed(begin)
    assert left(room) < ROOM
    room.inbox.stop()
    assert left(room) == ROOM


def test_messages_that_wait_count_until_the_application_is_over(room):
    room.inbox.feed(large_frame(0x82, 300_000))
    room.inbox.stop()
    assert left(room) < ROOM
    room.inbox.clear()
    assert left(room) == ROOM


@pytest.mark.parametrize(
    "begin",
    [large_frame(0x02, 300_000), large_frame(0x82, 300_000)[:-1], large_frame(0x82, 300_000)],
)
def test_all_connections_together_hold_no_more_than_the_limit(room, begin):
    room.service.holdings.left = 200_000
    room.inbox.feed(begin)
    assert room.owner.failure.code == 1013
    assert not room.inbox.queue
    room.inbox.stop()
    room.inbox.clear()
    assert left(room) == 200_000


def test_small_messages_have_room_even_if_others_hold_everything(room):
    room.service.holdings.left = 0
    for _ in range(20):
        room.inbox.feed(frame(0x82, b"x" * 100) + frame(0x02, b"y") + frame(0x80, b"y"))
    assert room.owner.failure is None


def test_one_of_the_largest_messages_always_has_room():
    desk = Desk(ws_max_buffered=1, ws_max_size=ROOM)
    desk.inbox.feed(large_frame(0x82, ROOM))
    assert desk.owner.failure is None


def test_a_limit_of_zero_means_no_limit():
    desk = Desk(ws_max_buffered=0)
    desk.inbox.feed(large_frame(0x82, 3_000_000))
    assert desk.owner.failure is None


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (frame(0x02, b"x"), frame(0x80)),
        (frame(0x82, b"x")[:-1], b"x"),
        (frame(0x82)[:3], frame(0x82)[3:]),
        (frame(0x02, b"x")[:-1], b"x" + frame(0x89) + frame(0x80)),
    ],
)
def test_the_start_of_a_message_is_known_until_it_ends(room, begin, end):
    room.service.now = 5.0
    room.inbox.feed(begin)
    assert room.inbox.begun == 5.0
    room.service.now = 6.0
    room.inbox.feed(end)
    assert room.inbox.begun == math.inf
    assert room.owner.beginnings > 0


# -- compressed messages -----------------------------------------------------------------


def compressing(ws="websockets", **settings):
    """A desk with compression, and a client's compressor."""
    desk = Desk(ws, **settings)
    of = library(desk.service.config)
    _, deflate = of.agree("permessage-deflate")
    codec = Counted(of.codec(desk.service.config.ws_max_size, deflate))
    desk._codec = codec
    desk.inbox.agree(lambda: codec, compresses=True)
    return desk, zlib.compressobj(wbits=-12)


def compressed(compressor, content, first=0xC2, mask=b"\1\2\3\4"):
    """A message in one frame."""
    data = (compressor.compress(content) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
    size = len(data)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65536:
        head = struct.pack("!BBH", first, 0xFE, size)
    else:
        head = struct.pack("!BBQ", first, 0xFF, size)
    return head + mask + bytes(a ^ mask[i % 4] for i, a in enumerate(data))


@pytest.fixture(params=["websockets", "wsproto"])
def compressing_desk(request):
    return compressing(request.param)


def test_a_large_compressed_frame_is_decompressed_in_several_turns(compressing_desk):
    desk, compressor = compressing_desk
    content = b"".join(b"%d" % number for number in range(100_000))
    frame_ = compressed(compressor, content)
    pieces = math.ceil(len(frame_) / COMPRESSED)
    feed = desk._codec.feed

    def slow(data, sink):
        desk.now += 1.0
        feed(data, sink)

    desk._codec.feed = slow
    desk.inbox.feed(frame_)
    for turn in range(pieces):
        assert desk.decoded == turn
        assert not desk.inbox.queue
        desk.turn()
    assert desk.inbox.next() == content


def test_messages_after_a_large_compressed_frame_stay_in_order(compressing_desk):
    desk, compressor = compressing_desk
    large = random.Random(1).randbytes(20_000)
    desk.inbox.feed(compressed(compressor, large) + frame(0x82, b"plain"))
    desk.inbox.feed(compressed(compressor, b"small"))
    while desk.due:
        desk.turn()
    assert [desk.inbox.next() for _ in range(3)] == [large, b"plain", b"small"]


def test_a_close_frame_after_a_large_compressed_frame_is_handled(compressing_desk):
    desk, compressor = compressing_desk
    large = random.Random(1).randbytes(20_000)
    desk.inbox.feed(compressed(compressor, large))
    desk.inbox.stop()
    while desk.due:
        desk.turn()
    assert desk.inbox.next() == large
    assert desk.inbox.exhausted
    assert desk.inbox._codec is None


TEXTS = {
    "ASCII": "a" * (4 << 20),
    "two bytes": "\u20ac" * (2 << 20),
    "four bytes": "\U0001f600" * (1 << 20),
    "wide": "a" * (4 << 20) + "\U0001f600",
}
"""In a `str`, each character takes as many bytes as the widest one; in UTF-8 it doesn't."""


@pytest.mark.parametrize("ws", ["websockets", "wsproto"])
@pytest.mark.parametrize("kind", [*TEXTS, "binary"])
def test_an_unfinished_message_holds_what_is_counted(kind, ws):
    """Measured, because a library may keep its own copy."""
    desk, compressor = compressing(ws, ws_max_size=0, ws_max_buffered=1 << 30)
    content = TEXTS.get(kind, "b" * (4 << 20)).encode()
    frame_ = compressed(compressor, content, 0x42 if kind == "binary" else 0x41)
    held = traced(desk, frame_)
    assert desk.inbox._charged == pytest.approx(len(content), rel=0.05)
    assert held < 1.3 * len(content)


@pytest.mark.parametrize("ws", ["websockets", "wsproto"])
@pytest.mark.parametrize("kind", [*TEXTS, "binary"])
def test_a_message_that_waits_holds_what_is_counted(kind, ws):
    desk, compressor = compressing(ws, ws_max_size=0, ws_max_buffered=1 << 30)
    content = TEXTS.get(kind, "b" * (4 << 20)).encode()
    frame_ = compressed(compressor, content, 0xC2 if kind == "binary" else 0xC1)
    held = traced(desk, frame_)
    assert desk.inbox._charged == pytest.approx(held, rel=0.05)
    assert len(desk.inbox.next()) > 0


def traced(desk, data):
    """The bytes that a desk still holds after it has handled this."""
    tracemalloc.start()
    try:
        desk.inbox.feed(data)
        while desk.due:
            desk.turn()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_small_compressed_frames_share_the_turn(compressing_desk):
    """500 bytes may become 500 KB, so they count, and wait while the turn is full."""
    desk, compressor = compressing_desk
    frames = [compressed(compressor, b"a" * 400_000) for _ in range(3)]
    assert all(len(frame_) <= SMALL for frame_ in frames)
    feed = desk._codec.feed

    def slow(data, sink):
        desk.now += 1.0
        feed(data, sink)

    desk._codec.feed = slow
    for frame_ in frames:
        desk.inbox.feed(frame_)
    for turn in range(1, 4):
        assert desk.decoded == turn
        desk.turn()
    assert [len(desk.inbox.next()) for _ in frames] == [400_000] * 3


def test_a_read_with_several_compressed_frames_takes_several_turns(compressing_desk):
    desk, compressor = compressing_desk
    frames = [compressed(compressor, b"a" * 400_000) for _ in range(3)]
    feed = desk._codec.feed

    def slow(data, sink):
        desk.now += 1.0
        feed(data, sink)

    desk._codec.feed = slow
    desk.inbox.feed(b"".join(frames))
    for turn in range(1, 4):
        assert desk.decoded == turn
        desk.turn()
    assert len(desk.inbox.queue) == 3
