"""What a fleet may want done. The arbiter performs these, and nothing else has effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["starting", "serving", "reloading", "stopping"]
Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Spawn:
    """Fork a worker."""

    number: int
    generation: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Tell the worker to finish what is in flight within `grace` seconds, then exit.

    `final`: no other worker takes its place, so it also serves what the kernel's queue still holds.
    """

    number: int
    reason: str
    grace: float
    final: bool


@dataclass(frozen=True, slots=True)
class Discard:
    """End a worker that boots. If it serves by now and hasn't been heard yet, it drains instead."""

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
class AskWhere:
    """Have a worker in boot write where it is; `ReportBoot` follows."""

    number: int


@dataclass(frozen=True, slots=True)
class ReportBoot:
    """Log that a worker has been booting for `seconds`, and where it is."""

    number: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ReportStop:
    """Log what these workers have left to do, since the stop waits for them.

    `quick`: they were told to end immediately, so nothing can cut that short.
    """

    numbers: tuple[int, ...]
    quick: bool


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
    """Open the log files again, here and in these workers."""

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
class ReadSettings:
    """Read the settings for a reload. `job` is whose answer is due at its end, if anyone's.

    ReloadRequested or ReloadRefused follows.
    """

    job: int | None = None


@dataclass(frozen=True, slots=True)
class Prepare:
    """Open what this generation needs before its first worker: sockets and log files.

    Prepared or PrepareFailed follows.
    """

    generation: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """From now on this generation serves: the log, notices and the watcher follow it."""

    generation: int


@dataclass(frozen=True, slots=True)
class Retire:
    """There will be no more workers of this generation: its sockets and log files go.

    Workers that still accept on a socket keep it open until they drain.
    """

    generation: int


@dataclass(frozen=True, slots=True)
class StopWatching:
    """End the watcher of files: nothing is reloaded any more."""


@dataclass(frozen=True, slots=True)
class Tell:
    """The fleet's state changed: for the service manager, the process title and the debug log."""

    state: State
    status: str
    anew: bool = False
    """Whether a reload was asked for: then this reload begins, even during another one."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell the client that asked for this job how it ended. `detail` is, for instance, a traceback.

    `stopping`: it failed because ESG stops.
    """

    job: int
    ok: bool
    text: str
    detail: str = ""
    stopping: bool = False


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
    | AskWhere
    | ReportBoot
    | ReportStop
    | Abort
    | Kill
    | CloseListeners
    | ReopenLogs
    | ShowFailure
    | Log
    | ReadSettings
    | Prepare
    | Adopt
    | Retire
    | StopWatching
    | Tell
    | Answer
    | Exit
)
