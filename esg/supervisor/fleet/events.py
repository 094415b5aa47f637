"""The events of a fleet: the arbiter reports what happened, and the fleet decides what to do."""

from __future__ import annotations

from collections.abc import Mapping

from esg.frozen import frozen
from esg.supervisor.fleet.terms import Terms


@frozen
class Started:
    """The arbiter listens and is ready to fork."""


@frozen
class WorkerReady:
    """The worker has booted and accepts connections."""

    number: int


@frozen
class WorkerBootFailed:
    """The worker reported why it can't boot; its exit follows.

    `detail` is the application's traceback, if there is one. `exit_code` is the arbiter's exit code
    if no worker has ever served.
    """

    number: int
    message: str
    detail: str
    exit_code: int


@frozen
class WorkerDue:
    """The worker wants to be replaced (max-requests, SIGTERM), and serves until then."""

    number: int
    reason: str


@frozen
class WorkerRetiring:
    """The worker has begun to drain, although the arbiter didn't tell it to."""

    number: int
    reason: str


@frozen
class WorkerStoppedAccepting:
    """The worker drains, and accepts no connections any more."""

    number: int


@frozen
class WorkerExited:
    """The process has ended; `status` is text such as "exit status 1" or "killed by SIGKILL".

    `clean`: it exited by itself with status 0. `detail` is the stack that a fatal signal wrote.
    """

    number: int
    status: str
    clean: bool = False
    detail: str = ""


@frozen
class SpawnFailed:
    """The worker could not be forked."""

    number: int
    reason: str


@frozen
class BeatsRead:
    """Seconds since each worker's event loop last turned; infinite if its heartbeat is invalid."""

    ages: Mapping[int, float]


@frozen
class MemoryRead:
    """The memory of workers that have a limit, in bytes. A worker may be missing."""

    sizes: Mapping[int, int]


@frozen
class ReloadAsked:
    """A reload was asked for. `job` is the command to answer at its end, if there is one."""

    job: int | None = None


@frozen
class ReloadAccepted:
    """The settings for a reload are valid: there is a new generation to serve."""

    generation: int
    terms: Terms
    job: int | None = None


@frozen
class ReloadRefused:
    """The settings for a reload are invalid."""

    reason: str
    job: int | None = None


@frozen
class Prepared:
    """The sockets and log files of this generation are open."""

    generation: int


@frozen
class PrepareFailed:
    """A socket or log file of this generation can't be opened."""

    generation: int
    reason: str


@frozen
class Resize:
    """The number of workers is to be increased by `by`, which may be negative."""

    by: int


@frozen
class ReopenRequested:
    """The log files are to be reopened; they may have been moved away."""


@frozen
class ShutdownRequested:
    """Stop. `insistent`: if a stop has already begun, make it quick (a second Ctrl-C)."""

    quick: bool = False
    insistent: bool = False


@frozen
class Tick:
    """Time has passed."""


Event = (
    Started
    | WorkerReady
    | WorkerBootFailed
    | WorkerDue
    | WorkerRetiring
    | WorkerStoppedAccepting
    | WorkerExited
    | SpawnFailed
    | BeatsRead
    | MemoryRead
    | ReloadAsked
    | ReloadAccepted
    | ReloadRefused
    | Prepared
    | PrepareFailed
    | Resize
    | ReopenRequested
    | ShutdownRequested
    | Tick
)
