"""Draws the README's picture of a terminal, from what ESG writes to one during a rolling reload.

`python tools/picture.py > docs/images/terminal.svg`, from the root of the repository. Port 8000
must be free.
"""

from __future__ import annotations

import contextlib
import html
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

APPLICATION = """\
async def app(scope, receive, send):
    assert scope["type"] == "http"
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"Hello, world!\\n"})
"""
COMMAND = "esg example:app --workers 2 --pid esg.pid --no-access-log"
ASK = "curl http://127.0.0.1:8000/"
CHANGE = "sed -i 's/world/again/' example.py"
RELOAD = "kill -HUP $(cat esg.pid)"
LIMIT = 60.0
"""Seconds that any step may take."""

COLOURS = {
    30: "#5c6370", 31: "#e06c75", 32: "#98c379", 33: "#e5c07b", 34: "#61afef", 35: "#c678dd",
    36: "#56b6c2", 37: "#dcdfe4", 90: "#7f848e",
}  # fmt: skip
"""What the escape sequences of colours are drawn as."""

_ESCAPE = re.compile(r"\x1b\[([\d;]*)m")
_OTHER_ESCAPE = re.compile(r"\x1b\[[\d;?]*[A-Za-ln-z]")
CHARACTER, LINE = 7.83, 19
"""Width and height of a character, in pixels."""


class Terminal:
    """ESG in a terminal of its own, in a folder with an application."""

    def __init__(self, folder: Path, port: int) -> None:
        (folder / "example.py").write_text(APPLICATION)
        self.folder, self.port = folder, port
        self._reading, writing = pty.openpty()
        words = [*COMMAND.split()[1:], "--port", str(port)]
        environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        for name in [name for name in environment if name.startswith("ESG_")]:
            del environment[name]
        environment.pop("NO_COLOR", None)
        # Bytecode is cached by times in whole seconds, and the example changes sooner than that.
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "esg", *words],
            cwd=folder,
            env={**environment, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
            stdin=writing,
            stdout=writing,
            stderr=writing,
            start_new_session=True,
        )
        os.close(writing)
        self._written = ""

    def read_until(self, words: str) -> None:
        """Read its output until these words have appeared. Raises TimeoutError."""
        deadline = time.monotonic() + LIMIT
        while words not in self._written:
            if not select.select([self._reading], [], [], deadline - time.monotonic())[0]:
                raise TimeoutError(f"no {words!r} in {self._written!r}")
            self._written += os.read(self._reading, 65536).decode()

    @property
    def lines(self) -> list[str]:
        text = self._written.replace(f":{self.port}", ":8000")
        return _OTHER_ESCAPE.sub("", text).replace("\r\n", "\n").splitlines()

    def ask(self, expected: str) -> str:
        """Its answer, once that has the expected word: an old worker may answer until it drains.

        Raises TimeoutError.
        """
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/", timeout=LIMIT
            ) as response:
                answer: str = response.read().decode().rstrip("\n")
            if expected in answer:
                return answer
        raise TimeoutError(f"no {expected!r} in {answer!r}")

    def reload(self) -> None:
        os.kill(self._process.pid, signal.SIGHUP)

    def close(self) -> None:
        """Stop it, and read its last output; otherwise it would wait for a reader."""
        self._process.terminate()
        with contextlib.suppress(OSError):  # the terminal is gone with its last process
            self.read_until("stopped, exit status")
        self._process.wait(LIMIT)
        os.close(self._reading)


def transcript(port: int = 8000) -> tuple[list[str], list[str]]:
    """The lines of two terminals: the one that ESG runs in, and the one that a user types in."""
    with tempfile.TemporaryDirectory() as folder:
        terminal = Terminal(Path(folder), port)
        try:
            terminal.read_until("serving workers=2")
            typed = [f"$ {ASK}", terminal.ask("world")]
            example = terminal.folder / "example.py"
            example.write_text(APPLICATION.replace("world", "again"))
            terminal.reload()
            typed += [f"$ {CHANGE}", f"$ {RELOAD}"]
            terminal.read_until("reloaded workers=2")
            terminal.read_until("\n")
            typed += [f"$ {ASK}", terminal.ask("again")]
            lines = terminal.lines
        finally:
            terminal.close()
    return [f"$ {COMMAND}", *lines], typed


def without_colours(line: str) -> str:
    return _ESCAPE.sub("", line)


def drawn(terminals: list[list[str]]) -> str:
    """An SVG of terminals, one below the other."""
    columns = max(len(without_colours(line)) for lines in terminals for line in lines)
    width = int(columns * CHARACTER) + 40
    shapes: list[str] = []
    top = 0
    for lines in terminals:
        height = len(lines) * LINE + 52
        shapes.append(f'<rect y="{top}" width="{width}" height="{height}" rx="8" fill="#282c34"/>')
        for number, colour in enumerate(("#e06c75", "#e5c07b", "#98c379")):
            dot = f'<circle cx="{20 + 18 * number}" cy="{top + 18}" r="5" fill="{colour}"/>'
            shapes.append(dot)
        for number, line in enumerate(lines):
            y = top + 48 + number * LINE
            shapes.append(f'<text x="20" y="{y}" xml:space="preserve">{spans(line)}</text>')
        top += height + 12
    size = f'viewBox="0 0 {width} {top - 12}" width="{width}" height="{top - 12}"'
    font = "13px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
    style = f"text {{ font: {font}; fill: #dcdfe4 }}"
    body = "\n".join(shapes)
    title = "A rolling reload: two terminals, one with ESG's log, one with the commands"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>{title}</title>\n'
        f"<style>{style}</style>\n{body}\n</svg>\n"
    )


def spans(line: str) -> str:
    """A line with its colours, as the inside of a `text`."""
    if line.startswith("$ "):
        line = f"\x1b[32m$\x1b[0m \x1b[1m{line[2:]}"
    found, colour, bold = "", "", False
    pieces = _ESCAPE.split(line)
    for number, piece in enumerate(pieces):
        if number % 2:
            for code in map(int, filter(None, (piece or "0").split(";"))):
                bold = code == 1 or (bold and code not in (0, 22))
                colour = COLOURS.get(code, "" if code in (0, 39) else colour)
        elif piece:
            attributes = f' fill="{colour}"' * bool(colour) + ' font-weight="bold"' * bold
            text = html.escape(piece, quote=False)
            found += f"<tspan{attributes}>{text}</tspan>" if attributes else text
    return found


def main() -> None:
    """Write the picture to standard output."""
    sys.stdout.write(drawn(list(transcript())))


if __name__ == "__main__":
    main()
