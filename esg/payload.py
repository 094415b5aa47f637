"""The contract between the process manager and what its workers run. Knows neither side."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Sequence

from esg.log.setup import LogSetup
from esg.mailbox import Mailbox
from esg.net.listeners import Listener
from esg.scoreboard import Row
from esg.settings.objects import NO_OBJECTS, Objects
from esg.settings.schema import Config

DUMP_SIGNAL = signal.SIGURG
"""Has a worker write its stacks. By default it is ignored, so it can't come too early."""


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What one reading of the settings gave: data, and the objects that belong to it."""

    config: Config
    objects: Objects = NO_OBJECTS


@dataclasses.dataclass(frozen=True, slots=True)
class GenerationPart:
    """What all workers of a generation have in common."""

    number: int
    config: Config
    listeners: Sequence[Listener]
    logs: LogSetup
    objects: Objects


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerPart:
    """What one worker has for itself."""

    number: int
    mailbox: Mailbox
    row: Row
    stack_fd: int
    """Where `faulthandler` writes the stacks of this worker's threads."""


@dataclasses.dataclass(frozen=True, slots=True)
class Assignment:
    """What the arbiter gives a worker: who it is, and what it runs.

    The parts are separate because a process that has loaded a generation's application can fork
    workers, each of which then has a part of its own.
    """

    worker: WorkerPart
    generation: GenerationPart


Payload = Callable[[Assignment], int]
"""Runs in the child until the worker is done; what it returns is the exit status.

It sends `Ready` when it accepts, or `BootFailed`; beats on its row from its event loop; drains
when told to, or when the arbiter's end of the mailbox closes; writes to new log files when it is
sent `NewLogFiles`, and reopens them itself on SIGUSR1.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Which worker this process is."""

    number: int
    generation: int
    pid: int


_current: WorkerInfo | None = None


def set_current_worker(info: WorkerInfo) -> None:
    """Record which worker this process is; for the payload, once, right after the fork."""
    global _current
    _current = info


def current_worker() -> WorkerInfo | None:
    """Which worker of which generation this process is; None outside a worker."""
    return _current
