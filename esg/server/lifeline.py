"""Ends a worker whose arbiter is gone and whose event loop can't notice."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable

logger = logging.getLogger("esg")


def watch(mailbox: int, subject: str, limit: Callable[[], float]) -> None:
    """Watch for the end of a mailbox, from a thread, since the event loop may be blocked.

    `limit` says how many seconds the worker then has to end of its own accord; after them it is
    ended. The arbiter, which would do that otherwise, is no more.
    """
    threading.Thread(
        target=_watch, args=(mailbox, subject, limit), name="lifeline", daemon=True
    ).start()


def _watch(mailbox: int, subject: str, limit: Callable[[], float]) -> None:
    poll = select.poll()
    poll.register(mailbox, 0)  # hang-ups are always told of: poll(2)
    poll.poll()
    time.sleep(limit())
    logger.critical("%s ends: its arbiter is gone, and it has not ended in its time", subject)
    os._exit(1)
