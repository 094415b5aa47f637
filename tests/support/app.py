"""The application that most tests serve: the text of a module that can be made to misbehave."""

from __future__ import annotations

BLOCK_SIZE = 16384

_TEMPLATE = '''\
import asyncio
import ctypes
import json
import os
import subprocess
import time

import esg

VERSION = "{version}"


def note(what):
    """For the tests to read, whoever writes it and whatever becomes of the process."""
    with open("notes", "a") as notes:
        notes.write(f"{{what}} {{os.getpid()}}\\n")


def report_of_the_month(seconds):
    time.sleep(seconds)  # blocks the loop


def follow_a_null_pointer():
    ctypes.string_at(0)


{at_import}


async def at_startup():
    {at_startup}
    note("startup")


async def at_shutdown():
    note("shutdown")


async def whoami(exchange):
    worker = esg.current_worker()
    await exchange.answer(
        json.dumps(
            {{
                "path": exchange.path,
                "version": VERSION,
                "worker": worker.number,
                "generation": worker.generation,
                "pid": os.getpid(),
            }}
        ).encode()
    )


async def echo(exchange):
    await exchange.answer(await exchange.body())


async def slow(exchange):
    note("slow")
    await asyncio.sleep(float(exchange.argument))
    await whoami(exchange)


async def download(exchange):
    blocks, seconds = exchange.argument.split(",")
    await exchange.start()
    for number in range(int(blocks)):
        await exchange.send_body(number.to_bytes(8, "big") * ({block_size} // 8), more=True)
        await asyncio.sleep(float(seconds) / int(blocks))
    await exchange.send_body(b"")


async def block(exchange):
    note("block")
    report_of_the_month(float(exchange.argument))
    await whoami(exchange)


async def stubborn(exchange):
    note("stubborn")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            note("cancelled")


async def exit(exchange):
    os._exit(int(exchange.argument))


async def segfault(exchange):
    follow_a_null_pointer()


async def thread(exchange):
    """Answer, and leave a thread of the event loop's executor running."""
    note("thread")

    def work():
        time.sleep(float(exchange.argument))
        note("thread_done")

    asyncio.get_running_loop().run_in_executor(None, work)
    await whoami(exchange)


async def strand(exchange):
    """Leave a grandchild behind, whose parent is gone before it ends."""
    command = ["sh", "-c", "sleep 0.5 >/dev/null 2>&1 & echo $!"]
    shell = subprocess.run(command, stdout=subprocess.PIPE)
    await exchange.answer(shell.stdout)


class Exchange:
    def __init__(self, scope, receive, send):
        self.path = scope["path"]
        self.argument = self.path.rpartition("/")[2]
        self._receive, self._send = receive, send

    async def body(self):
        body, more = b"", True
        while more:
            message = await self._receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return body

    async def start(self, *headers):
        await self._send(
            {{"type": "http.response.start", "status": 200, "headers": [*headers]}}
        )

    async def send_body(self, body, more=False):
        await self._send({{"type": "http.response.body", "body": body, "more_body": more}})

    async def answer(self, body):
        await self.start((b"content-length", b"%d" % len(body)))
        await self.send_body(body)


ROUTES = {{
    f.__name__: f
    for f in (whoami, echo, slow, download, block, stubborn, exit, segfault, strand, thread)
}}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    else:
        exchange = Exchange(scope, receive, send)
        await ROUTES[exchange.path.split("/")[1]](exchange)


async def lifespan(receive, send):
    await receive()
    await at_startup()
    await send({{"type": "lifespan.startup.complete"}})
    await receive()
    await at_shutdown()
    await send({{"type": "lifespan.shutdown.complete"}})
'''


def application(
    version: str = "one", *, at_import: str = "", at_startup: str = "await asyncio.sleep(0)"
) -> str:
    """The module's text. `at_import` and `at_startup` are statements that run there."""
    return _TEMPLATE.format(
        version=version, at_import=at_import, at_startup=at_startup, block_size=BLOCK_SIZE
    )


def download_body(blocks: int) -> bytes:
    """The body that `/download/BLOCKS,SECONDS` must have."""
    return b"".join(number.to_bytes(8, "big") * (BLOCK_SIZE // 8) for number in range(blocks))
