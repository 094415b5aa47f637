"""Parses the stacks that `faulthandler` writes, and shortens them to the useful frames. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from esg.frozen import frozen

_FRAME = re.compile(r'\s*File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)')
_THREAD = re.compile(r"(?:Current thread|Thread) 0x[0-9a-f]+.*:")

LONGEST_PLACE = 300
"""The most characters of a place in the code; only the end of a longer one is shown."""

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STANDARD = os.path.dirname(os.__file__) + os.sep

_INTERNAL = re.compile(
    "|".join(
        (
            re.escape(_PACKAGE),
            re.escape(_STANDARD)
            + r"(?:asyncio/|selectors\.py$|threading\.py$|concurrent/futures/|runpy\.py$)",
            r"<frozen runpy>$",
            r".*/site-packages/(?:uvloop|click)/",
        )
    )
)
"""Files of frames that say nothing about the application: ESG's, the event loop's, Python's own."""


@frozen
class Frame:
    """One call: its place in the code."""

    file: str
    line: int
    function: str

    @property
    def is_internal(self) -> bool:
        """Whether it belongs to the server, not to the application."""
        return _INTERNAL.match(self.file) is not None

    @property
    def is_esg(self) -> bool:
        """Whether it belongs to ESG."""
        return self.file.startswith(_PACKAGE)

    @property
    def is_import(self) -> bool:
        """Whether it belongs to Python's import system."""
        return self.file.startswith(("<frozen importlib", _STANDARD + "importlib"))

    def __str__(self) -> str:
        return f'  File "{self.file}", line {self.line} in {self.function}'


@frozen
class Thread:
    """A thread's heading, and its frames, the innermost first."""

    heading: str
    frames: tuple[Frame, ...]

    @property
    def is_main(self) -> bool:
        """Whether it is the worker's main thread, in which its event loop runs."""
        return any(frame.is_esg and frame.function == "fork" for frame in self.frames)

    def without_server(self) -> Thread:
        """The thread without the frames below the application, which are the same every time."""
        frames = self.frames
        outermost = max((at for at, frame in enumerate(frames) if frame.is_esg), default=None)
        if outermost is not None:
            frames = frames[: outermost + 1]
        while frames and (frames[-1].is_internal or frames[-1].is_import):
            frames = frames[:-1]
        return Thread(self.heading, frames)

    def __str__(self) -> str:
        return "\n".join([self.heading, *map(str, self.frames)])


def threads(text: str) -> list[Thread]:
    """The threads in the output of `faulthandler`, in its order."""
    found: list[tuple[str, list[Frame]]] = []
    for line in text.splitlines():
        frame = _FRAME.fullmatch(line)
        if frame and found:
            found[-1][1].append(Frame(frame["file"], int(frame["line"]), frame["function"]))
        elif _THREAD.fullmatch(line):
            found.append((line, []))
    return [Thread(heading, tuple(frames)) for heading, frames in found]


def of_stuck_worker(text: str) -> str:
    """The stacks of a stuck worker, for the log, beginning with the thread of the event loop.

    Frames below the application are left out, and threads with only these frames, too. Text that
    can't be parsed is left unchanged.
    """
    found = threads(text)
    main = next((thread for thread in found if thread.is_main), None)
    if main is None:
        return text
    first, *others = [main, *(thread for thread in found if thread is not main)]
    short = first.without_server()
    shown = [short if short.frames else first]
    shown += [cut for thread in others if (cut := thread.without_server()).frames]
    parts = [str(thread) for thread in shown]
    left = len(found) - len(shown)
    if left:
        parts.append(f"({left} more {'threads' if left > 1 else 'thread'} of the server's own)")
    return "\n".join(parts)


def where_boot_stands(text: str, folder: str) -> tuple[bool, str]:
    """Whether a worker is importing the application, and the place that its boot has reached.

    The place is empty if it isn't known: for instance if the event loop waits for something.
    """
    main = next((thread for thread in threads(text) if thread.is_main), None)
    if main is None:
        return False, ""
    importing = any(frame.is_esg and frame.file.endswith("loader.py") for frame in main.frames)
    return importing, place(main.without_server().frames, folder)


def place(frames: Sequence[Frame], folder: str) -> str:
    """The innermost line of the application's own code, as `shop/models.py:12`.

    `frames` begin with the innermost one. Paths below `folder` are relative to it; if no code there
    runs, or `folder` is empty, the place is in other code that runs. Empty if only the server
    itself runs.
    """
    frames = [f for f in frames if not (f.is_import or f.is_internal)]
    below = folder + os.sep if folder else "//"  # no path begins with this
    own = [frame for frame in frames if frame.file.startswith(below)]
    places = [frame for frame in own if "site-packages" not in frame.file] or frames
    if not places:
        return ""
    return f"{places[0].file.removeprefix(below)}:{places[0].line}"[-LONGEST_PLACE:]
