"""Typed messages between the arbiter and a worker."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.mailbox import (
    BootFailed,
    CantWatch,
    Changed,
    Drain,
    Draining,
    Due,
    FromWorker,
    MessageError,
    NewLogFiles,
    Ready,
    ReloadFailed,
    Watching,
    decode,
    encode,
    pair,
)

TEXT = st.text(max_size=200)

MESSAGES = st.one_of(
    st.builds(Ready),
    st.builds(BootFailed, TEXT, TEXT, st.integers(0, 255)),
    st.builds(Due, TEXT),
    st.builds(Draining, TEXT),
    st.builds(NewLogFiles, st.lists(TEXT)),
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
    """A traceback in any script, that is; it must neither be lost nor arrive in part."""
    ours, theirs = ends
    was_sent = ours.send(BootFailed(char * 10**6 + "why", char * 10**6 + "end", 3))
    assert was_sent
    (message,), alive = theirs.receive()
    assert alive
    assert message.message.endswith("why")
    assert message.detail.endswith("end")
    assert message.exit_code == 3


def test_the_end_of_a_long_text_is_what_is_kept():
    message = decode(encode(BootFailed("m", "first" + "x" * 10**6 + "last", 3)))
    assert len(message.detail) > 10_000
    assert message.detail.endswith("xlast")


def test_messages_keep_their_order_and_borders(ends):
    ours, theirs = ends
    sent = [Due("a"), Draining("b"), Ready()]
    for message in sent:
        assert ours.send(message)
    assert theirs.receive() == (sent, True)
    assert theirs.receive() == ([], True)


def test_both_ends_send_and_receive(ends):
    ours, theirs = ends
    order = Drain("reload", 30.0, final=False)
    ours.send(order)
    theirs.send(Ready())
    assert theirs.receive() == ([order], True)
    assert ours.receive() == ([Ready()], True)


def test_a_closed_end_is_noticed_behind_what_it_sent(ends):
    ours, theirs = ends
    theirs.send(Ready())
    theirs.close()
    assert ours.receive() == ([Ready()], False)
    assert ours.receive() == ([], False)


def test_sending_to_a_closed_end_says_so(ends):
    ours, theirs = ends
    theirs.close()
    assert ours.send(Ready()) is False


def test_sending_never_waits(ends):
    ours, theirs = ends
    results = [ours.send(Due("x" * 1000)) for _ in range(10_000)]
    assert results[0] is True
    assert results[-1] is False
    messages, alive = theirs.receive()
    assert alive
    assert len(messages) == results.count(True)


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
def test_what_is_no_message_is_one_kind_of_error(ends, data, caplog):
    with pytest.raises(MessageError):
        decode(data)
    ours, theirs = ends
    ours._sock.send(data)
    ours.send(Ready())
    assert theirs.receive() == ([Ready()], True)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.message.startswith("ignored what came by mailbox: ")


def test_what_the_other_side_has_no_business_to_send_is_ignored(ends, caplog):
    ours, theirs = ends
    before = os.listdir("/proc/self/fd")
    theirs.send(Drain("mine", 1.0, final=True))
    theirs.send(NewLogFiles(["/log"], [0]))
    theirs.send(Ready())
    assert ours.receive(FromWorker) == ([Ready()], True)
    assert [record.message for record in caplog.records] == [
        f"ignored what came by mailbox: {name}, which isn't sent to this side"
        for name in ("Drain", "NewLogFiles")
    ]
    assert os.listdir("/proc/self/fd") == before


def test_who_sends_without_end_gets_a_turn_like_everybody(ends, monkeypatch):
    monkeypatch.setattr("esg.mailbox.MOST_AT_ONCE", 2)
    ours, theirs = ends
    for reason in "abc":
        ours.send(Due(reason))
    assert theirs.receive() == ([Due("a"), Due("b")], True)
    assert theirs.receive() == ([Due("c")], True)


def test_numbers_of_descriptors_are_not_taken_from_the_text(ends):
    ours, theirs = ends
    ours._sock.send(b'["NewLogFiles", {"paths": [], "fds": [1, 2]}]')
    (message,), _ = theirs.receive()
    assert message.fds == []


def test_descriptors_that_nobody_asked_for_are_closed(ends):
    ours, theirs = ends
    before = os.listdir("/proc/self/fd")
    socket.send_fds(ours._sock, [encode(Ready())], [0, 1])
    socket.send_fds(ours._sock, [b"nonsense"], [0])
    assert theirs.receive() == ([Ready()], True)
    assert os.listdir("/proc/self/fd") == before
