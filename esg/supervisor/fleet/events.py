"""What can happen to a fleet. Facts, made by the arbiter; the fleet decides what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from esg.supervisor.fleet.terms import Terms


@dataclass(frozen=True, slots=True)
class Started:
    """The arbiter listens and is ready to fork."""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The worker has booted and accepts."""

    number: int


@dataclass(frozen=True, slots=True)
class WorkerBootFailed:
    """The worker said why it can't boot; its exit follows.

    `detail` is the application's traceback, if there is one; `exit_code` what the arbiter ends
    with if nothing has ever served.
    """

    number: int
    message: str
    detail: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class WorkerDue:
    """The worker wants to be replaced (max-requests, a TERM of its own), and serves on."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerRetiring:
    """The worker drains without having been told to."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """The process is gone; `status` is for people ("exit status 1", "killed by SIGKILL").

    `clean`: it ended by itself and with success. `detail` is the stack a fatal signal left.
    """

    number: int
    status: str
    clean: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The worker could not be forked."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class BeatsRead:
    """Seconds since each worker's event loop last turned; infinite if what it says can't be so."""

    ages: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class ReloadAsked:
    """A reload was asked for. `job` is whose answer is due at its end, if anyone's."""

    job: int | None = None


@dataclass(frozen=True, slots=True)
class ReloadRequested:
    """The settings for a reload were read, and are valid: a new generation is to be served."""

    generation: int
    terms: Terms
    job: int | None = None


@dataclass(frozen=True, slots=True)
class ReloadRefused:
    """The settings for a reload were read, and are bad."""

    reason: str
    job: int | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """What this generation needs is open."""

    generation: int


@dataclass(frozen=True, slots=True)
class PrepareFailed:
    """Something that this generation needs can't be opened."""

    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Resize:
    """More workers, or fewer."""

    by: int


@dataclass(frozen=True, slots=True)
class ReopenRequested:
    """The log files were moved away; new ones are to be opened in their place."""


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    """Stop. `insistent`: a second such request (an impatient ^C) means quick."""

    quick: bool = False
    insistent: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Started
    | WorkerReady
    | WorkerBootFailed
    | WorkerDue
    | WorkerRetiring
    | WorkerExited
    | SpawnFailed
    | BeatsRead
    | ReloadAsked
    | ReloadRequested
    | ReloadRefused
    | Prepared
    | PrepareFailed
    | Resize
    | ReopenRequested
    | ShutdownRequested
    | Tick
)
