"""The settings that the fleet decides by, and a generation as the fleet knows it.

This is all that the fleet sees of a configuration. `Terms` are plain values, so they can be written
down and read again, for instance by a process that takes over the workers of another one.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Terms:
    """Settings of one generation, under their usual names. Times are in seconds."""

    workers: int
    surge: int
    timeout: float
    timeout_boot: float
    graceful_timeout: float
    drain_delay: float
    debug: bool

    @classmethod
    def of(cls, settings: object) -> Terms:
        """The terms of a configuration: its attributes of the same names."""
        return cls(
            **{field.name: getattr(settings, field.name) for field in dataclasses.fields(cls)}
        )


@dataclass(frozen=True, slots=True)
class Generation:
    """What the fleet knows of a generation. The rest is in `esg.supervisor.generations`."""

    number: int
    terms: Terms
