"""Draws the pictures of docs/explanation/growth.md: `python bench/chart.py`.

They show the medians of growth.json, which growth.py writes; `--table` prints these as tables. A
picture has panels next to each other, with one line for each server. The points of a panel are
equally spaced.
"""

import argparse
import html
import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "growth.json"
IMAGES = HERE.parent / "docs" / "images"

WIDTH, HEIGHT = 300, 190  # of a panel's area, in pixels
LEFT, TOP, BELOW, GAP = 52, 70, 46, 24

LOOKS = {
    "esg": ("#1565c0", "M-4 0A4 4 0 1 1 4 0A4 4 0 1 1 -4 0Z"),
    "uvicorn": ("#ef6c00", "M-4 -4H4V4H-4Z"),
    "granian": ("#2e7d32", "M0 -5L5 4H-5Z"),
    "gunicorn": ("#6a1b9a", "M0 -5L5 0L0 5L-5 0Z"),
}
"""The colour and the mark of each server."""

STYLE = """\
  text { font: 12px system-ui, sans-serif; fill: #263238; text-anchor: middle }
  .name { font-weight: 600; font-size: 13px }
  .left { text-anchor: start }
  .right { text-anchor: end }
  .grid { stroke: #cfd8dc; fill: none }
  .line { fill: none; stroke-width: 2 }"""


@dataclass(frozen=True)
class Panel:
    """One value of one part, by the points of the part."""

    part: str
    value: str
    title: str
    below: str
    """What the points are."""
    log: bool = False


PICTURES: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "growth-workers": (
        "Workers: seconds of a reload, and memory",
        (
            Panel("workers", "reload s", "Reload, seconds", "workers"),
            Panel("workers", "memory MiB", "Memory of all processes, MiB", "workers"),
        ),
    ),
    "growth-connections": (
        "Connections: memory of idle ones, CPU time of a request",
        (
            Panel("held", "memory MiB", "Memory, MiB", "idle connections"),
            Panel(
                "held", "CPU us", "CPU per request, \u00b5s, next to idle ones", "idle connections"
            ),
            Panel(
                "used", "CPU us", "CPU per request, \u00b5s, over all of them", "busy connections"
            ),
        ),
    ),
    "growth-requests": (
        "Requests: CPU time by header fields and by size of the body",
        (
            Panel("fields", "CPU us", "CPU per request, \u00b5s", "header fields"),
            Panel("bodies", "CPU us", "CPU per request, \u00b5s (log)", "size of the body", True),
            Panel("bodies", "peak MiB", "Most memory, MiB", "size of the body"),
        ),
    ),
}

Lines = dict[str, list[float | None]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw the growth of costs.")
    parser.add_argument("--table", action="store_true", help="print Markdown tables instead")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text())
    if options.table:
        for part in results:
            print(f"{part}:\n\n{table(results[part])}\n")
        return 0
    for name, svg in pictures(results).items():
        (IMAGES / f"{name}.svg").write_text(svg, encoding="utf-8")
    return 0


def pictures(results: dict[str, Any]) -> dict[str, str]:
    """The SVG of each picture."""
    return {
        name: _picture(title, [panel for panel in panels if panel.part in results], results)
        for name, (title, panels) in PICTURES.items()
    }


def table(part: dict[str, Any]) -> str:
    """All values of a part: a row for each server and value, a column for each point."""
    points = _points(part)
    rows = [f"| | {' | '.join(map(_named, points))} |", f"|{' --- |' * (len(points) + 1)}"]
    for value in dict.fromkeys(value for found in part["results"] for value in found["values"]):
        for server, medians in _lines(part, value).items():
            cells = ["-" if median is None else _number(median) for median in medians]
            rows.append(f"| {value}: {server} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _points(part: dict[str, Any]) -> list[int | str]:
    points = list(dict.fromkeys(found["x"] for found in part["results"]))
    return sorted(points) if all(isinstance(point, int) for point in points) else points


def _lines(part: dict[str, Any], value: str) -> Lines:
    """The medians of each server; None for a point that it has no valid result at."""
    lines: Lines = {}
    for server in part["versions"]:
        for point in _points(part):
            found = [
                result["values"][value]
                for result in part["results"]
                if (result["server"], result["x"]) == (server, point) and value in result["values"]
            ]
            lines.setdefault(server, []).append(statistics.median(found) if found else None)
    return lines


def _named(point: int | str) -> str:
    """A number of things, or of bytes if it is a multiple of 1024."""
    if isinstance(point, str):
        return point
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if point >= unit and point % unit == 0:
            return f"{point // unit} {name}"
    return f"{point:,}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _picture(title: str, panels: list[Panel], results: dict[str, Any]) -> str:
    width = len(panels) * (LEFT + WIDTH + GAP)
    height = TOP + HEIGHT + BELOW
    servers = dict.fromkeys(name for panel in panels for name in results[panel.part]["versions"])
    shapes = [f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>']
    for number, server in enumerate(servers):
        colour, mark = LOOKS[server]
        x = LEFT + 90 * number
        shapes.append(f'<path d="{mark}" fill="{colour}" transform="translate({x} 20)"/>')
        shapes.append(f'<text class="left" x="{x + 10}" y="24">{server}</text>')
    for number, panel in enumerate(panels):
        x = LEFT + number * (LEFT + WIDTH + GAP)
        shapes.append(f'<g transform="translate({x} {TOP})">')
        shapes += _panel(panel, results[panel.part])
        shapes.append("</g>")
    body = "\n".join(shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" role="img">\n<title>{html.escape(title)}</title>\n'
        f"<style>\n{STYLE}\n</style>\n{body}\n</svg>\n"
    )


def _panel(panel: Panel, part: dict[str, Any]) -> list[str]:
    lines, points = _lines(part, panel.value), _points(part)
    values = [value for line in lines.values() for value in line if value is not None]
    ticks = _decades(values) if panel.log else _ticks(max(values))
    low = math.log10(ticks[0]) if panel.log else 0.0
    high = math.log10(ticks[-1]) if panel.log else ticks[-1]

    def down(value: float) -> float:
        share = ((math.log10(value) if panel.log else value) - low) / (high - low)
        return round(HEIGHT * (1 - share), 1)

    across = [round(WIDTH * (at + 0.5) / len(points), 1) for at in range(len(points))]
    shapes = [f'<text class="left name" x="0" y="-14">{html.escape(panel.title)}</text>']
    for tick in ticks:
        shapes.append(f'<path class="grid" d="M0 {down(tick)}H{WIDTH}"/>')
        shapes.append(f'<text class="right" x="-6" y="{down(tick) + 4}">{_number(tick)}</text>')
    for x, point in zip(across, points, strict=True):
        shapes.append(f'<text x="{x}" y="{HEIGHT + 18}">{_named(point)}</text>')
    shapes.append(f'<text x="{WIDTH / 2}" y="{HEIGHT + 36}">{html.escape(panel.below)}</text>')
    for server in reversed(lines):  # ESG is drawn last, above the others
        colour, mark = LOOKS[server]
        places = [
            (x, down(value))
            for x, value in zip(across, lines[server], strict=True)
            if value is not None
        ]
        path = "L".join(f"{x} {y}" for x, y in places)
        shapes.append(f'<path class="line" stroke="{colour}" d="M{path}"/>')
        shapes += [
            f'<path d="{mark}" fill="{colour}" transform="translate({x} {y})"/>' for x, y in places
        ]
    return shapes


def _ticks(most: float) -> list[float]:
    """From 0 to at least `most`, in 3 to 5 round steps."""
    step = 10 ** math.floor(math.log10(most / 3))
    step *= next(factor for factor in (1, 2, 5, 10) if most / (step * factor) <= 5)
    return [step * number for number in range(math.ceil(most / step) + 1)]


def _decades(values: list[float]) -> list[float]:
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return [10.0**power for power in range(first, last + 1)]


if __name__ == "__main__":
    sys.exit(main())
