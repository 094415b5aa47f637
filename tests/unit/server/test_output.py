"""Data sent within one turn of the loop is written at its end, except for the first write."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from esg.server.outflow import JOIN_LIMIT, MOST_COLLECTED, Outflow
from esg.server.output import MOST_WAITING, Output


class Wire(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.written = []
        self.fails = self.aborted = False

    def write(self, data):
        if self.fails:
            raise RuntimeError("broken")
        self.written.append(data)

    def abort(self):
        self.aborted = True


class Head:
    """A response whose head is held until its body comes."""

    def __init__(self, outflow):
        self.outflow = outflow
        self.sent = False

    def flush_head(self):
        if not self.sent:
            self.sent = True
            self.outflow.write(b"head")


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def output(loop):
    return Output(loop, "worker=1", contextvars.copy_context())


@pytest.fixture
def flow(loop, output):
    """Makes outflows of a turn in which another one has written something already."""

    def make():
        outflow = Outflow(loop, output)
        outflow.attach(Wire())
        return outflow

    make().write(b"the first write of the turn")
    return make


def end_turn(loop):
    loop.call_soon(loop.stop)
    loop.run_forever()


def test_the_first_write_of_a_turn_does_not_wait(loop, flow):
    end_turn(loop)
    one, other = flow(), flow()
    one.write(b"a")
    other.write(b"b")
    one.write(b"c")
    one.write(b"d")
    assert (one.transport.written, other.transport.written) == ([b"a"], [])
    end_turn(loop)
    assert (one.transport.written, other.transport.written) == ([b"a", b"cd"], [b"b"])


def test_the_writes_of_a_turn_become_one(loop, flow):
    one = flow()
    for piece in (b"a", b"b", b"c"):
        one.write(piece)
    assert one.transport.written == []
    end_turn(loop)
    assert one.transport.written == [b"abc"]


def test_the_next_turn_has_writes_of_its_own(loop, flow):
    one = flow()
    for piece in (b"a", b"b"):
        one.write(piece)
        end_turn(loop)
    assert one.transport.written == [b"a", b"b"]


def test_a_flush_writes_at_once_and_only_once(loop, flow):
    one = flow()
    one.write(b"a")
    one.flush()
    assert one.transport.written == [b"a"]
    one.write(b"b")
    end_turn(loop)
    assert one.transport.written == [b"a", b"b"]


def test_many_bytes_do_not_wait(flow):
    one = flow()
    one.write(b"a")
    one.write(bytes(MOST_COLLECTED))
    assert one.transport.written == [b"a" + bytes(MOST_COLLECTED)]


def test_a_large_piece_is_not_copied(flow):
    one = flow()
    large = bytes(JOIN_LIMIT + 1)
    one.write(b"a")
    one.write(large)
    assert one.transport.written[0] == b"a"
    assert one.transport.written[1] is large


def test_many_connections_do_not_wait_for_the_end_of_a_long_turn(loop, flow):
    flows = [flow() for _ in range(MOST_WAITING + 1)]
    for one in flows:
        one.write(b"a")
    written = [one.transport.written for one in flows]
    assert written == [[b"a"]] * (MOST_WAITING - 1) + [[], []]  # another one was there before
    end_turn(loop)
    assert [one.transport.written for one in flows] == [[b"a"]] * len(flows)


def test_a_held_head_waits_for_the_end_of_the_turn_although_there_are_many(loop, flow):
    flows = [flow() for _ in range(3 * MOST_WAITING)]
    for one in flows:
        one.hold(Head(one))
    assert not any(one.transport.written for one in flows)
    end_turn(loop)
    assert [one.transport.written for one in flows] == [[b"head"]] * len(flows)


def test_a_head_follows_what_was_written_before(loop, flow):
    one = flow()
    one.write(b"a")
    one.hold(Head(one))
    end_turn(loop)
    assert one.transport.written == [b"ahead"]


def test_a_connection_that_fails_does_not_hold_up_the_others(loop, flow, caplog):
    flows = [flow() for _ in range(3)]
    for one in flows:
        one.write(b"a")
    flows[1].transport.fails = True
    end_turn(loop)
    assert [one.transport.written for one in flows] == [[b"a"], [], [b"a"]]
    assert "worker=1 can't write to a connection" in caplog.text
    assert [one.transport.aborted for one in flows] == [False, True, False]


def test_the_unsent_data_of_a_lost_connection_is_dropped(loop, flow):
    one = flow()
    one.write(b"a")
    one.drop()
    end_turn(loop)
    assert one.transport.written == []


def test_no_request_lends_its_context_variables_to_the_writes(loop, flow):
    variable = contextvars.ContextVar("request", default="none")
    one, seen = flow(), []
    end_turn(loop)

    class NotingHead:
        def flush_head(self):
            seen.append(variable.get())

    context = contextvars.copy_context()
    context.run(variable.set, "the first request")
    context.run(one.hold, NotingHead())
    end_turn(loop)
    assert seen == ["none"]
