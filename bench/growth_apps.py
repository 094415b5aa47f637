"""An application that notes each start of a worker, for growth.py."""

import os

from bench.apps import Receive, Scope, Send, hello


async def noted(scope: Scope, receive: Receive, send: Send) -> None:
    """`hello`; when a worker has started, its pid is appended to the file $BENCH_STARTS."""
    if scope["type"] == "lifespan":
        await receive()
        with open(os.environ["BENCH_STARTS"], "a") as file:
            file.write(f"{os.getpid()}\n")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await hello(scope, receive, send)
