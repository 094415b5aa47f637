"""The log as records: `TIME LEVEL SUBJECT EVENT`, and the indented lines that belong to one."""

from __future__ import annotations

import dataclasses
import datetime
import re

_FIRST_LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) "
    r"(?P<level>[A-Z]+) +(?P<message>.*)"
)
CONTINUATION = "  "
"""The beginning of a line that belongs to the record above it."""

_SUBJECT = re.compile(r"(?:(?:worker=(?P<worker>\d+)|arbiter) gen=(?P<gen>\d+) pid=(?P<pid>\d+) )")


@dataclasses.dataclass(frozen=True)
class Record:
    """One event. `detail` holds the lines that follow its first: a traceback, stacks."""

    time: datetime.datetime
    level: str
    message: str
    detail: str
    pid: int
    generation: int
    worker: int | None

    @property
    def text(self) -> str:
        return f"{self.message}\n{self.detail}" if self.detail else self.message

    @property
    def event(self) -> str:
        """The message without its subject."""
        return _SUBJECT.sub("", self.message, count=1)


def records(text: str) -> list[Record]:
    """The records of a log. Each line that can't be part of one is a record of level STRAY."""
    groups: list[tuple[re.Match[str] | None, list[str]]] = []
    for line in text.splitlines():
        match = _FIRST_LINE.fullmatch(line)
        if match is None and line.startswith(CONTINUATION) and groups and groups[-1][0]:
            groups[-1][1].append(line.removeprefix(CONTINUATION))
        else:
            groups.append((match, [] if match else [line]))
    return [_record(match, rest) for match, rest in groups]


def _record(match: re.Match[str] | None, rest: list[str]) -> Record:
    detail = "\n".join(rest)
    if match is None:
        return Record(datetime.datetime.min, "STRAY", "", detail, 0, 0, None)
    subject = _SUBJECT.match(match["message"])
    return Record(
        time=datetime.datetime.fromisoformat(match["time"]),
        level=match["level"],
        message=match["message"],
        detail=detail,
        pid=int(subject["pid"]) if subject else 0,
        generation=int(subject["gen"]) if subject else 0,
        worker=int(subject["worker"]) if subject and subject["worker"] else None,
    )


def misattributed(log: list[Record]) -> list[Record]:
    """The lines that report the end of a reload for a generation other than the one that serves.

    A reload is over when the last worker of the new generation has become ready.
    """
    wrong, ready = [], None
    for record in log:
        if record.worker is not None and record.event == "ready":
            ready = record.generation
        elif record.event.startswith("reloaded workers=") and ready is not None:
            wrong += [record] if record.generation != ready else []
    return wrong


def is_trouble(record: Record) -> bool:
    """Whether the record doesn't belong in the log of a healthy program.

    A line outside any record is trouble, too: some code bypassed the logger.
    """
    quiet = record.level in ("TRACE", "DEBUG", "INFO", "WARNING")
    return not quiet or bool(record.detail)
