"""TLS on the test's transport: the work that a client's records can cause."""

from __future__ import annotations

import contextvars

import pytest

from esg.server.tls import server_context
from esg.server.tls_transport import FEW_BYTES, MOST_RECORDS, MOST_USELESS, TLSTransport
from esg.server.turns import SMALL, Turns
from esg.settings.schema import Config
from tests.support.certificates import Authority
from tests.support.openssl import OpenSSL


class Below:
    """The transport of a socket, which can be paused."""

    def __init__(self):
        self.written = b""
        self.reading = True
        self.closed = False

    def write(self, data):
        self.written += data

    def write_eof(self):
        self.closed = True

    def pause_reading(self):
        assert self.reading
        self.reading = False

    def resume_reading(self):
        assert not self.reading
        self.reading = True

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed


class Above:
    """The protocol above TLS."""

    def __init__(self):
        self.pieces = []
        self.ended = False

    def connection_made(self, transport):
        pass

    def data_received(self, data):
        self.pieces.append(data)

    def eof_received(self):
        self.ended = True
        return True

    def pause_writing(self):
        pass

    def resume_writing(self):
        pass


class Timer:
    def cancel(self):
        pass


class Desk:
    """A server's side of one connection after its handshake, and its client."""

    def __init__(self, config):
        self.due, self.now = [], 100.0
        self.turns = Turns(self, contextvars.copy_context(), lambda: self.now)
        self.below, self.above, self.client = Below(), Above(), OpenSSL()
        self.transport = TLSTransport(
            self,
            self.turns,
            server_context(config),
            lambda extension: self.above,
            limit=10,
            fail=pytest.fail,
        )
        self.transport.connection_made(self.below)
        done = self.client.take(b"")
        while not done:
            self.transport.data_received(self.client.sent())
            answer, self.below.written = self.below.written, b""
            done = self.client.take(answer)
        self.transport.data_received(self.client.sent())
        self.below.written = b""

    def time(self):
        return self.now

    def call_later(self, delay, callback, *args):
        return Timer()

    def call_soon(self, callback, *args, context):
        self.due.append(callback)

    def turn(self):
        due, self.due = self.due, []
        for callback in due:
            callback()

    def tiny(self, count):
        """Records of one byte each."""
        return b"".join(self.client.data(b"x") for _ in range(count))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    certfile, keyfile = Authority(tmp_path_factory.mktemp("tls")).issue()
    return Config(app="test:app", ssl_certfile=certfile, ssl_keyfile=keyfile)


@pytest.fixture
def desk(config):
    desk = Desk(config)
    yield desk
    desk.client.close()


def test_few_records_are_handled_immediately(desk):
    desk.transport.data_received(desk.tiny(10))
    assert desk.above.pieces == [b"x" * 10]
    assert desk.due == []


def test_a_turn_handles_a_limited_number_of_records(desk):
    desk.transport.data_received(desk.tiny(300) + desk.client.data(b"end"))
    assert desk.above.pieces == [b"x" * MOST_RECORDS]
    assert not desk.below.reading
    while desk.due:
        desk.turn()
    assert max(map(len, desk.above.pieces)) == MOST_RECORDS
    assert b"".join(desk.above.pieces) == b"x" * 300 + b"end"
    assert desk.below.reading


def test_large_records_are_never_put_off(desk):
    desk.transport.data_received(desk.client.data(b"x" * 16384) + desk.client.data(b"y" * 9000))
    assert desk.above.pieces == [b"x" * 16384 + b"y" * 9000]
    assert desk.due == []


@pytest.mark.parametrize("size", [1, 4, 7, 100, 1023, 1025, 3000])
def test_records_in_pieces_of_any_size_arrive_in_order(desk, size):
    data = desk.tiny(100) + desk.client.data(b"y" * 5000) + desk.tiny(100)
    for at in range(0, len(data), size):
        desk.transport.data_received(data[at : at + size])
        while desk.due:
            desk.turn()
    assert b"".join(desk.above.pieces) == b"x" * 100 + b"y" * 5000 + b"x" * 100
    assert desk.below.reading
    assert not desk.below.closed


def test_large_reads_wait_while_the_turn_is_full(desk):
    desk.turns.spend(1.0)
    desk.transport.data_received(desk.client.data(b"y" * FEW_BYTES))
    assert desk.above.pieces == []
    assert not desk.below.reading
    desk.turn()
    assert desk.above.pieces == [b"y" * FEW_BYTES]
    assert desk.below.reading
    desk.turns.spend(1.0)
    desk.transport.data_received(desk.client.data(b"z" * (SMALL // 2)))
    assert desk.above.pieces[1:] == [b"z" * (SMALL // 2)]


def test_postponed_data_waits_for_the_protocol_above(desk):
    desk.transport.data_received(desk.tiny(200))
    desk.transport.pause_reading()
    while desk.due:
        desk.turn()
    assert desk.above.pieces == [b"x" * MOST_RECORDS]
    desk.transport.resume_reading()
    assert not desk.below.reading
    while desk.due:
        desk.turn()
    assert b"".join(desk.above.pieces) == b"x" * 200
    assert desk.below.reading


def test_the_end_is_passed_on_after_postponed_data(desk):
    desk.transport.data_received(desk.tiny(200))
    assert desk.transport.eof_received()
    assert not desk.above.ended
    while desk.due:
        desk.turn()
    assert b"".join(desk.above.pieces) == b"x" * 200
    assert desk.above.ended


def test_a_connection_that_is_lost_in_the_middle_drops_the_rest(desk):
    desk.transport.data_received(desk.tiny(200))
    desk.above.connection_lost = lambda error: None
    desk.transport.connection_lost(None)
    desk.turn()
    assert desk.above.pieces == [b"x" * MOST_RECORDS]
    assert desk.due == []


def test_closing_in_the_middle_drops_the_rest_and_continues_to_read(desk):
    desk.transport.data_received(desk.tiny(200))
    desk.transport.write_eof()
    assert desk.below.reading
    desk.turn()
    assert desk.above.pieces == [b"x" * MOST_RECORDS]


@pytest.mark.parametrize("answer", [True, False])
@pytest.mark.parametrize("together", [1, 10, 1000])
def test_a_flood_of_key_updates_ends_the_connection(desk, answer, together):
    sent = 0
    while not desk.below.closed:
        updates = [desk.client.key_update(answer=answer) for _ in range(together)]
        desk.transport.data_received(b"".join(updates))
        sent += together
        assert sent <= MOST_USELESS + together
        assert len(desk.below.written) < 100 * (MOST_USELESS + MOST_RECORDS)


def test_key_updates_count_even_before_a_record_with_data(desk):
    """All in one small read, whose last record has data for the application."""
    sent = 0
    while not desk.below.closed:
        updates = b"".join(desk.client.key_update() for _ in range(20))
        read = updates + desk.client.data(b"x")
        assert len(read) <= FEW_BYTES
        desk.transport.data_received(read)
        sent += 20
        assert sent <= MOST_USELESS + 20


def test_key_updates_now_and_then_are_accepted(desk):
    for number in range(3 * MOST_USELESS):
        desk.transport.data_received(desk.client.key_update())
        desk.now += 0.1
        desk.transport.data_received(desk.client.data(b"x"))
        assert len(desk.above.pieces) == number + 1
    assert not desk.below.closed


def test_a_client_that_reads_no_answers_is_no_longer_read(desk):
    desk.transport.pause_writing()
    desk.transport.data_received(desk.client.data(b"x"))
    assert desk.below.reading
    for _ in range(2):  # OpenSSL answers at its next read or write
        desk.transport.data_received(desk.client.key_update())
    assert not desk.below.reading
    desk.transport.resume_writing()
    assert desk.below.reading
    desk.transport.data_received(desk.client.data(b"y"))
    assert desk.above.pieces == [b"x", b"y"]
