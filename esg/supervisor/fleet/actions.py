"""The actions that a fleet decides on. Only the arbiter performs them; the fleet has no effects."""

from __future__ import annotations

from typing import Literal

from esg.frozen import frozen

State = Literal["starting", "serving", "reloading", "stopping"]
Level = Literal["debug", "info", "warning", "error"]


@frozen
class Spawn:
    """Fork a worker."""

    number: int
    generation: int


@frozen
class Drain:
    """Tell the worker to finish its requests within `grace` seconds, then exit.

    `final`: no other worker takes its place, so it also accepts the connections in the queue.
    """

    number: int
    reason: str
    grace: float
    final: bool


@frozen
class Discard:
    """End a booting worker. If it already serves, and its message is on the way, it drains."""

    number: int
    grace: float
    final: bool


@frozen
class Quit:
    """Tell the worker to end immediately: requests are cancelled, the lifespan's shutdown runs."""

    number: int


@frozen
class DumpStack:
    """Make the worker write the stacks of its threads."""

    number: int


@frozen
class AskWhere:
    """Make a booting worker write which line it is executing; `ReportBoot` follows."""

    number: int


@frozen
class ReportBoot:
    """Log that a worker has been booting for `seconds`, and which line it is executing."""

    number: int
    seconds: float


@frozen
class ReportStop:
    """Log which requests of these workers a stop is waiting for.

    `quick`: the workers were told to end immediately, so a further signal can't hurry them.
    """

    numbers: tuple[int, ...]
    quick: bool


@frozen
class Abort:
    """Log the stacks that the worker wrote, then send it SIGABRT."""

    number: int


@frozen
class Kill:
    """Send the worker SIGKILL."""

    number: int


@frozen
class CloseListeners:
    """Close the listening sockets in the arbiter."""


@frozen
class ReopenLogs:
    """Reopen the log files, in the arbiter and in these workers."""

    numbers: tuple[int, ...]


@frozen
class ShowFailure:
    """Make these workers, which run with `--debug`, show in browsers why a reload failed."""

    numbers: tuple[int, ...]
    reason: str
    detail: str


@frozen
class Log:
    """Log a line about a worker, or about the arbiter if `number` is None.

    `detail` follows the line in the same record; it may be a traceback.
    """

    level: Level
    event: str
    number: int | None = None
    detail: str = ""


@frozen
class ReadSettings:
    """Read the settings for a reload. ReloadAccepted or ReloadRefused follows.

    `job` is the command that is answered at the end of the reload, if a command asked for it.
    """

    job: int | None = None


@frozen
class Prepare:
    """Open this generation's sockets and log files, before its first worker is forked.

    Prepared or PrepareFailed follows.
    """

    generation: int


@frozen
class Adopt:
    """From now on this generation serves: the log, notices and the watcher follow it."""

    generation: int


@frozen
class Retire:
    """Close this generation's sockets and log files, because it gets no more workers.

    A socket on which a worker still accepts stays open until that worker drains.
    """

    generation: int


@frozen
class StopWatching:
    """End the watcher of `--reload`: there are no more reloads."""


@frozen
class Tell:
    """Report a new state to the service manager, the process title and the debug log."""

    state: State
    status: str
    again: bool = False
    """Whether to report the state even if it is the same: a reload was asked for during another."""


@frozen
class Answer:
    """Tell the client that gave this command how it ended. `detail` may be a traceback.

    `stopping`: the command failed because ESG is stopping.
    """

    job: int
    ok: bool
    text: str
    detail: str = ""
    stopping: bool = False


@frozen
class Exit:
    """End the arbiter with this exit code.

    If no worker ever served, `reason` says why; the last line of the log repeats it.
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
