"""For all tests."""

from __future__ import annotations

import gc

from hypothesis import HealthCheck, settings

# The time of an example depends more on the machine's load than on the code.
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """Exclude objects that live until the end of the run from garbage collection.

    Thousands of collected tests make every full collection take a few hundred milliseconds, and
    many tests ask for one.
    """
    gc.collect()
    gc.freeze()
