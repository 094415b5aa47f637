"""`wsgi.file_wrapper`: large files, which the kernel sends, and everything that it can't send."""

from __future__ import annotations

import gzip
import io
import os
import threading

import pytest

from esg.server.wsgi.call import KERNEL_FILE

from .wire import Truncated, get, request, until

CONTENT = bytes(range(256)) * 4000
assert len(CONTENT) > 3 * KERNEL_FILE


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def sent_by_kernel(monkeypatch):
    """The offset and size of each call of sendfile(2)."""
    calls, sendfile = [], os.sendfile

    def noted(out, fd, offset, count):
        calls.append((offset, count))
        return sendfile(out, fd, offset, count)

    monkeypatch.setattr(os, "sendfile", noted)
    return calls


def serving(open_file, *fields, status="200 OK"):
    """An application that answers with a file, and the files that it has opened."""
    files = []

    def app(environ, start_response):
        files.append(open_file())
        start_response(status, list(fields))
        return environ["wsgi.file_wrapper"](files[-1])

    return app, files


@pytest.mark.parametrize("length", [True, False], ids=["with a length", "without a length"])
@pytest.mark.parametrize("buffering", [-1, 0], ids=["buffered", "raw"])
async def test_a_large_file_is_sent_by_the_kernel(
    serve_wsgi, path, sent_by_kernel, length, buffering
):
    fields = [("Content-Length", str(len(CONTENT)))] if length else []
    app, files = serving(lambda: path.open("rb", buffering), *fields)
    client = serve_wsgi(app).connect()
    for number in range(2):
        response = await client.request(get())
        assert response.body == CONTENT
        assert response[b"content-length"] == b"%d" % len(CONTENT)
        await until(lambda n=number: files[n].closed)
    assert sent_by_kernel[0] == (0, len(CONTENT))


async def test_the_position_of_the_file_and_the_content_length_limit_the_part(
    serve_wsgi, path, sent_by_kernel
):
    size = KERNEL_FILE + 5

    def open_file():
        file = path.open("rb")
        file.read(100)  # a buffered file reads ahead, so its descriptor is further along
        return file

    fields = ("Content-Length", str(size))
    app, _ = serving(open_file, fields, status="206 Partial Content")
    client = serve_wsgi(app).connect()
    for _ in range(2):
        assert (await client.request(get())).body == CONTENT[100 : 100 + size]
    assert sent_by_kernel[0] == (100, size)


async def test_a_head_request_sends_no_file(serve_wsgi, path, sent_by_kernel):
    app, _ = serving(lambda: path.open("rb"), ("Content-Length", str(len(CONTENT))))
    client = serve_wsgi(app).connect()
    response = await client.request(request(b"HEAD", b"/"), method="HEAD")
    assert response[b"content-length"] == b"%d" % len(CONTENT)
    assert sent_by_kernel == []
    assert (await client.request(get())).body == CONTENT


def pipe():
    reader, writer = os.pipe()

    def write():
        with os.fdopen(writer, "wb") as file:
            file.write(CONTENT)

    threading.Thread(target=write).start()
    return os.fdopen(reader, "rb")


def compressed(path):
    packed = path.with_suffix(".gz")
    packed.write_bytes(gzip.compress(CONTENT + os.urandom(2 * KERNEL_FILE)))
    file = gzip.open(packed)  # noqa: SIM115 - the server closes it
    assert os.fstat(file.fileno()).st_size > KERNEL_FILE
    return file


@pytest.mark.parametrize(
    "open_file",
    [lambda path: io.BytesIO(CONTENT), lambda path: pipe(), compressed],
    ids=["memory", "a pipe", "a compressed file"],
)
async def test_what_is_not_a_plain_file_is_read(serve_wsgi, path, sent_by_kernel, open_file):
    app, _ = serving(lambda: open_file(path))
    response = await serve_wsgi(app).connect().request(get())
    assert response.body[: len(CONTENT)] == CONTENT
    assert sent_by_kernel == []


async def test_a_file_that_was_closed_is_an_error_of_the_application(serve_wsgi, path, log):
    def open_file():
        file = path.open("rb")
        file.close()
        return file

    app, _ = serving(open_file)
    response = await serve_wsgi(app).connect().request(get())
    assert response.status == 500
    log.claim("exception in the application")


async def test_a_file_shorter_than_the_content_length_cuts_the_connection(serve_wsgi, path, log):
    app, _ = serving(lambda: path.open("rb"), ("Content-Length", str(len(CONTENT) + 1)))
    with pytest.raises((ConnectionResetError, Truncated)):
        await serve_wsgi(app).connect().request(get())
    log.claim("1 byte shorter than its Content-Length")


async def test_a_client_that_leaves_ends_the_transfer(serve_wsgi, tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    app, files = serving(lambda: path.open("rb"))
    server = serve_wsgi(app)
    client = server.connect()
    await client.send(get())
    await client.skip(1 << 20)
    client.reset()
    await until(lambda: files[0].closed and not server.service.running)
