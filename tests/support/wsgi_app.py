"""Like `app.py`, but a WSGI application: the text of a module that answers `Load`'s requests."""

from __future__ import annotations

from .app import BLOCK_SIZE

_TEMPLATE = """\
import json
import os
import threading
import time

import esg


def note(what):
    with open("notes", "a") as notes:
        notes.write(f"{{what}} {{os.getpid()}}\\n")


def whoami(environ):
    worker = esg.current_worker()
    yield json.dumps(
        {{
            "path": environ["PATH_INFO"],
            "worker": worker.number,
            "generation": worker.generation,
            "pid": os.getpid(),
            "thread": threading.current_thread().name,
            "multiprocess": environ["wsgi.multiprocess"],
        }}
    ).encode()


def echo(environ):
    yield from iter(lambda: environ["wsgi.input"].read(4096), b"")


def slow(environ):
    note("slow")
    time.sleep(float(argument(environ)))
    yield from whoami(environ)


def download(environ):
    blocks, seconds = argument(environ).split(",")
    for number in range(int(blocks)):
        yield number.to_bytes(8, "big") * ({block_size} // 8)
        time.sleep(float(seconds) / int(blocks))


def hang(environ):
    note("hang")
    threading.Event().wait()
    yield b""


def fail(environ):
    yield b""
    raise ValueError("what went wrong")


def argument(environ):
    return environ["PATH_INFO"].rpartition("/")[2]


ROUTES = {{f.__name__: f for f in (whoami, echo, slow, download, hang, fail)}}


def app(environ, start_response):
    body = ROUTES[environ["PATH_INFO"].split("/")[1]](environ)
    if environ["PATH_INFO"].startswith(("/whoami", "/slow")):
        body = [b"".join(body)]
    start_response("200 OK", [])
    return body
"""


def wsgi_application() -> str:
    """The module's text."""
    return _TEMPLATE.format(block_size=BLOCK_SIZE)
