"""What a fleet may want done. The arbiter performs these, and nothing else has effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from esg.settings.schema import Config

State = Literal["starting", "serving", "reloading", "stopping"]
Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a worker."""

    number: int
    generation: int
    config: Config


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell the worker to finish what is in flight within `grace` seconds, then exit.

    `final`: nobody takes its place, so it also serves what the kernel's queue still holds.
    """

    number: int
    reason: str
    grace: float
    final: bool


@dataclass(frozen=True, slots=True)
class Discard:
    """Have a worker that is in boot end. One that serves by now, unheard of, drains instead."""

    number: int
    grace: float
    final: bool


@dataclass(frozen=True, slots=True)
class Quit:
    """Tell the worker to end at once: requests are cancelled, lifespan shutdown still runs."""

    number: int


@dataclass(frozen=True, slots=True)
class DumpStack:
    """Have the worker write the stacks of its threads."""

    number: int


@dataclass(frozen=True, slots=True)
class Abort:
    """Log the stacks that the worker wrote, then SIGABRT."""

    number: int


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL."""

    number: int


@dataclass(frozen=True, slots=True)
class CloseListeners:
    """Close the arbiter's descriptors of the listening sockets."""


@dataclass(frozen=True, slots=True)
class ReopenLogs:
    """Open the log files anew, here and in these workers."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShowFailure:
    """Have these workers, which run with `--debug`, show browsers why a reload failed."""

    numbers: tuple[int, ...]
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Log:
    """Write a line about a worker, or about the arbiter where `number` is None.

    `detail` follows the line in the same record: a traceback, for instance.
    """

    level: Level
    event: str
    number: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Adopt:
    """From now on this generation serves: the log, notices and the watcher follow it."""

    generation: int
    config: Config


@dataclass(frozen=True, slots=True)
class Tell:
    """The fleet's state changed: for the process title and the service manager."""

    state: State
    status: str
    anew: bool = False
    """Whether a reload was asked for: so it is one that begins, even in the course of another."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell who asked for this job how it ended. `detail` is, for instance, a traceback."""

    job: int
    ok: bool
    text: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Exit:
    """Everything is done; end the arbiter with this code.

    `reason` is why, if nothing ever served: it is repeated in the last line of the log.
    """

    code: int
    reason: str = ""


Action = (
    Spawn
    | Drain
    | Discard
    | Quit
    | DumpStack
    | Abort
    | Kill
    | CloseListeners
    | ReopenLogs
    | ShowFailure
    | Log
    | Adopt
    | Tell
    | Answer
    | Exit
)
