"""From measurements to medians and ratios, as a table to read and as JSON to keep."""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from load import Load

OURS = "esg"
WRK_IS_THE_LIMIT = 0.97  # of its core; above it a faster server would not show

HEADER = (
    "scenario",
    "server",
    "requests/s",
    "esg/peer",
    "(min .. max)",
    "CPU us",
    "peer/esg",
    "p99 ms",
    "rounds",
    "",
)


@dataclass(frozen=True)
class Measurement:
    """One server in one round: the results of wrk, or why they don't count."""

    scenario: str
    server: str
    round: int
    load: Load | None
    problem: str | None = None

    def __str__(self) -> str:
        name = f"{self.scenario} round {self.round} {self.server}"
        if self.load is None:
            return f"{name}: INVALID: {self.problem}"
        return f"{name}: {self.load.requests_per_second:,.0f} requests/s"


def table(measurements: list[Measurement]) -> str:
    """One row for each scenario and server, in the order of their first measurement."""
    pairs = dict.fromkeys((m.scenario, m.server) for m in measurements)
    return _aligned([HEADER, *(_row(measurements, *pair) for pair in pairs)])


def ratios(measurements: list[Measurement], scenario: str, peer: str) -> list[float]:
    """ESG's requests/s over the peer's, for each round in which both are valid.

    Only results of the same round are compared, because the machine's speed varies between rounds.
    """
    return [
        ours.requests_per_second / theirs.requests_per_second
        for ours, theirs in _pairs(measurements, scenario, peer)
    ]


def cpu_ratios(measurements: list[Measurement], scenario: str, peer: str) -> list[float]:
    """The peer's CPU time per request over ESG's, likewise."""
    return [
        theirs.server_us / ours.server_us for ours, theirs in _pairs(measurements, scenario, peer)
    ]


def write_json(path: Path, settings: dict[str, Any], measurements: list[Measurement]) -> None:
    """Every measurement, the invalid ones too, with what is needed to repeat them."""
    raw = {"settings": settings, "measurements": [_raw(m) for m in measurements]}
    path.write_text(json.dumps(raw, indent=2) + "\n")


def _row(measurements: list[Measurement], scenario: str, server: str) -> tuple[str, ...]:
    mine = [m for m in measurements if (m.scenario, m.server) == (scenario, server)]
    loads = [m.load for m in mine if m.load is not None]
    rounds = f"{len(loads)}/{len(mine)}"
    if not loads:
        return scenario, server, "-", "-", "-", "-", "-", "-", rounds, "no valid round"
    rate = statistics.median(load.requests_per_second for load in loads)
    p99 = statistics.median(load.p99_ms for load in loads)
    used = statistics.median(load.server_us for load in loads)
    of_rates = [] if server == OURS else ratios(measurements, scenario, server)
    of_cpu = [] if server == OURS else cpu_ratios(measurements, scenario, server)
    return (
        scenario,
        server,
        f"{rate:,.0f}",
        *_ratio_columns(of_rates),
        f"{used:.1f}",
        _ratio_columns(of_cpu)[0],
        f"{p99:.1f}",
        rounds,
        "wrk is the limit" if max(load.cpu for load in loads) > WRK_IS_THE_LIMIT else "",
    )


def _ratio_columns(values: list[float]) -> tuple[str, str]:
    if not values:
        return "-", "-"
    return f"{statistics.median(values):.2f}", f"({min(values):.2f} .. {max(values):.2f})"


def _pairs(measurements: list[Measurement], scenario: str, peer: str) -> list[tuple[Load, Load]]:
    ours, theirs = _loads(measurements, scenario, OURS), _loads(measurements, scenario, peer)
    return [(ours[number], theirs[number]) for number in ours if number in theirs]


def _loads(measurements: list[Measurement], scenario: str, server: str) -> dict[int, Load]:
    return {
        m.round: m.load
        for m in measurements
        if m.load is not None and (m.scenario, m.server) == (scenario, server)
    }


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    """Align names left and numbers right; leave the remark at the end as it is."""
    names = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(row[2:-1], widths[2:-1], strict=True)]
    return "  ".join([*names, *numbers, row[-1]]).rstrip()


def _raw(measurement: Measurement) -> dict[str, Any]:
    raw = asdict(measurement)
    if measurement.load is not None:
        raw["load"]["requests_per_second"] = round(measurement.load.requests_per_second, 1)
    return raw
