"""The contract between the process manager and the code of its workers. Imports neither."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

from esg.frozen import frozen
from esg.log.setup import LogSetup
from esg.mailbox import Mailbox
from esg.net.listeners import Listener
from esg.scoreboard import Row
from esg.settings.objects import NO_OBJECTS, Objects
from esg.settings.schema import Config

DUMP_SIGNAL = signal.SIGURG
"""Makes a worker write its stacks. Its default action is to do nothing, so it does no harm if it
arrives before the worker has a handler.
"""


@frozen
class Settings:
    """The result of reading the settings: data, and the objects that belong to it."""

    config: Config
    objects: Objects = NO_OBJECTS


@frozen
class GenerationPart:
    """The part that all workers of a generation share."""

    number: int
    config: Config
    listeners: Sequence[Listener]
    logs: LogSetup
    objects: Objects


@frozen
class WorkerPart:
    """The part that belongs to one worker."""

    number: int
    mailbox: Mailbox
    row: Row
    stack_fd: int
    """The descriptor to which `faulthandler` writes the stacks of this worker's threads."""


@frozen
class Assignment:
    """Everything that a worker gets from the arbiter: its own part and its generation's part.

    The parts are separate because a process that has loaded a generation's application can fork
    workers, and each of them has its own part.
    """

    worker: WorkerPart
    generation: GenerationPart


Payload = Callable[[Assignment], int]
"""Runs in the child until the worker is done, and returns the exit status.

It sends `Ready` when it accepts, or `BootFailed`; records heartbeats in its row from its event
loop; drains when told to, or when the arbiter's end of the mailbox closes; writes to new log files
when it is sent `NewLogFiles`, and reopens them itself on SIGUSR1.
"""


@frozen
class WorkerInfo:
    """The identity of this worker process."""

    number: int
    generation: int
    pid: int


_current: WorkerInfo | None = None


def set_current_worker(info: WorkerInfo) -> None:
    """Record this worker's identity; the payload calls it once, right after the fork."""
    global _current
    _current = info


def current_worker() -> WorkerInfo | None:
    """Which worker of which generation this process is; None outside a worker."""
    return _current
