"""The parts of the WSGI adapter: environ, wsgi.input, wsgi.errors, wsgi.file_wrapper, threads."""

from __future__ import annotations

import gc
import io
import logging
import sys
import threading
import timeit
import traceback
import weakref
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esg.log.records import TRACE, worker_subject
from esg.server.asgi.disconnection import ClientDisconnected
from esg.server.asgi.types import http_scope, http_template
from esg.server.wsgi.call import FILE_BLOCK, FileWrapper
from esg.server.wsgi.environ import request_environ
from esg.server.wsgi.errors import MOST_HELD, ErrorStream, _level_of
from esg.server.wsgi.input import Input
from esg.server.wsgi.threads import Threads
from tests.support.waiting import eventually

# -- environ ---------------------------------------------------------------------------


def environ(
    target=b"/",
    headers=(),
    *,
    method="GET",
    root_path="",
    scheme="http",
    client=("192.0.2.1", 4711),
    server=("192.0.2.2", 80),
):
    template = http_template(client, server, root_path) | {"scheme": scheme}
    return request_environ(http_scope(template, method, target, list(headers), {}))


def test_the_environ_of_a_request_is_complete():
    made = environ(
        b"/a%20b?c=%20d",
        [(b"host", b"example.org"), (b"content-type", b"text/plain"), (b"content-length", b"5")],
        method="POST",
    )
    assert made == {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a b",
        "QUERY_STRING": "c=%20d",
        "REQUEST_URI": "/a%20b?c=%20d",
        "RAW_URI": "/a%20b?c=%20d",
        "REMOTE_ADDR": "192.0.2.1",
        "REMOTE_PORT": "4711",
        "SERVER_NAME": "192.0.2.2",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "example.org",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "5",
        "wsgi.url_scheme": "http",
    }


@settings(deadline=None)
@given(st.binary(max_size=30))
def test_a_path_is_its_bytes_one_character_each(raw):
    path = environ(b"/" + quote(raw).encode())["PATH_INFO"]
    assert path.encode("latin-1") == b"/" + raw


def test_a_path_that_is_not_utf8_is_not_lost():
    assert environ(b"/caf%E9")["PATH_INFO"] == "/caf\u00e9"
    assert environ(b"/caf%C3%A9")["PATH_INFO"] == "/caf\u00c3\u00a9"


@pytest.mark.parametrize(
    ("root_path", "target", "names"),
    [
        ("/api", b"/x", ("/api", "/x")),
        ("/api", b"/", ("/api", "/")),
        ("/api", b"/api", ("/api", "/api")),
        ("/a b", b"/c%20d", ("/a b", "/c d")),
        ("/a%20b", b"/c%20d", ("/a%20b", "/c d")),
        ("/\u00e9", b"/%C3%A9", ("/\u00c3\u00a9", "/\u00c3\u00a9")),
        ("/", b"/x", ("", "/x")),
        ("/api/", b"/x", ("/api", "/x")),
        ("", b"//x", ("", "//x")),
    ],
)
def test_root_path_is_script_name(root_path, target, names):
    made = environ(target, root_path=root_path)
    assert (made["SCRIPT_NAME"], made["PATH_INFO"]) == names


def test_a_root_path_that_the_target_has_encoded():
    """Middleware may set a `root_path` that is percent-encoded in the target."""
    scope = http_scope(http_template(None, None, ""), "GET", b"/a%20b/c", [], {})
    made = request_environ(scope | {"root_path": "/a b"})
    assert (made["SCRIPT_NAME"], made["PATH_INFO"]) == ("/a b", "/c")


def test_options_asterisk_has_no_path():
    made = environ(b"*", method="OPTIONS", root_path="/api")
    assert (made["SCRIPT_NAME"], made["PATH_INFO"], made["REQUEST_URI"]) == ("", "", "*")


def test_fields_become_variables():
    made = environ(headers=[(b"x-a-b", b"1"), (b"accept", b"caf\xe9")])
    assert made["HTTP_X_A_B"] == "1"
    assert made["HTTP_ACCEPT"] == "caf\u00e9"


def test_fields_of_one_name_are_joined():
    made = environ(headers=[(b"x-a", b"1"), (b"x-b", b"2"), (b"x-a", b"3, 4")])
    assert made["HTTP_X_A"] == "1,3, 4"


def test_cookies_are_joined_as_cookies():
    made = environ(headers=[(b"cookie", b"a=1"), (b"cookie", b"b=2")])
    assert made["HTTP_COOKIE"] == "a=1; b=2"


@pytest.mark.parametrize("name", [b"x_forwarded_for", b"x-forwarded_for", b"content_length", b"_"])
def test_a_name_with_an_underscore_is_not_mistaken_for_another(name):
    made = environ(headers=[(name, b"spoofed"), (b"x-forwarded-for", b"real")] * 2)
    assert made["HTTP_X_FORWARDED_FOR"] == "real,real"
    assert "spoofed" not in "".join(map(str, made.values()))


def test_no_client_sets_http_proxy():
    assert "HTTP_PROXY" not in environ(headers=[(b"proxy", b"http://evil.example")])


def test_variables_that_are_not_fields_are_not_replaced():
    made = environ(headers=[(b"request-method", b"x"), (b"path-info", b"/x")])
    assert (made["REQUEST_METHOD"], made["PATH_INFO"]) == ("GET", "/")


def test_more_names_than_the_cache_keeps_are_right():
    for number in range(2000):
        assert environ(headers=[(b"x-%d" % number, b"1")])[f"HTTP_X_{number}"] == "1"


@pytest.mark.parametrize(
    ("host", "scheme", "named"),
    [
        (b"example.org", "http", ("example.org", "80")),
        (b"example.org", "https", ("example.org", "443")),
        (b"example.org:81", "http", ("example.org", "81")),
        (b"[::1]", "http", ("[::1]", "80")),
        (b"[::1]:81", "http", ("[::1]", "81")),
        (b"", "http", ("localhost", "80")),
    ],
)
def test_a_unix_socket_has_the_name_that_the_client_uses(host, scheme, named):
    made = environ(headers=[(b"host", host)], server=("/run/a", None), client=None, scheme=scheme)
    assert (made["SERVER_NAME"], made["SERVER_PORT"]) == named
    assert made["REMOTE_ADDR"] == ""
    assert "REMOTE_PORT" not in made
    assert made["wsgi.url_scheme"] == scheme


def test_a_client_whose_port_is_not_known_has_no_remote_port():
    made = environ(client=("192.0.2.7", None))
    assert made["REMOTE_ADDR"] == "192.0.2.7"
    assert "REMOTE_PORT" not in made


# -- wsgi.input ------------------------------------------------------------------------


def body(*pieces, cut=False):
    """An Input that receives these pieces; with `cut`, a disconnect comes in place of the end."""
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if cut:
        messages.append({"type": "http.disconnect"})
    elif messages:
        messages[-1]["more_body"] = False
    made = Input(lambda: messages.pop(0))
    made.more = bool(messages)
    return made


PIECES = st.lists(st.text("ab\n", max_size=6).map(str.encode), min_size=1, max_size=6)
SIZES = st.one_of(st.none(), st.integers(-1, 9))
READS = st.lists(st.tuples(st.sampled_from(["read", "readline"]), SIZES), max_size=12)


@settings(deadline=None)
@given(PIECES, READS)
def test_reads_return_the_same_as_those_of_a_file(pieces, reads):
    made, file = body(*pieces), io.BytesIO(b"".join(pieces))
    for name, size in reads:
        assert getattr(made, name)(size) == getattr(file, name)(size)
    assert made.read() == file.read()
    assert made.read() == made.readline() == made.read(5) == b""


@settings(deadline=None)
@given(PIECES, st.one_of(st.none(), st.integers(-1, 12)))
def test_lines_are_those_of_a_file(pieces, hint):
    assert body(*pieces).readlines(hint) == io.BytesIO(b"".join(pieces)).readlines(hint)
    assert list(body(*pieces)) == list(io.BytesIO(b"".join(pieces)))
    assert body(*pieces).readlines() == io.BytesIO(b"".join(pieces)).readlines()


def test_without_a_body_nothing_is_read():
    made = body()
    assert (made.read(), made.readline(), made.readlines(), list(made)) == (b"", b"", [], [])


def test_no_more_is_received_than_is_read():
    received = []

    def receive():
        received.append(1)
        return {"type": "http.request", "body": b"12345", "more_body": True}

    made = Input(receive)
    made.more = True
    assert made.read(0) == b""
    assert received == []
    assert made.read(5) == b"12345"
    assert len(received) == 1
    assert made.read(6) == b"123451"
    assert len(received) == 3
    assert made.read(4) == b"2345"
    assert len(received) == 3


@pytest.mark.parametrize(
    "read",
    [
        lambda made: made.read(),
        lambda made: made.read(10),
        lambda made: made.readline(),
        lambda made: made.readlines(),
        lambda made: list(made),
    ],
)
def test_a_body_that_is_cut_off_does_not_look_whole(read):
    with pytest.raises(ClientDisconnected):
        read(body(b"abc", cut=True))


def test_the_part_of_a_body_before_the_cut_can_be_read():
    made = body(b"abc", cut=True)
    assert made.read(3) == b"abc"
    with pytest.raises(OSError, match="before its request was complete"):
        made.read(1)


def test_nothing_is_read_after_the_request():
    made = body(b"abc", b"def")
    made.read(1)
    made.close()
    with pytest.raises(OSError, match="before its request was complete"):
        made.read(1)


# -- wsgi.errors -----------------------------------------------------------------------


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("esg"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records]


def test_each_write_is_a_record(lines):
    stream = ErrorStream(worker_subject(1, 1, 1))
    stream.write("a\nb\n\n")
    stream.writelines(["c\n", "d", "\n"])
    subject = "worker=1 gen=1 pid=1 wsgi.errors:"
    assert lines() == [f"{subject} a\nb", f"{subject} c\nd"]


def test_the_rest_of_a_line_belongs_to_its_record(lines):
    stream = ErrorStream(None)
    for text in ("half ", "and half\nthe", " rest\n", "", "\n", " \n"):
        stream.write(text)
    assert lines() == ["wsgi.errors: half and half\nthe rest"]


def test_flush_logs_the_unfinished_record(lines):
    stream = ErrorStream(None)
    stream.write("begun")
    assert lines() == []
    stream.flush()
    stream.flush()
    assert lines() == ["wsgi.errors: begun"]


def test_a_line_without_an_end_is_not_held_without_bound(lines):
    stream = ErrorStream(None)
    for _ in range(40):
        stream.write("x" * 5000)
    assert [len(line) > MOST_HELD for line in lines()] == [True, True]
    assert len(stream._begun) <= MOST_HELD


def test_bytes_are_refused(lines):
    stream = ErrorStream(None)
    for begun in ("", "begun"):
        stream.write(begun)
        with pytest.raises(TypeError):
            stream.write(b"bytes\n")


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("plain text", "WARNING"),
        ("an ERROR in the middle", "WARNING"),
        ("ERRORS: 5", "WARNING"),
        ("Traceback (most recent call last):\n  File\nERROR: x", "WARNING"),
        ("ERROR:app:logging's basic format", "ERROR"),
        ("INFO: text", "INFO"),
        ("WARN text", "WARNING"),
        ("FATAL: text", "CRITICAL"),
        ("[2026-11-26 10:00:00,123] ERROR in app: Flask's format", "ERROR"),
        ("[2026-11-26 10:00:00,123] INFO in app: Flask's format", "INFO"),
        ("2026-11-26 10:00:00,123 CRITICAL text", "CRITICAL"),
        ("2026-11-26T10:00:00.123Z - DEBUG - text", "DEBUG"),
        ("2026-11-26 10:00:00.123 | ERROR    | app:view:1 - loguru's format", "ERROR"),
        ("2026-11-26 10:00:00 [error    ] structlog's format", "ERROR"),
        ("[2026-11-26 10:00:00 +0000] [7] [INFO] gunicorn's format", "INFO"),
        ("[26/Nov/2026 10:00:00] DEBUG text", "DEBUG"),
        ("10:00:00 TRACE text", "TRACE"),
        ("\x1b[31mERROR\x1b[0m text", "ERROR"),
        ("1" * 100_000 + " ERROR", "WARNING"),
        ("[" * 100_000 + " ERROR", "WARNING"),
    ],
)
def test_a_level_at_the_beginning_of_a_text_is_that_of_its_record(caplog, lines, text, level):
    caplog.set_level(TRACE, "esg")
    ErrorStream(None).write(f"{text}\n")
    assert [record.levelname for record in caplog.records] == [level]


def test_finding_a_level_is_fast_in_any_text():
    """A client's text must not block the interpreter: compare it with an ordinary text."""

    def quickest(text):
        return min(timeit.repeat(lambda: _level_of(text), number=1, repeat=5))

    usual = quickest("2026-11-26 10:00:00,123 CRITICAL text")
    for text in ("0" * 200, "0 " * 100, "0:- " * 60, "1-" * 100, "0T" * 100):
        assert quickest(text) < 200 * usual


def test_a_record_of_logging_is_one_record(caplog, lines):
    """With its traceback, in the form of Flask's default handler."""
    handler = logging.StreamHandler(ErrorStream(None))
    handler.setFormatter(
        logging.Formatter("[%(asctime)s] %(levelname)s in %(module)s: %(message)s")
    )
    try:
        raise ValueError("broken")
    except ValueError:
        error = sys.exc_info()
    handler.emit(logging.LogRecord("app", logging.ERROR, "app.py", 1, "Exception on /", (), error))
    (line,) = lines()
    assert "in app: Exception on /\nTraceback" in line
    assert line.endswith("ValueError: broken")
    assert caplog.records[0].levelname == "ERROR"


def failing(*errors):
    """Raise the last of these errors, each caused by the one before it."""
    *before, last = errors
    if not before:
        raise last
    try:
        failing(*before)
    except Exception as cause:
        raise last from cause


@pytest.mark.parametrize(
    ("errors", "ends"),
    [
        ([ValueError("broken")], ["ValueError: broken"]),
        ([ValueError("two\nlines")], ["lines"]),
        ([SyntaxError("bad", ("app.py", 1, 2, "x y", 1, 3))], ["SyntaxError: bad"]),
        ([ValueError("first"), KeyError("second")], ["ValueError: first", "KeyError: 'second'"]),
        ([ExceptionGroup("several", [ValueError(1), KeyError(2)])], ["-" * 20]),
    ],
)
def test_a_printed_traceback_is_one_record(lines, errors, ends):
    stream = ErrorStream(None)
    with pytest.raises(type(errors[-1])) as raised:
        failing(*errors)
    traceback.print_exception(raised.value, file=stream)
    print("next", file=stream)
    *tracebacks, last = lines()
    assert last == "wsgi.errors: next"
    assert len(tracebacks) == len(ends)
    for text, end in zip(tracebacks, ends, strict=True):
        assert "Traceback (most recent call last):\n" in text
        assert text.endswith(end)


def test_a_traceback_that_ends_early_is_logged(lines):
    stream = ErrorStream(None)
    stream.write("Traceback (most recent call last):\n")
    stream.write('  File "app.py", line 1\n')
    assert lines() == []
    stream.flush()
    assert lines()[0].endswith("line 1")


def test_print_can_be_used(lines):
    print("a", "b", file=ErrorStream(None))
    assert lines() == ["wsgi.errors: a b"]


def test_lines_of_threads_do_not_mix(lines):
    stream = ErrorStream(None)
    stream.write("be")
    thread = threading.Thread(target=lambda: stream.write("other\n"))
    thread.start()
    thread.join()
    stream.write("gun\n")
    assert lines() == ["wsgi.errors: other", "wsgi.errors: begun"]


def test_a_percent_sign_is_not_a_format(lines):
    ErrorStream(None).write("100%s\n")
    assert lines() == ["wsgi.errors: 100%s"]


# -- wsgi.file_wrapper -----------------------------------------------------------------


def test_a_file_is_read_in_large_blocks():
    content = bytes(range(256)) * 1000
    blocks = list(FileWrapper(io.BytesIO(content), 8192))
    assert b"".join(blocks) == content
    assert len(blocks[0]) == FILE_BLOCK
    assert len(next(iter(FileWrapper(io.BytesIO(content), 100_000)))) == 100_000


def test_a_file_is_closed():
    file = io.BytesIO()
    FileWrapper(file).close()
    assert file.closed


# -- threads ---------------------------------------------------------------------------


@pytest.fixture
def threads():
    made = []

    def make(size, later=lambda look: look()):
        """By default, each job is followed by a turn of the loop."""
        made.append(Threads(size, later))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def test_threads_are_made_when_they_are_needed(threads):
    pool = threads(4)
    assert pool.started == 0
    ran = []
    for count in range(1, 21):
        pool.submit(lambda: ran.append(threading.current_thread()))
        eventually(lambda wanted=count: len(ran) == wanted and len(pool._idle) == 1, "it ran")
    assert pool.started == 1
    assert ran[0].daemon
    assert ran[0].name == "wsgi-1"


def test_jobs_run_at_once_up_to_the_size_and_then_wait(threads):
    pool, release, running = threads(3), threading.Event(), []

    def job():
        running.append(1)
        release.wait(10)

    for _ in range(7):
        pool.submit(job)
    eventually(lambda: len(running) == 3, "three run")
    assert pool.started == 3
    assert len(pool._jobs) == 4
    release.set()
    eventually(lambda: len(running) == 7, "all ran")
    eventually(lambda: len(pool._idle) == 3, "all threads are idle")


def test_an_idle_thread_holds_nothing_of_its_last_job(threads):
    class Job:
        def __call__(self):
            pass

    pool, job = threads(1), Job()
    gone = weakref.ref(job)
    pool.submit(job)
    del job
    eventually(lambda: gone() is None or gc.collect() < 0, "the job is gone")


def test_a_thread_survives_a_job_that_raises(threads, monkeypatch):
    raised, ran = [], []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    pool = threads(1)
    pool.submit(lambda: 1 / 0)
    pool.submit(lambda: ran.append(1))
    eventually(lambda: ran == [1], "the second ran")
    assert [args.exc_type for args in raised] == [ZeroDivisionError]
    assert pool.started == 1


def test_threads_end_when_they_are_done(threads):
    pool, release, ran = threads(2), threading.Event(), []

    def job():
        ran.append(threading.current_thread())
        release.wait(10)

    for _ in range(2):
        pool.submit(job)
    eventually(lambda: len(ran) == 2, "both run")
    pool.close()
    release.set()
    for thread in ran:
        thread.join(10)
        assert not thread.is_alive()


def test_a_thread_that_cannot_be_started_is_an_error_and_does_not_count(threads, monkeypatch):
    pool, ran = threads(2), []

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            pool.submit(lambda: ran.append("refused"))
    pool.submit(lambda: ran.append("first"))
    eventually(lambda: len(pool._idle) == 1, "the first ran")
    assert (pool.started, ran) == (1, ["first"])


def test_a_job_waits_for_a_thread_if_no_more_can_be_started(threads, monkeypatch):
    pool, release, ran = threads(2), threading.Event(), []
    pool.submit(lambda: release.wait(10))

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        pool.submit(lambda: ran.append(1))
    release.set()
    eventually(lambda: ran == [1], "the second ran")
    eventually(lambda: len(pool._idle) == 1, "its thread is idle")


def test_one_thread_is_woken_in_each_turn_of_the_loop(threads):
    turns, release, running = [], threading.Event(), []
    pool = threads(8, turns.append)

    def job():
        running.append(threading.current_thread())
        release.wait(10)

    for _ in range(3):
        pool.submit(job)
    for count in (1, 2, 3):
        eventually(lambda wanted=count: len(running) == wanted, "one more thread runs")
        assert pool.started == count
        turns.pop()()
    assert turns == []
    release.set()


def test_a_thread_that_does_not_wait_takes_all_jobs(threads):
    turns, ran = [], []
    pool = threads(8, turns.append)
    with pool._lock:  # as if the thread didn't get the interpreter's lock before the last job
        pool._jobs.extend(lambda: ran.append(threading.current_thread()) for _ in range(50))
    pool.submit(lambda: ran.append(threading.current_thread()))
    eventually(lambda: len(ran) == 51, "all ran")
    turns.pop()()
    assert (len(set(ran)), turns) == (1, [])


def test_no_job_is_forgotten(threads):
    """Jobs that arrive while threads finish, and while others are on their way."""
    turns, ran = [], []
    pool = threads(3, turns.append)
    for number in range(5000):
        pool.submit(lambda number=number: ran.append(number))
        while turns and number % 7:
            turns.pop()()
    while turns:
        turns.pop()()
    eventually(lambda: sorted(ran) == list(range(5000)), "all ran")
