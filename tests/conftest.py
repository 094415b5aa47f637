"""For all tests."""

from __future__ import annotations

import gc

from hypothesis import HealthCheck, settings

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """Keep the garbage collector away from what lives as long as the run.

    Thousands of collected tests make every full collection take a few hundred milliseconds, and
    many tests ask for one.
    """
    gc.collect()
    gc.freeze()
