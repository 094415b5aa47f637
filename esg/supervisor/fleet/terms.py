"""The settings that the fleet's decisions depend on, and a generation as the fleet knows it.

The fleet sees no other part of a configuration. `Terms` are plain values, so they can be
serialised, for instance for a process that takes over the workers of another one.
"""

from __future__ import annotations

import dataclasses

from esg.frozen import frozen


@frozen
class Terms:
    """Settings of one generation, under their usual names. Times are in seconds, sizes in bytes."""

    workers: int
    surge: int
    timeout: float
    timeout_boot: float
    graceful_timeout: float
    drain_delay: float
    debug: bool
    max_lifetime: float = 0.0
    max_lifetime_jitter: float = 0.0
    max_memory: int = 0
    max_memory_hard: int = 0

    @classmethod
    def of(cls, settings: object) -> Terms:
        """The terms of a configuration, from its attributes with the same names."""
        return cls(
            **{field.name: getattr(settings, field.name) for field in dataclasses.fields(cls)}
        )


@frozen
class GenerationTerms:
    """What the fleet knows about a generation. `esg.supervisor.generations` has the rest."""

    number: int
    terms: Terms
