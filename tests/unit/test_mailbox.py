"""Typed messages between the arbiter and a worker."""

from __future__ import annotations

import os
import select
import socket
import threading
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.mailbox import (
    MESSAGE_LIMIT,
    MOST_AT_ONCE,
    ArbitersEnd,
    BootFailed,
    CantWatch,
    Changed,
    Drain,
    Draining,
    Due,
    FromArbiter,
    FromWatcher,
    FromWorker,
    Hello,
    Message,
    MessageError,
    NewListener,
    NewLogFiles,
    NewRow,
    Ready,
    ReloadFailed,
    RowGone,
    StoppedAccepting,
    Watching,
    decode,
    encode,
    pair,
)

TEXT = st.text(max_size=200)

MESSAGES = st.one_of(
    st.builds(Hello, st.integers(1, 2**22)),
    st.builds(Ready),
    st.builds(RowGone, st.integers(1, 1024)),
    st.builds(BootFailed, TEXT, TEXT, st.integers(0, 255)),
    st.builds(Due, TEXT),
    st.builds(Draining, TEXT),
    st.builds(StoppedAccepting),
    st.builds(NewLogFiles, st.lists(TEXT)),
    st.builds(NewListener, TEXT),
    st.builds(NewRow, st.integers(1, 1024)),
    st.builds(ReloadFailed, TEXT, TEXT),
    st.builds(Watching, TEXT),
    st.builds(Changed, TEXT),
    st.builds(CantWatch, TEXT),
    st.builds(Drain, TEXT, st.floats(0, 1e9), st.booleans()),
)


@pytest.fixture
def ends():
    ours, theirs = pair()
    yield ours, theirs
    ours.close()
    theirs.close()


@given(MESSAGES)
def test_a_message_is_decoded_as_it_was_encoded(message):
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    "char", ["x", "\n", '"', "\u00e9", "\u65e5", "\U0001f40d", "\0", "\udc80"], ids=ascii
)
def test_the_longest_texts_arrive(ends, char):
    """For example a traceback in any writing system; it must arrive, and arrive whole."""
    ours, theirs = ends
    sending = threading.Thread(
        target=theirs.send, args=(BootFailed(char * 10**6 + "why", char * 10**6 + "end", 3),)
    )
    sending.start()  # it waits for room
    message, alive = received(ours)
    sending.join()
    assert alive
    assert message.message.endswith("why")
    assert message.detail.endswith("end")
    assert message.exit_code == 3


def received(end):
    """The only message that arrives, and whether the other side is still open."""
    while True:
        assert select.select([end], [], [], 10)[0], "a message within its time"
        messages, alive = end.receive()
        if messages or not alive:
            (message,) = messages
            return message, alive


def test_a_long_message_is_not_sent_if_nobody_makes_room(ends, monkeypatch):
    monkeypatch.setattr("esg.mailbox.PATIENCE", 0.0)
    ours, theirs = ends
    long = CantWatch("x" * 30_000)
    assert [theirs.send(long) for _ in range(3)] == [True, True, False]
    assert ours.receive(FromWatcher) == ([long, long], True)
    assert theirs.send(Ready())
    assert ours.receive() == ([Ready()], True)


def test_the_end_of_a_long_text_is_kept():
    message = decode(encode(BootFailed("m", "first" + "x" * 10**6 + "last", 3)))
    assert len(message.detail) > 10_000
    assert message.detail.endswith("xlast")


def test_messages_keep_their_order_and_boundaries(ends):
    sent = [Due("a"), Draining("b"), Ready()]
    for sender, receiver in (ends, reversed(ends)):
        for message in sent:
            assert sender.send(message)
        assert receiver.receive() == (sent, True)
        assert receiver.receive() == ([], True)


def test_both_ends_send_and_receive(ends):
    ours, theirs = ends
    order = Drain("reload", 30.0, final=False)
    ours.send(order)
    theirs.send(Ready())
    assert theirs.receive() == ([order], True)
    assert ours.receive() == ([Ready()], True)


@pytest.mark.parametrize("turn", [1, -1], ids=["to the arbiter", "to the worker"])
class TestBothDirections:
    def test_a_closed_end_is_noticed_after_its_messages(self, ends, turn):
        receiver, sender = ends[::turn]
        sender.send(Ready())
        sender.close()
        assert receiver.receive() == ([Ready()], False)
        assert receiver.receive() == ([], False)

    def test_sending_to_a_closed_end_says_so(self, ends, turn):
        receiver, sender = ends[::turn]
        receiver.close()
        assert sender.send(Ready()) is False

    def test_sending_never_waits(self, ends, turn):
        receiver, sender = ends[::turn]
        results = [sender.send(Due("x" * 1000)) for _ in range(10_000)]
        assert results[0] is True
        assert results[-1] is False
        messages, alive = receiver.receive()
        assert alive
        assert messages == [Due("x" * 1000)] * results.count(True)

    def test_an_invalid_message_is_logged_and_ignored(self, ends, turn, caplog):
        receiver, sender = ends[::turn]
        raw(sender, b'["Nothing", {}]')
        sender.send(Ready())
        assert receiver.receive() == ([Ready()], True)
        (record,) = caplog.records
        assert record.levelname == "ERROR"
        assert record.message.startswith("ignored a message from ")


def raw(end, data):
    """Send bytes as a message."""
    if isinstance(end, ArbitersEnd):
        end._sock.send(data)
    else:
        os.write(end.descriptors[1], data + b"\n")


# -- what a hostile worker tries ---------------------------------------------------------


def test_a_worker_can_send_no_descriptor(ends):
    """Closing a descriptor could make the arbiter wait: TCP, SO_LINGER, unsent data."""
    _, theirs = ends
    for family in (b"x", b""):
        with pytest.raises(BrokenPipeError):
            socket.send_fds(theirs._sock, [family], [0])
    with pytest.raises(OSError, match="Socket operation on non-socket"):
        socket.send_fds(socket.socket(fileno=os.dup(theirs.descriptors[1])), [b"x"], [0])


def test_a_worker_cannot_connect_its_socket_again(ends):
    ours, theirs = ends
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")  # binds to an abstract name that the kernel chooses
        listener.listen()
        with pytest.raises(OSError, match="already connected"):
            theirs._sock.connect(listener.getsockname())
    with pytest.raises(BrokenPipeError):
        theirs._sock.send(b"x")
    assert ours.send(Drain("reload", 1.0, final=False)), "the way to the worker is open"
    assert theirs.receive()[0] == [Drain("reload", 1.0, final=False)]


def test_a_worker_learns_of_the_arbiters_end_by_a_hang_up_alone(ends):
    """Like the lifeline, which must not mistake the one-way socket for a dead arbiter."""
    ours, theirs = ends
    poll = select.poll()
    poll.register(theirs, 0)
    assert poll.poll(0) == []
    ours.send(Ready())
    assert poll.poll(0) == []
    ours.close()
    assert poll.poll(0) == [(theirs.fileno(), select.POLLHUP)]


def test_a_flood_of_nonsense_is_logged_once_and_then_counted(ends, caplog):
    ours, theirs = ends
    ours.sender = "worker=1 gen=1"
    for _ in range(50):
        raw(theirs, b"nonsense")
    theirs.send(Ready())
    assert ours.receive(FromWorker) == ([Ready()], True)
    theirs.close()
    assert ours.receive(FromWorker) == ([], False)
    assert [record.message for record in caplog.records] == [
        "ignored a message from worker=1 gen=1: 8 bytes that aren't a message",
        "ignored 49 more messages from worker=1 gen=1",
    ]


def test_a_flood_is_not_decoded_beyond_a_bound(ends, caplog):
    ours, theirs = ends
    os.write(theirs.descriptors[1], b'["Ready", {}]\n' * 4000)
    messages, alive = ours.receive(FromWorker)
    assert (len(messages), alive) == (MOST_AT_ONCE, True)
    assert theirs.send(Due("later"))
    assert ours.receive(FromWorker) == ([Due("later")], True)
    (record,) = caplog.records
    assert record.message.endswith(f"more than {MOST_AT_ONCE} messages at once")


def test_a_message_without_end_takes_bounded_memory(ends, caplog):
    ours, theirs = ends
    for _ in range(40):
        os.write(theirs.descriptors[1], b"x" * 10_000)
        assert ours.receive(FromWorker) == ([], True)
        assert len(ours._begun) <= MESSAGE_LIMIT
    os.write(theirs.descriptors[1], b"x\n")
    theirs.send(Ready())
    assert ours.receive(FromWorker) == ([Ready()], True)
    (record,) = caplog.records
    assert record.message.endswith(f"a message of more than {MESSAGE_LIMIT} bytes")


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_no_bytes_from_a_worker_raise_an_error(pieces):
    ours, theirs = pair()
    try:
        for piece in pieces:
            os.write(theirs.descriptors[1], piece)
            assert ours.receive(FromWorker)[1]
        os.write(theirs.descriptors[1], b"\n")
        theirs.send(Due("after it"))
        messages, alive = ours.receive(FromWorker)
        assert (messages[-1], alive) == (Due("after it"), True)
    finally:
        ours.close()
        theirs.close()


def test_descriptors_arrive_as_copies_that_programs_do_not_inherit(ends, tmp_path):
    ours, theirs = ends
    with (tmp_path / "log").open("w") as file:
        assert ours.send(NewLogFiles(["/log"], [file.fileno()]))
        (message,), _ = theirs.receive()
        (fd,) = message.fds
        assert fd != file.fileno()
        assert not os.get_inheritable(fd)
        assert os.path.sameopenfile(fd, file.fileno())
        os.close(fd)


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense",
        b"\xff\xfe",
        b"7",
        b'["Ready"]',
        b'["Nothing", {}]',
        b'["Ready", {"more": 1}]',
        b'["Ready", []]',
        b'[["Ready"], {}]',
        b'["Due", {"reason": 7}]',
        b'["Due", {"reason": null}]',
        b'["BootFailed", {"message": "", "detail": "", "exit_code": true}]',
        b'["Drain", {"reason": "", "grace": "1", "final": true}]',
        b'["Drain", {"reason": "", "grace": 1, "final": true, "dropped": [1]}]',
        b'["NewLogFiles", {"paths": "abc"}]',
        b"[" * 50_000,
        b"9" * 50_000,
    ],
    ids=lambda data: data[:60].decode("latin-1"),
)
def test_any_invalid_message_raises_message_error(data):
    with pytest.raises(MessageError):
        decode(data)


def test_only_messages_of_the_arbiter_may_carry_descriptors():
    carrying = {kind for kind in get_args(Message) if "fds" in kind.__annotations__}
    assert carrying
    assert carrying <= set(get_args(FromArbiter))


def test_a_message_that_the_other_side_may_not_send_is_ignored(ends, caplog):
    ours, theirs = ends
    theirs.send(Drain("mine", 1.0, final=True))
    theirs.send(NewLogFiles(["/log"], [0]))
    theirs.send(Ready())
    assert ours.receive(FromWorker) == ([Ready()], True)
    (record,) = caplog.records
    assert record.message == (
        "ignored a message from a worker: Drain, which isn't sent to this side"
    )


def test_numbers_of_descriptors_are_not_taken_from_the_text(ends):
    ours, theirs = ends
    ours._sock.send(b'["NewLogFiles", {"paths": [], "fds": [1, 2]}]')
    (message,), _ = theirs.receive()
    assert message.fds == []


def test_unexpected_descriptors_are_closed(ends):
    ours, theirs = ends
    before = os.listdir("/proc/self/fd")
    socket.send_fds(ours._sock, [encode(Ready())], [0, 1])
    socket.send_fds(ours._sock, [b"nonsense"], [0])
    assert theirs.receive() == ([Ready()], True)
    assert os.listdir("/proc/self/fd") == before
