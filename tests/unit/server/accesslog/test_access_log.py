"""The access log's lines, and how they are written."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.log.files import LogFile, LogFiles
from esg.log.records import arbiter_subject
from esg.log.setup import LogSetup
from esg.server.accesslog import access_log
from esg.server.accesslog.access_log import PIPE_ATOMIC, AccessLog
from esg.server.accesslog.entries import Refused, SocketRecord
from esg.server.accesslog.lines import (
    duration,
    printable,
    terminal_line,
    terminal_refusal_line,
    terminal_socket_line,
    uvicorn_line,
)
from esg.settings.schema import Config

CLIENT = ("192.0.2.1", 4711)


def exchange(client, method, target, http_version, status):
    """A finished exchange, as far as a line needs one."""
    scope = {"client": client, "method": method, "http_version": http_version}
    return SimpleNamespace(scope=scope, target=target, status=status)


def uvicorns_log(fd, colors=False):
    return AccessLog(asyncio.get_running_loop(), LogFile(fd), uvicorn_line(colors))


class Pipe:
    """A pipe to log to."""

    def __init__(self):
        self.read_fd, self.write_fd = os.pipe()

    def lines(self):
        return os.read(self.read_fd, 1 << 20).decode().splitlines()

    def close(self):
        os.close(self.read_fd)
        if self.write_fd >= 0:
            os.close(self.write_fd)


@pytest.fixture
def pipe():
    pipe = Pipe()
    yield pipe
    pipe.close()


def written(pipe, *records, colors=False):
    """The lines for these records."""

    async def run():
        log = uvicorns_log(pipe.write_fd, colors)
        for record in records:
            log.record(exchange(*record))
        await asyncio.sleep(0)

    asyncio.run(run())
    return pipe.lines()


# -- targets ---------------------------------------------------------------------------


@given(st.binary())
def test_a_printable_target_stays_within_its_quotes(target):
    text = printable(target)
    assert text.isascii()
    assert text.isprintable()
    assert '"' not in text
    assert " " not in text or b" " in target


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='"\\\\')))
def test_an_ordinary_target_is_shown_as_it_is(target):
    assert printable(target.encode()) == target


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (b"/a?b=c", "/a?b=c"),
        (b'/"', "/\\x22"),
        (b"/\\", "/\\x5c"),
        (b"/\n\r\t", "/\\x0a\\x0d\\x09"),
        (b"/\x1b[31m", "/\\x1b[31m"),
        (b"/\xff\x80", "/\\xff\\x80"),
        (b"/\x7f\0", "/\\x7f\\x00"),
    ],
)
def test_quotes_and_unprintable_bytes_are_escaped(target, text):
    assert printable(target) == text


# -- lines -----------------------------------------------------------------------------


def test_a_line_has_uvicorns_form(pipe):
    assert written(pipe, (CLIENT, "GET", b"/a?b", "1.1", 200)) == [
        'INFO:     192.0.2.1:4711 - "GET /a?b HTTP/1.1" 200 OK'
    ]


@pytest.mark.parametrize(
    ("status", "text"), [(404, "404 Not Found"), (299, "299"), (599, "599"), (500, None)]
)
def test_a_status_is_shown_with_its_phrase(pipe, status, text):
    (line,) = written(pipe, (CLIENT, "GET", b"/", "1.0", status))
    assert line.endswith(f'HTTP/1.0" {text or "500 Internal Server Error"}')


def test_a_client_without_an_address_is_left_blank(pipe):
    (line,) = written(pipe, (None, "GET", b"/", "1.1", 200))
    assert line == 'INFO:      - "GET / HTTP/1.1" 200 OK'


def test_colours_do_not_change_the_text(pipe):
    (line,) = written(pipe, (CLIENT, "GET", b"/", "1.1", 404), colors=True)
    assert "\033[" in line
    assert "404 Not Found" in line
    assert line.endswith("\033[0m")


def test_by_default_there_are_no_colours(pipe):
    (line,) = written(pipe, (CLIENT, "GET", b"/", "1.1", 404))
    assert "\033" not in line


TIMED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO     "


def finished(seconds=0.0032, status=200):
    made = exchange(CLIENT, "GET", b"/a", "1.1", status)
    made.seconds = seconds
    return made


def test_a_line_on_a_terminal_has_time_and_duration():
    line = terminal_line(False)(finished())
    assert re.fullmatch(
        TIMED + re.escape('192.0.2.1:4711 - "GET /a HTTP/1.1" 200 OK in 3.2 ms'), line
    )


def test_a_refused_request_on_a_terminal_has_the_time_alone():
    refused = Refused({"client": CLIENT}, b"", 400, 0)
    line = terminal_refusal_line(False)(refused)
    assert re.fullmatch(TIMED + re.escape('192.0.2.1:4711 - "-" 400 Bad Request'), line)


def test_a_line_about_a_websocket_on_a_terminal_has_the_time():
    record = SocketRecord({"client": CLIENT, "method": "GET"}, b"/ws")
    record.accepted(0.1, [])
    line = terminal_socket_line(False)(record)
    assert re.fullmatch(TIMED + re.escape('192.0.2.1:4711 - "WebSocket /ws" [accepted]'), line)


def test_a_line_on_a_terminal_may_be_coloured():
    line = terminal_line(True)(finished())
    assert "\033[32mINFO    \033[0m 192.0.2.1" in line
    assert line.endswith("\033[32m200 OK\033[0m in 3.2 ms")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00004, "0.0 ms"),
        (0.0032, "3.2 ms"),
        (0.00995, "10 ms"),
        (0.0521, "52 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (1.2345, "1.23 s"),
        (9.996, "10 s"),
        (75.4, "75 s"),
    ],
)
def test_a_duration_has_a_suitable_unit_and_precision(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def terminal():
    """The descriptor of a terminal."""
    main, terminal = pty.openpty()
    yield terminal
    os.close(main)
    os.close(terminal)


def chosen(fd, **settings):
    """The log of these settings, with the access log on `fd`."""
    setup = LogSetup(Config(**settings), LogFiles(), LogFile(fd), LogFile(fd), None)

    async def choose():
        return access_log.access_log(setup, asyncio.get_running_loop(), arbiter_subject(1, 1))

    return asyncio.run(choose())


def line_of(log):
    return log._line(finished())


def test_a_terminal_gets_lines_with_time_and_duration(terminal):
    log = chosen(terminal, use_colors=False)
    assert log.observes
    assert line_of(log).endswith(" 200 OK in 3.2 ms")


def test_uvicorns_form_can_be_chosen_on_a_terminal(terminal):
    log = chosen(terminal, use_colors=False, access_logformat="uvicorn")
    assert not log.observes
    assert line_of(log) == 'INFO:     192.0.2.1:4711 - "GET /a HTTP/1.1" 200 OK'


@pytest.mark.parametrize("settings", [{}, {"access_logformat": "uvicorn"}])
def test_a_pipe_gets_uvicorns_form(pipe, settings):
    log = chosen(pipe.write_fd, **settings)
    assert not log.observes
    assert line_of(log) == 'INFO:     192.0.2.1:4711 - "GET /a HTTP/1.1" 200 OK'


def test_json_is_written_even_on_a_terminal_and_with_uvicorns_form(terminal):
    log = chosen(terminal, log_format="json", access_logformat="uvicorn")
    made = finished()
    made.scope["headers"], made.sent = [], 3
    assert json.loads(log._line(made))["message"] == '192.0.2.1:4711 - "GET /a HTTP/1.1" 200'


# -- writing ---------------------------------------------------------------------------


def test_lines_of_one_turn_are_written_together_and_in_order(pipe):
    records = [(CLIENT, "GET", b"/%d" % number, "1.1", 200) for number in range(400)]
    lines = written(pipe, *records)
    assert [line.split()[4] for line in lines] == [f"/{number}" for number in range(400)]


def test_nothing_is_written_before_the_turn_ends(pipe):
    async def run():
        log = uvicorns_log(pipe.write_fd)
        log.record(exchange(CLIENT, "GET", b"/", "1.1", 200))
        os.set_blocking(pipe.read_fd, False)
        with pytest.raises(BlockingIOError):
            os.read(pipe.read_fd, 1)
        await asyncio.sleep(0)
        assert len(pipe.lines()) == 1

    asyncio.run(run())


@pytest.mark.parametrize("size", [1, 100, 2000, PIPE_ATOMIC, 10_000])
def test_no_write_tears_a_line_that_a_pipe_could_keep_whole(pipe, monkeypatch, size):
    writes = []

    def write(fd, data):
        writes.append(bytes(data))
        return len(data)

    async def run():
        log = uvicorns_log(pipe.write_fd)
        for _ in range(20):
            log.record(exchange(CLIENT, "GET", b"/" + b"a" * size, "1.1", 200))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            log.flush()

    asyncio.run(run())
    assert b"".join(writes).count(b"\n") == 20
    assert all(data.endswith(b"\n") for data in writes)
    assert all(len(data) <= PIPE_ATOMIC or data.count(b"\n") == 1 for data in writes)


def test_a_partial_write_is_completed(pipe, monkeypatch):
    written = []

    def write(fd, data):
        written.append(data[:7])
        return 7 if len(data) > 7 else len(data)

    async def run():
        log = uvicorns_log(pipe.write_fd)
        log.record(exchange(CLIENT, "GET", b"/", "1.1", 200))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write)
            log.flush()

    asyncio.run(run())
    assert b"".join(written) == b'INFO:     192.0.2.1:4711 - "GET / HTTP/1.1" 200 OK\n'


def test_a_log_that_cannot_be_written_is_reported_once():
    complaints = []

    async def run():
        file = LogFile(-1)
        file.complain = complaints.append
        log = AccessLog(asyncio.get_running_loop(), file, uvicorn_line(False))
        for _ in range(3):
            log.record(exchange(CLIENT, "GET", b"/", "1.1", 200))
            await asyncio.sleep(0)

    asyncio.run(run())
    (complaint,) = complaints
    assert "Bad file descriptor" in complaint


def test_a_full_pipe_neither_blocks_nor_ends_the_server(pipe, capfd):
    """Lines without room are written as soon as there is room, without further requests."""

    async def run():
        log = uvicorns_log(pipe.write_fd)
        for _ in range(3000):
            log.record(exchange(CLIENT, "GET", b"/" + b"x" * 200, "1.1", 200))
        await asyncio.sleep(0)
        log.record(exchange(CLIENT, "GET", b"/later", "1.1", 200))
        await asyncio.sleep(0)
        lines = []
        while log._file.has_backlog:
            if select.select([pipe.read_fd], [], [], 0)[0]:
                lines += pipe.lines()
            await asyncio.sleep(0.001)
        return lines + pipe.lines()

    lines = asyncio.run(run())
    errors = capfd.readouterr().err
    assert errors.count("can't be written") == 1
    assert f"lost {3001 - len(lines)} lines" in errors
    assert all(line.endswith('HTTP/1.1" 200 OK') for line in lines)
