"""The ASGI lifespan protocol: startup before the first request, shutdown after the last.

https://asgi.readthedocs.io/en/latest/specs/lifespan.html
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import Any

from esg import forks
from esg.errors import BootError
from esg.loader import application_traceback
from esg.log.records import Subject
from esg.mailbox import NoLifespan
from esg.server.asgi.types import LIFESPAN_SPEC_VERSION, VERSION, Application, Message
from esg.server.cancellation import cancel, is_destroyed
from esg.server.stacks import where_task_waits

logger = logging.getLogger("esg")


CANCEL_LIMIT = 1.0
"""Seconds for a cancelled lifespan to end."""

LONGEST_REASON = 300
"""The most characters of a reported exception, so that the report fits into one write to a pipe."""


class Lifespan:
    """One run of an application's lifespan. `state` is passed on to its requests.

    If the application's call ended with an exception before the lifespan began, `refusal` says why.
    It stays None for the exceptions that small applications raise for every scope except HTTP's.
    """

    def __init__(self, app: Application, mode: str, subject: Subject) -> None:
        """`mode` is `auto`, `on` or `off`, as in `--lifespan`; `subject` names this worker in the
        log."""
        self.state: dict[str, Any] = {}
        self.refusal: NoLifespan | None = None
        self._app = app
        self._mode = mode
        self._subject = subject
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._started = asyncio.Event()
        self._stopped = asyncio.Event()
        self._failure: BootError | None = None
        self._supported = False
        self._cancelled = False
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Run the application's startup. Raises BootError if it fails.

        With `auto`, an exception before the application has answered means that it doesn't support
        the protocol, which isn't a failure.
        """
        if self._mode == "off":
            return
        self._task = asyncio.create_task(self._run(), name="lifespan")
        self._inbox.put_nowait({"type": "lifespan.startup"})
        await self._started.wait()
        if self._failure is not None:
            raise self._failure

    def place(self, folder: str) -> str:
        """The line of the application where its startup waits; empty if it isn't known.

        Paths below `folder` are relative to it.
        """
        if self._task is None or self._started.is_set():
            return ""
        return where_task_waits(self._task, folder)

    async def shutdown(self, limit: float) -> None:
        """Run the application's shutdown, for at most `limit` seconds."""
        if self._task is None or not self._supported or self._task.done():
            return
        self._inbox.put_nowait({"type": "lifespan.shutdown"})
        try:
            async with asyncio.timeout(limit):
                await self._stopped.wait()
        except TimeoutError:
            logger.error(
                "%s lifespan shutdown took longer than %.1f s, cancelled", self._subject, limit
            )
        await self.cancel()

    async def cancel(self) -> None:
        """Cancel the lifespan's task and wait for its end, for at most `CANCEL_LIMIT`.

        It doesn't end if it is deadlocked, or if the application catches its cancellation.
        """
        self._cancelled = True
        if self._task is None:
            return
        if not cancel(self._task):
            self._log_endless("its tasks wait for each other in a circle")
            return
        await asyncio.wait((self._task,), timeout=CANCEL_LIMIT)
        if not self._task.done():
            self._log_endless("it caught the cancellation and goes on")

    def _log_endless(self, why: str) -> None:
        logger.error("%s can't cancel the lifespan: %s", self._subject, why)

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": VERSION, "spec_version": LIFESPAN_SPEC_VERSION},
            "state": self.state,
        }
        loop = asyncio.get_running_loop()
        try:
            await self._app(scope, self._inbox.get, self._send)
        except BaseException as error:
            if is_destroyed(error, loop):
                raise
            forks.end_if_forked_child(loop, error)
            self._ended(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self._ended(None)

    def _ended(self, error: BaseException | None) -> None:
        """The application's call has returned, or has raised `error`."""
        if not self._started.is_set():
            self._ended_early(error)
        elif self._failure is None and isinstance(error, Exception):
            logger.error("%s lifespan ended with an exception", self._subject, exc_info=error)
        self._started.set()
        self._stopped.set()

    def _ended_early(self, error: BaseException | None) -> None:
        ending = error is not None and not isinstance(error, Exception)  # for example by sys.exit()
        if ending and self._cancelled:
            return
        if self._mode == "on" or ending:
            reason = f"{type(error).__name__}: {error}" if error else "it returned"
            detail = application_traceback(error) if error else ""
            self._failure = BootError(f"lifespan did not start: {reason}", detail)
        elif isinstance(error, Exception):
            if not isinstance(error, (AssertionError, KeyError, NotImplementedError)):
                reason = " ".join("".join(traceback.format_exception_only(error)).split())
                self.refusal = NoLifespan(reason[:LONGEST_REASON], _is_usual(error))
            logger.debug("%s how lifespan ended", self._subject, exc_info=error)

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            self._supported = True
            self._started.set()
        elif kind == "lifespan.startup.failed":
            text = str(message.get("message") or "").strip()
            last_line = text.splitlines()[-1] if text else "no reason given"
            self._failure = BootError(
                f"lifespan startup failed: {last_line}", text if "\n" in text else ""
            )
            self._started.set()
        elif kind == "lifespan.shutdown.complete":
            self._stopped.set()
        elif kind == "lifespan.shutdown.failed":
            logger.error(
                "%s lifespan shutdown failed: %s", self._subject, message.get("message", "")
            )
            self._stopped.set()
        else:
            raise RuntimeError(f"lifespan has no message {kind!r}")


def _is_usual(error: Exception) -> bool:
    """Whether applications without a lifespan raise an exception like this for its scope.

    Django and Channels raise a ValueError that mentions the lifespan; asgiref's WsgiToAsgi raises
    one that mentions the scope.
    """
    return isinstance(error, ValueError) and ("lifespan" in str(error) or "scope" in str(error))
