"""The receiving side of a WebSocket: bytes become frames, and frames become messages in a queue.

If the queue is full, frames wait undecoded. If more than `BACKLOG` bytes of them wait, nothing is
read from the client any more. Control frames that have been read never wait (RFC 6455, section
5.5). A read with more than `MOST_FRAMES` frames is handled in several turns of the event loop, so
that other clients needn't wait for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from sys import getsizeof
from typing import Protocol

from esg.server.holdings import FREE
from esg.server.state import Service
from esg.server.turns import PART, SMALL
from esg.server.websocket.codec import Codec
from esg.server.websocket.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    INVALID_DATA,
    LARGE,
    LARGEST_HEADER,
    MASK_BIT,
    MASKED_HEADER,
    MASKED_LONG,
    MASKED_MEDIUM,
    MEDIUM_HEADER,
    PING,
    PLAIN,
    POLICY_VIOLATION,
    PONG,
    TOO_BIG,
    TRY_AGAIN_LATER,
    Failure,
    check_header,
    fragments,
    merge,
    unmask,
)
from esg.server.websocket.limits import (
    BACKLOG,
    COMPRESSED,
    FRAGMENT,
    FRAME_OVERHEAD,
    FREE_FRAGMENTS,
    MOST_CONTROLS,
    MOST_FRAMES,
    MOST_PIECES,
    QUEUE_BYTES,
    QUICK,
)


class Owner(Protocol):
    """The owner of an inbox. It is called while bytes are fed in, or messages are taken out."""

    def on_arrival(self) -> None:
        """There is another message, or there will be no more."""

    def on_beginning(self) -> None:
        """A message has begun, and isn't complete yet."""

    def on_ping(self, content: bytes) -> None:
        """A ping has arrived."""

    def on_pong(self, content: bytes) -> None:
        """A pong has arrived."""

    def on_close(self, content: bytes) -> None:
        """A close frame has arrived. Raises Failure if it isn't valid."""

    def on_failure(self, failure: Failure) -> None:
        """The client violated the protocol or a limit."""

    def pause_reading(self) -> None:
        """Stop reading from the client."""

    def resume_reading(self) -> None:
        """Read from the client again."""


class Inbox:
    """The messages that one WebSocket has received, and the frames that aren't messages yet."""

    __slots__ = (
        "_accepts",
        "_backlog",
        "_backlogged",
        "_charged",
        "_codec",
        "_controls",
        "_counted_at",
        "_deaf",
        "_fragment_bytes",
        "_fragmented",
        "_fragments",
        "_have",
        "_held",
        "_limit",
        "_make_codec",
        "_most_queued",
        "_owner",
        "_pieces",
        "_put_off",
        "_put_off_at",
        "_quick",
        "_reads",
        "_refills",
        "_service",
        "_special",
        "_wanted",
        "begun",
        "compresses",
        "heard",
        "paused",
        "queue",
    )

    def __init__(self, service: Service, owner: Owner) -> None:
        config = service.config
        self._service = service
        self._owner = owner
        self.queue: deque[str | bytes] = deque()
        """Complete messages. Take them out with `next`."""
        self._held = 0
        """Bytes of memory that the queued messages take; a `str` may take 4 bytes a character."""
        self._most_queued: float = config.ws_max_queue or math.inf
        self._limit: float = config.ws_max_size or math.inf
        self._quick = min(QUICK, config.ws_max_size or QUICK) if self._most_queued > 1 else 0
        """The largest read that may be handled as one short message: within all limits."""
        self.heard = False
        """Whether anything has arrived since the owner last reset this."""
        self._codec: Codec | None = None
        self._make_codec: Callable[[], Codec]
        self.compresses = False
        """Whether permessage-deflate was negotiated (RFC 7692)."""
        self._pieces: list[bytes | bytearray] = []
        """The pieces of a frame that isn't complete yet."""
        self._have = 0
        """How many bytes of that frame have arrived."""
        self._wanted = 0
        """How many bytes of that frame are needed to continue."""
        self._fragmented = False
        """Whether a message is arriving in fragments."""
        self._fragments = 0
        self._fragment_bytes = 0
        """How many fragments of that message have arrived, and the size of their content."""
        self._controls = 0
        self._counted_at = 0.0
        """How many pings and pongs arrived since this time of the service's clock."""
        self._put_off = b""
        self._put_off_at = 0
        """Data for a later turn of the loop, and the position at which to continue."""
        self._refills = False
        """Whether frames will be taken from the backlog in a later turn."""
        self._backlog: deque[bytes] = deque()
        """Frames that wait because the queue is full."""
        self._backlogged = 0
        """The size of those frames, with `FRAME_OVERHEAD` for each."""
        self._special = False
        """Whether messages can't simply be added to the queue."""
        self.paused = False
        """Whether reading is paused because too much waits for the application."""
        self._charged = 0
        """Bytes of this connection that are counted in the worker's holdings."""
        self.begun = math.inf
        """When the incomplete message began, on the service's clock; infinite if there is none."""
        self._reads = True
        """Whether the owner was last told to read."""
        self._accepts = True
        """Whether messages are still accepted."""
        self._deaf = False
        """Whether everything that arrives is dropped."""

    def agree(self, make_codec: Callable[[], Codec], compresses: bool) -> None:
        """Set what the handshake has negotiated."""
        self._make_codec, self.compresses = make_codec, compresses

    def codec(self) -> Codec:
        """The codec, made when it is first needed: most idle connections never need one."""
        if self._codec is None:
            self._codec = self._make_codec()
        return self._codec

    # -- out -------------------------------------------------------------------------------

    def next(self) -> str | bytes:
        """Take the next message out of the queue, which must not be empty."""
        queue = self.queue
        content = queue.popleft()
        if queue:
            self._held -= getsizeof(content)
        else:
            self._held = 0
            if self._special:
                # In another turn, so that one client's messages don't keep all others waiting.
                self._refill_later()
        return content

    def _refill_later(self) -> None:
        if not self._refills:
            self._refills = True
            self._service.turns.put_off(self._refill)

    @property
    def exhausted(self) -> bool:
        """Whether the application has taken everything that arrived."""
        return not (self.queue or self._backlog)

    def _refill(self) -> None:
        """Decode frames that wait: the application has emptied the queue, so there is room."""
        self._refills = False
        frames = MOST_FRAMES
        clock = self._service.turns.clock
        end = clock() + PART
        try:
            while self._backlog and not self._full():
                if not frames or clock() > end:
                    self._refill_later()
                    break
                frames -= 1
                frame = self._backlog.popleft()
                self._backlogged -= len(frame) + FRAME_OVERHEAD
                if self._expands(frame):
                    self._put_back(fragments(frame, COMPRESSED))
                else:
                    self._decode(frame)
        except Failure as failure:
            self._drop_backlog()
            self._owner.on_failure(failure)
        if self._deaf and not self._backlog:
            self._drop_codec()
        if self._charged:
            self._count_holdings()
        self._special = self._is_special()
        if self.paused and not self._backlog:
            self._resume()
        self._owner.on_arrival()

    # -- the end ---------------------------------------------------------------------------

    def clear(self) -> None:
        """Drop everything that has arrived: the application has closed the WebSocket."""
        self.queue.clear()
        self._held = 0
        self._drop_backlog()
        self._count_holdings()

    def shut(self) -> None:
        """Accept no more messages, but handle control frames."""
        self._accepts = False
        self._special = True
        if self.paused:
            self._resume()

    def stop(self) -> None:
        """Drop everything that still arrives. Complete messages can still be taken out."""
        self._accepts = False
        self._special = self._deaf = True
        self._forget_partial()
        if not self._backlog:
            self._drop_codec()
        self._count_holdings()

    def _drop_codec(self) -> None:
        """Drop the codec, and with it a message that will never be complete."""
        self._codec = None
        self._fragmented = False
        self.begun = math.inf

    def _drop_backlog(self) -> None:
        self._backlog.clear()
        self._backlogged = 0

    def _resume(self) -> None:
        self.paused = False
        self._regulate()

    def _regulate(self) -> None:
        """Have the owner pause or resume reading, as the current state requires."""
        reads = not (self.paused or self._put_off)
        if reads != self._reads:
            self._reads = reads
            if reads:
                self._owner.resume_reading()
            else:
                self._owner.pause_reading()

    # -- in --------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take in data from the client.

        The usual case has a path of its own: one short, complete message, while nothing waits.
        """
        self.heard = True
        size = len(data)
        waits = self.queue or self._have or self._put_off or self._special
        if not waits and MASKED_HEADER <= size <= self._quick:
            first, second = data[0], data[1]
            if second == MASKED_MEDIUM:
                start, length = MEDIUM_HEADER, data[2] << 8 | data[3]
            else:
                start, length = MASKED_HEADER, second - MASK_BIT
            if start + length == size and first in PLAIN and second != MASKED_LONG:
                content = unmask(data[start:], data[start - 4 : start])
                try:
                    message = content if first == BINARY else content.decode()
                except UnicodeDecodeError:
                    pass  # `_feed` finds it again, and closes
                else:
                    self.queue.append(message)
                    self._held = getsizeof(message)
                    self._owner.on_arrival()
                    return
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        """Take in any data."""
        if self._deaf:
            return
        if self._put_off:
            self._put_off += data
            return
        if self._have:
            try:
                data = self._completed(data)
            except Failure as failure:
                self._owner.on_failure(failure)
                return
            if not data:
                return
        if len(data) <= SMALL and not self.compresses:  # 500 compressed bytes may become 500 KB
            self._take(data, 0)
            return
        turns = self._service.turns
        if turns.full:
            self._go_on_later(data, 0)
        else:
            begun = turns.clock()
            self._take(data, 0)
            turns.spend(turns.clock() - begun)
        if self._put_off:
            self._regulate()

    def _take(self, data: bytes, at: int) -> None:
        """Handle as much of the data, from `at` on, as one turn of the loop has time for."""
        try:
            at = self._split(data, at)
        except Failure as failure:
            self._owner.on_failure(failure)
        else:
            if at < len(data) and not self._deaf:
                self._go_on_later(data, at)

    def _go_on_later(self, data: bytes, at: int) -> None:
        """Handle the rest in another turn of the loop, and read nothing until then."""
        self._put_off, self._put_off_at = data, at
        self._service.turns.put_off(self._go_on)

    def _go_on(self) -> None:
        data, self._put_off = self._put_off, b""
        if not self._deaf:
            self._take(data, self._put_off_at)
        self._regulate()

    def _split(self, data: bytes, at: int) -> int:
        """Handle complete frames, from `at` on, within the limits of a turn.

        Returns where to continue. An incomplete frame is kept until the rest of it arrives. Raises
        Failure.
        """
        end, wanted, frames = len(data), MASKED_HEADER, MOST_FRAMES
        clock = self._service.turns.clock
        part_ends = clock() + PART if self.compresses else math.inf
        while end - at >= MASKED_HEADER:
            if not frames:
                return at
            frames -= 1
            first, second = data[at], data[at + 1]
            length, start = second & 0x7F, at + MASKED_HEADER
            if length > 125:
                start += 2 if length == 126 else 8
                if start > end:
                    check_header(first, second > 127, 0, self.compresses)
                    wanted = start - at
                    break
                length = int.from_bytes(data[at + 2 : start - 4], "big")
            stop = start + length
            plain = first in PLAIN and second > 127 and not self._special
            if plain and stop <= end and length <= self._limit:
                content = data[start:stop] if length < LARGE else memoryview(data)[start:stop]
                content = unmask(content, data[start - 4 : start])
                self.on_message(content if first == BINARY else _text(content))
                at = stop
                continue
            check_header(first, second > 127, length, self.compresses)
            control = first & 0x0F >= CLOSE
            if length > self._limit and not control:
                raise Failure(TOO_BIG, f"over size limit ({length} > {self._limit} bytes)")
            if stop > end:
                wanted = stop - at
                break
            if control:
                self._take_control(first & 0x0F, unmask(data[start:stop], data[start - 4 : start]))
                if self._deaf:
                    return end
            elif self._accepts:
                self._take_data(data[at:stop])
                if self.compresses and clock() > part_ends:
                    return stop
            at = stop
        if at < end:
            if end - at >= 2 and end - at < MASKED_HEADER:
                length = data[at + 1] & 0x7F
                check_header(data[at], data[at + 1] > 127, length, self.compresses)
            self._pieces, self._have, self._wanted = [data[at:]], end - at, wanted
            self._begin()
            self._bound_partial()
        return end

    def _completed(self, data: bytes) -> bytes:
        """Add data to the incomplete frame; returns all of it, or nothing if that isn't enough.

        Raises Failure.
        """
        pieces = self._pieces
        pieces.append(data)
        self._have += len(data)
        if self._have < self._wanted:
            if len(pieces) > MOST_PIECES:
                merge(pieces)
            self._bound_partial()
            return b""
        self._forget_partial()
        return b"".join(pieces)

    def _forget_partial(self) -> None:
        self._pieces, self._have = [], 0
        if not self._fragmented:
            self.begun = math.inf

    def _begin(self) -> None:
        """Record when an incomplete message begins."""
        if self.begun == math.inf:
            self.begun = self._service.now
            self._owner.on_beginning()

    def excuses(self, now: float) -> bool:
        """Whether the client gets more time for its message, because it isn't being read from."""
        if not (self.paused or self._backlog):
            return False
        self.begun = now
        return True

    def _count_holdings(self) -> None:
        """Update the part of the worker's holdings that this connection holds."""
        held = self._held + self._backlogged + self._have
        if self._fragmented and self._codec is not None:
            held += self._codec.unfinished
        beyond = max(0, held - FREE)
        self._service.holdings.left -= beyond - self._charged
        self._charged = beyond

    def _bound_holdings(self) -> None:
        """Update the holdings. Raises Failure if they grew beyond the worker's limit."""
        before = self._charged
        self._count_holdings()
        if self._service.holdings.left < 0 and self._charged > before:
            raise Failure(TRY_AGAIN_LATER, "the server holds too many messages")

    def _bound_partial(self) -> None:
        """Bound the holdings, and stop reading a large frame that would have to wait."""
        if self._have > FREE or self._charged:
            self._bound_holdings()
        if self._have > BACKLOG and self._accepts and (self._backlog or self._full()):
            self._pause()

    def _pause(self) -> None:
        self._special = True
        self.paused = True
        if self._reads:
            self._regulate()

    def _take_control(self, opcode: int, content: bytes) -> None:
        """Handle a control frame. Raises Failure."""
        owner, now = self._owner, self._service.now
        if now != self._counted_at:
            self._counted_at, self._controls = now, 0
        self._controls += 1
        if self._controls > MOST_CONTROLS and opcode != CLOSE:
            raise Failure(POLICY_VIOLATION, "too many pings or pongs")
        if opcode == PING:
            owner.on_ping(content)
        elif opcode == PONG:
            owner.on_pong(content)
        else:
            owner.on_close(content)

    def _take_data(self, frame: bytes) -> None:
        """Decode a data frame, or let it wait if the queue is full. Raises Failure."""
        if not (self._backlog or self._full()):
            if not self._expands(frame):
                self._decode(frame)
                return
            self._refill_later()
        self._special = True
        self._backlog.append(frame)
        self._backlogged += len(frame) + FRAME_OVERHEAD
        if self._backlogged > BACKLOG:
            self._pause()

    def _expands(self, frame: bytes) -> bool:
        """Whether decompressing this frame in one step could take too long for one turn."""
        return (
            self.compresses
            and len(frame) > COMPRESSED + LARGEST_HEADER
            and (self._fragmented or frame[0] not in PLAIN)
        )

    def _put_back(self, frames: list[bytes]) -> None:
        """Put these frames in front of the frames that wait."""
        self._backlog.extendleft(reversed(frames))
        self._backlogged += sum(map(len, frames)) + FRAME_OVERHEAD * len(frames)

    def _decode(self, frame: bytes) -> None:
        first = frame[0]
        if first in PLAIN and not self._fragmented:
            start = MASKED_HEADER + {126: 2, 127: 8}.get(frame[1] & 0x7F, 0)
            content = unmask(frame[start:], frame[start - 4 : start])
            self.on_message(content if first == BINARY else _text(content))
            return
        self._count_fragment(first, len(frame) - MASKED_HEADER)
        self._fragmented = not first & 0x80
        self._special = self._special or self._fragmented
        self.codec().feed(frame, self)
        if self._fragmented:
            self._begin()
            self._bound_holdings()
        else:
            self.begun = math.inf
        if first == CONTINUATION | 0x80:
            self._special = self._is_special()

    def _count_fragment(self, first: int, size: int) -> None:
        """Limit the work for a message of tiny fragments. Raises Failure."""
        if first & 0x0F != CONTINUATION:
            self._fragments = self._fragment_bytes = 0
        self._fragments += 1
        self._fragment_bytes += size
        beyond = self._fragments - FREE_FRAGMENTS
        if beyond > 0 and beyond * FRAGMENT > self._fragment_bytes:
            raise Failure(POLICY_VIOLATION, "too many tiny fragments")

    def on_message(self, message: str | bytes) -> None:
        """See `Sink`."""
        self.queue.append(message)
        self._held += getsizeof(message)
        self._owner.on_arrival()
        if len(self.queue) >= self._most_queued or self._held > FREE:
            self._special = True
            if self._held > FREE:
                self._hold_message()

    def _hold_message(self) -> None:
        """Update the holdings; if there is no room for the newest message, drop it and raise."""
        try:
            self._bound_holdings()
        except Failure:
            self._held -= getsizeof(self.queue.pop())
            self._count_holdings()
            raise

    def _full(self) -> bool:
        return len(self.queue) >= self._most_queued or self._held > QUEUE_BYTES

    def _is_special(self) -> bool:
        waits = bool(self._backlog) or self._full() or self._charged > 0
        return waits or self._fragmented or not self._accepts


def _text(content: bytes) -> str:
    """Decode the text of a message. Raises Failure (RFC 6455, section 8.1)."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise Failure(INVALID_DATA, f"{error.reason} at position {error.start}") from None
