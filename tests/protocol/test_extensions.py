"""ASGI extensions: early hints, trailers, and files that the server sends itself."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random

import pytest

from esg.server.asgi.disconnection import ClientDisconnected
from esg.settings.schema import Config

from .apps import Probe, piece, respond, start
from .wire import Truncated, get, request, settled, until

MEGABYTE = 1 << 20
TIMEOUT_SEND = Config.timeout_send


@pytest.fixture
def file(tmp_path):
    """A file of 8 MiB without repetitions."""
    path = tmp_path / "file"
    path.write_bytes(random.Random(7).randbytes(8 * MEGABYTE))
    return path


@pytest.fixture
def serve(serve):
    """Starts servers that offer to send files."""

    def start(app, *, sendfile=True, **settings):
        return serve(app, sendfile=sendfile, **settings)

    start.stop = serve.stop
    return start


@pytest.fixture(autouse=True)
def _no_descriptor_is_left(serve, tmp_path):
    def descriptors():
        """Open sockets and files of the test.

        Event loops keep other descriptors open for a while.
        """
        links = []
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
                links.append(os.readlink(f"/proc/self/fd/{fd}"))
        return [link for link in links if link.startswith(("socket:", str(tmp_path)))]

    before = descriptors()
    yield
    serve.stop()
    assert set(descriptors()) <= set(before)


def digest(data):
    """A short text to compare large bodies by."""
    return len(data), hashlib.sha256(data).hexdigest()


def sends(*messages, status=200, headers=(), **start_message):
    """An application that sends a head and then these messages."""

    async def app(scope, receive, send):
        head = {"type": "http.response.start", "status": status, "headers": list(headers)}
        await send(head | start_message)
        for message in messages:
            await send(message)

    return app


def body(data=b"", more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


def path_of(file):
    return {"type": "http.response.pathsend", "path": str(file)}


@pytest.mark.parametrize("sendfile", [False, True])
async def test_each_scope_has_the_extensions_that_are_offered(serve, sendfile):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        scope["extensions"]["mine"] = {}
        await respond(send)

    client = serve(app, sendfile=sendfile).connect()
    await client.request(get())
    await client.request(get())
    offered = {"early_hint", "trailers"} | ({"pathsend", "zerocopysend"} if sendfile else set())
    for scope in scopes:
        assert set(scope["extensions"]) == {f"http.response.{name}" for name in offered} | {"mine"}
    assert scopes[0]["extensions"] is not scopes[1]["extensions"]


@pytest.mark.parametrize("kind", ["pathsend", "zerocopysend"])
async def test_no_file_is_sent_if_the_extension_was_not_offered(serve, log, file, kind):
    with file.open("rb") as opened:
        message = {"type": f"http.response.{kind}", "path": str(file), "file": opened}
        client = serve(sends(message), sendfile=False).connect()
        assert (await client.request(get())).status == 500
    assert "--sendfile" in log.claim("exception in the application")


async def test_debug_information_is_for_test_clients(serve, log):
    client = serve(sends({"type": "http.response.debug", "info": {}})).connect()
    assert (await client.request(get())).status == 500
    log.claim("exception in the application")


# -- early hints -----------------------------------------------------------------------

HINT = {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload", b"</b.js>"]}
HINTED = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nlink: </b.js>\r\n\r\n"


async def test_hints_are_sent_immediately(serve):
    probe = Probe()
    client = serve(probe).connect()
    await client.send(get())
    await probe.called.wait()
    await probe.send(HINT)
    await client.exactly(HINTED)
    await probe.send(HINT)
    await client.exactly(HINTED)
    await respond(probe.send)
    assert (await client.response()).body == b"hello"
    probe.done.set()


async def test_hints_come_before_a_head_that_was_given_first(serve):
    client = serve(sends(HINT, body(b"hello"))).connect()
    await client.send(get())
    await client.exactly(HINTED)
    assert (await client.response()).body == b"hello"


async def test_hints_after_the_head_are_dropped(serve):
    client = serve(sends(body(b"he", more=True), HINT, body(b"llo"))).connect()
    assert (await client.request(get())).body == b"hello"


async def test_http_1_0_has_no_hints(serve):
    client = serve(sends(HINT, body(b"hello"))).connect()
    assert (await client.request(get(version=b"1.0"))).body == b"hello"


async def test_a_hint_adds_no_line_of_its_own(serve, log):
    app = sends({"type": "http.response.early_hint", "links": [b"</a>\r\nset-cookie: x"]})
    response = await serve(app).connect().request(get())
    assert response.status == 500
    assert "CR, LF or NUL" in log.claim("exception in the application")


# -- trailers --------------------------------------------------------------------------


def trailers(*fields, more=False):
    return {"type": "http.response.trailers", "headers": list(fields), "more_trailers": more}


DIGEST = (b"digest", b"sha-256=x")
ALL = (trailers((b"a", b"1"), more=True), trailers(DIGEST))
END = b"0\r\na: 1\r\ndigest: sha-256=x\r\n\r\n"


@pytest.mark.parametrize("te", [b"TE: trailers", b"te: gzip;q=0.5, Trailers"])
async def test_trailers_follow_the_body(serve, te):
    client = serve(sends(body(b"hello"), *ALL, trailers=True)).connect()
    for _ in range(2):
        await client.send(get(b"/", te))
        assert (await client.head())[b"transfer-encoding"] == b"chunked"
        await client.exactly(b"5\r\nhello\r\n" + END)


async def test_trailers_follow_a_streamed_body(serve):
    app = sends(body(b"he", more=True), body(b"llo", more=True), body(), *ALL, trailers=True)
    client = serve(app).connect()
    await client.send(get(b"/", b"TE: trailers"))
    await client.head()
    await client.exactly(b"2\r\nhe\r\n3\r\nllo\r\n" + END)


@pytest.mark.parametrize(
    ("method", "version", "te", "headers"),
    [
        ("GET", b"1.1", b"TE: gzip", []),
        ("GET", b"1.1", b"X-A: trailers", []),
        ("GET", b"1.1", b"TE: trailers", [(b"content-length", b"5")]),
        ("GET", b"1.0", b"TE: trailers", []),
        ("HEAD", b"1.1", b"TE: trailers", []),
    ],
)
async def test_trailers_are_dropped_if_they_cannot_be_sent(serve, method, version, te, headers):
    client = serve(sends(body(b"hello"), *ALL, headers=headers, trailers=True)).connect()
    ask = request(method.encode(), b"/", te, version=version)
    response = await client.request(ask, method)
    assert response.body == (b"" if method == "HEAD" else b"hello")
    if version == b"1.1":
        await client.quiet()


async def test_trailers_cannot_change_the_framing(serve):
    fields = [(b"content-length", b"5"), (b"Transfer-Encoding", b"chunked"), DIGEST]
    client = serve(sends(body(), trailers(*fields), trailers=True)).connect()
    await client.send(get(b"/", b"TE: trailers"))
    await client.head()
    await client.exactly(b"0\r\ndigest: sha-256=x\r\n\r\n")


async def test_announced_trailers_that_are_not_sent_are_an_error(serve, log):
    client = serve(sends(body(b"hello"), trailers=True)).connect()
    await client.send(get(b"/", b"TE: trailers"))
    with pytest.raises((Truncated, ConnectionResetError)):
        await client.response()
    log.claim("before its response was complete")


async def test_trailers_without_announcement_are_an_error(serve, log):
    client = serve(sends(body(b"hello"), *ALL)).connect()
    assert (await client.request(get(b"/", b"TE: trailers"))).body == b"hello"
    log.claim("exception in the application")


# -- a whole file ----------------------------------------------------------------------


async def test_a_file_is_the_body(serve, file):
    client = serve(sends(path_of(file))).connect()
    for _ in range(2):
        response = await client.request(get())
        assert response[b"content-length"] == b"%d" % (8 * MEGABYTE)
        assert digest(response.body) == digest(file.read_bytes())


async def test_an_empty_file_is_an_empty_body(serve, tmp_path):
    (tmp_path / "empty").touch()
    response = await serve(sends(path_of(tmp_path / "empty"))).connect().request(get())
    assert (response[b"content-length"], response.body) == (b"0", b"")


async def test_head_says_how_large_the_file_is(serve, file):
    client = serve(sends(path_of(file))).connect()
    response = await client.request(request(b"HEAD", b"/"), "HEAD")
    assert response[b"content-length"] == b"%d" % (8 * MEGABYTE)
    await client.quiet()


@pytest.mark.parametrize("name", ["missing", "."])
async def test_a_file_that_cannot_be_opened_is_the_applications_error(serve, log, tmp_path, name):
    response = await serve(sends(path_of(tmp_path / name))).connect().request(get())
    assert response.status == 500
    log.claim("exception in the application")


async def test_an_application_may_send_another_response_for_a_missing_file(serve, tmp_path):
    async def app(scope, receive, send):
        await start(send, status=404)
        with pytest.raises(FileNotFoundError):
            await send(path_of(tmp_path / "missing"))
        await piece(send, b"sorry", more=False)

    response = await serve(app).connect().request(get())
    assert (response.status, response.body) == (404, b"sorry")


async def test_a_file_may_be_the_last_piece_of_a_body(serve, file):
    client = serve(sends(body(b"a", more=True), path_of(file))).connect()
    assert digest((await client.request(get())).body) == digest(b"a" + file.read_bytes())


async def test_a_file_longer_than_its_content_length_is_cut_to_it(serve, log, file):
    client = serve(sends(path_of(file), headers=[(b"content-length", b"5")])).connect()
    assert (await client.request(get())).body == file.read_bytes()[:5]
    await client.closed()
    log.claim("longer than its Content-Length")


# -- parts of files --------------------------------------------------------------------


def part(file, **options):
    return {"type": "http.response.zerocopysend", "file": file} | options


async def test_parts_of_a_file_mix_with_other_pieces(serve, file):
    data = file.read_bytes()
    with file.open("rb") as opened:
        opened.seek(10)
        messages = [
            body(b"<", more=True),
            part(opened, count=20, more_body=True),
            part(opened.fileno(), offset=MEGABYTE, count=MEGABYTE, more_body=True),
            part(opened, count=5, more_body=True),
            body(b">", more=True),
            part(opened, offset=8 * MEGABYTE - 3),
        ]
        expected = b"<" + data[10:30] + data[MEGABYTE : 2 * MEGABYTE] + data[30:35] + b">"
        client = serve(sends(*messages)).connect()
        response = await client.request(get())
        assert digest(response.body) == digest(expected + data[-3:])
        assert response.chunks is not None


async def test_parts_of_a_file_fill_a_content_length(serve, file):
    with file.open("rb") as opened:
        messages = [part(opened, count=7, more_body=True), part(opened, count=4)]
        client = serve(sends(*messages, headers=[(b"content-length", b"11")])).connect()
        assert (await client.request(get())).body == file.read_bytes()[:11]


async def test_a_part_beyond_the_files_end_cuts_the_response(serve, log, file):
    with file.open("rb") as opened:
        client = serve(sends(part(opened, offset=8 * MEGABYTE - 3, count=5))).connect()
        await client.send(get())
        with pytest.raises((Truncated, ConnectionResetError)):
            await client.response()
    assert "2 bytes before its announced end" in log.claim("exception in the application")


async def test_a_descriptor_of_something_other_than_a_regular_file_is_refused(serve, log):
    end, other = os.pipe()
    try:
        response = await serve(sends(part(end, count=1))).connect().request(get())
    finally:
        os.close(end)
        os.close(other)
    assert response.status == 500
    assert "regular files only" in log.claim("exception in the application")


async def test_nothing_else_is_sent_while_a_file_is_sent(serve, runner, file):
    probe = Probe()
    client = serve(probe).connect(receive_buffer=65536)
    await client.send(get())
    await probe.called.wait()

    async def send():
        await start(probe.send)
        await probe.send(path_of(file))

    sending = runner.get_loop().create_task(send())
    assert (await client.head())[b"content-length"] == b"%d" % (8 * MEGABYTE)
    with pytest.raises(RuntimeError, match="nothing while a file is being sent"):
        await piece(probe.send, b"in between")
    assert digest(await client.read(8 * MEGABYTE)) == digest(file.read_bytes())
    await sending
    probe.done.set()


# -- clients that misbehave ------------------------------------------------------------


@pytest.fixture
def large(tmp_path):
    """A file that is too large for any socket buffer; most of it is a hole."""
    path = tmp_path / "large"
    with path.open("wb") as opened:
        opened.truncate(1 << 30)
    return path


class Sender:
    """Sends a file, and remembers the result."""

    def __init__(self, path):
        self.path = path
        self.failure = None

    async def __call__(self, scope, receive, send):
        await start(send)
        try:
            await send(path_of(self.path))
        except OSError as error:
            self.failure = error
            raise


async def test_a_client_that_leaves_ends_the_sending(serve, large):
    sender = Sender(large)
    server = serve(sender)
    client = server.connect(receive_buffer=65536)
    await client.send(get())
    await client.head()
    client.reset()
    await until(lambda: sender.failure)
    assert isinstance(sender.failure, OSError)
    await until(lambda: server.service.idle)


async def test_a_client_that_does_not_read_is_disconnected_at_the_limit(serve, large):
    sender = Sender(large)
    server = serve(sender)
    client = server.connect(receive_buffer=65536)
    await client.send(get())
    await client.head()
    (connection,) = server.service.connections
    await settled(lambda: len(server.service.connections))
    server.advance(TIMEOUT_SEND / 2)
    await client.skip(32 * MEGABYTE)
    await until(lambda: connection.deadline > server.service.now + TIMEOUT_SEND / 2)
    server.advance(TIMEOUT_SEND * 2)
    await until(lambda: sender.failure)
    assert isinstance(sender.failure, ClientDisconnected)
    await until(lambda: server.service.idle)


async def test_a_path_to_something_other_than_a_regular_file_is_refused(serve, tmp_path, log):
    os.mkfifo(tmp_path / "fifo")

    async def app(scope, receive, send):
        await start(send)
        await send(path_of(tmp_path / "fifo"))

    client = serve(app).connect()
    await client.send(get())
    assert (await client.response()).status == 500
    assert "regular files only" in log.claim("exception in the application")
