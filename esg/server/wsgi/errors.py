"""`wsgi.errors`: text that an application writes to it becomes records of the log."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterable

from esg.log.records import TRACE, Subject

logger = logging.getLogger("esg")

MOST_HELD = 65536
"""The most characters of an unfinished record that are kept."""

_LINK = re.compile(
    r"\n(?:The above exception was the direct cause of the following exception"
    r"|During handling of the above exception, another exception occurred):\n\n"
)
"""The text that `traceback` writes between an exception and the exception that it caused."""

_TRACEBACK = re.compile(r" *(?:\+ Exception Group )?Traceback \(most recent call last\):\n")
_TRACEBACK_END = re.compile(r"\S.*| +\+-{20,}")
"""The last line of a traceback names the exception, or closes a group of them."""

_LEVELS = {
    "CRITICAL": logging.CRITICAL,
    "FATAL": logging.CRITICAL,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "WARN": logging.WARNING,
    "NOTICE": logging.INFO,
    "INFO": logging.INFO,
    "DEBUG": logging.DEBUG,
    "TRACE": TRACE,
}
_NAMES = "|".join(_LEVELS)
_LEVEL = re.compile(
    r"(?:\x1b\[[0-9;]{0,9}m)?"
    r"(?:(?:\[[^]\n]{1,40}\]|[0-9][0-9:.,+/Z -]{0,40}+(?:T[0-9:.,+Z-]{1,40}+)?)[ |:-]{0,4}+){0,3}"
    r"(?:\x1b\[[0-9;]{0,9}m)?"
    rf"(?:\[ *((?i:{_NAMES})) *\]|({_NAMES})\b)"
)
"""The level at the beginning of a text, possibly after a time, as in `ERROR:app:text`,
`[2026-11-26 10:00:00,123] ERROR in app: text` or `[2026-11-26 10:00:00 +0000] [7] [INFO] text`.
Possessive quantifiers prevent backtracking over the time, because a text may come from a client:
with backtracking, 200 digits took 30 ms.
"""


class ErrorStream(threading.local):
    """`wsgi.errors`: each write is a record in the log. Unfinished records belong to one thread.

    A text without a line end waits for the rest of its line, so that `print` makes one record. A
    traceback waits for its last line, because `traceback.print_exception` writes line by line.
    """

    _begun = ""

    def __init__(self, subject: Subject | None) -> None:
        """`subject` names this worker in the log."""
        self._subject = subject

    def write(self, text: str) -> int:
        """Add a text to the unfinished record, and log the record if it is complete."""
        self._begun += text
        if _is_complete(self._begun) or len(self._begun) > MOST_HELD:
            self.flush()
        return len(text)

    def writelines(self, texts: Iterable[str]) -> None:
        """Write these as one text."""
        self.write("".join(texts))

    def flush(self) -> None:
        """Log the unfinished record as it is."""
        text, self._begun = self._begun.strip("\r\n"), ""
        if text and not text.isspace():
            log(self._subject, f"wsgi.errors: {text}", level=_level_of(text))


def _is_complete(text: str) -> bool:
    """Whether a record is complete."""
    if not text.endswith("\n"):
        return False
    link = _LINK.match(text)
    if link is not None:
        text = text[link.end() :]
    if not _TRACEBACK.match(text):
        return text != ""
    _, before, last = text[:-1].rpartition("\n")
    return bool(before) and _TRACEBACK_END.fullmatch(last) is not None


def _level_of(text: str) -> int:
    """The level that a text begins with, or WARNING."""
    match = _LEVEL.match(text)
    return _LEVELS[(match[1] or match[2]).upper()] if match else logging.WARNING


def log(
    subject: Subject | None,
    event: str,
    error: BaseException | None = None,
    *,
    level: int = logging.ERROR,
) -> None:
    """Log an event about this worker; without a worker, the event has no subject."""
    if subject is None:
        logger.log(level, "%s", event, exc_info=error)
    else:
        logger.log(level, "%s %s", subject, event, exc_info=error)
