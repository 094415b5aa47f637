"""A client that reads slowly has its full time limit, even if it sends other data meanwhile."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.stage import PARSERS, Stage, Wire, statuses_of

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ENDS = {
    "nothing": (b"", False),
    "an error": (b"\0garbage\r\n\r\n", False),
    "the end": (b"", True),
    "an error and the end": (b"\0garbage\r\n\r\n", True),
    "half a head": (b"GET / HT", False),
    "half a head and the end": (b"GET / HT", True),
    "half a body": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf", False),
    "half a body and the end": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
        True,
    ),
}
"""What may follow whole requests: bytes, and whether the client closes its side after them."""

SEND, RESUME = "send", "resume"

TIMEOUTS = {"timeout_send": 1000.0, "timeout_request_header": 10.0, "timeout_keep_alive": 10.0}


class SlowWire(Wire):
    """A transport to a client that stops reading at certain writes, until `resume`."""

    def __init__(self, stops: set[int]) -> None:
        super().__init__()
        self._stops = stops
        self.paused = False

    def write(self, data: object) -> None:
        super().write(data)
        if len(self.output) in self._stops and not self.paused:
            self.paused = True
            self.protocol.pause_writing()

    def resume(self) -> None:
        if self.paused and not self.ended:
            self.paused = False
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return int(self.paused)


@dataclasses.dataclass
class Play:
    """A client's actions: pieces of bytes, and moments at which it reads again."""

    steps: list[tuple[str, bytes]]
    stops: set[int]
    whole: int
    end: str


@st.composite
def plays(draw):
    whole = draw(st.integers(1, 20))
    end = draw(st.sampled_from(sorted(ENDS)))
    data = REQUEST * whole + ENDS[end][0]
    stops = draw(st.sets(st.integers(1, 5), max_size=3))
    cuts = sorted(draw(st.sets(st.integers(1, len(data) - 1), max_size=5)))
    steps = []
    for begin, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        steps.append((SEND, data[begin:stop]))
        if draw(st.booleans()):
            steps.append((RESUME, b""))
    return Play(steps, stops, whole, end)


@pytest.fixture(scope="module", params=PARSERS)
def stage(request):
    stage = Stage(request.param, **TIMEOUTS)
    yield stage
    stage.close()


async def act(stage: Stage, play: Play) -> None:
    wire = SlowWire(play.stops)
    connection = stage.connect(wire)

    def check_deadline():
        """A slow reader has all of `--timeout-send`, even if data arrives meanwhile."""
        if wire.paused and not wire.ended:
            assert connection.deadline > stage.service.now + TIMEOUTS["timeout_send"] / 2

    for kind, piece in play.steps:
        if kind == RESUME:
            wire.resume()
        else:
            connection.data_received(piece)
        check_deadline()
        await stage.settled([wire])
        check_deadline()
    if ENDS[play.end][1] and not wire.ended and not connection.eof_received():
        wire.close()
    await stage.settled([wire])
    check_deadline()
    while wire.paused and not wire.ended:
        wire.resume()
        await stage.settled([wire])
    statuses = statuses_of(b"".join(wire.output))
    connection.connection_lost(None)
    await stage.settled([wire])
    refused = (400,) if "error" in play.end else ()
    # A request that is half received is answered, unless its client has closed its side.
    assert statuses == (200,) * play.whole + refused
    assert wire.ended is (play.end not in ("nothing", "half a head", "half a body"))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(play=plays())
def test_each_whole_request_is_answered_in_its_turn(stage, play):
    stage.run(act(stage, play))
