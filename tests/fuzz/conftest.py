"""See `tests/conformance/conftest.py`."""

from tests.conformance.conftest import log, quiet

__all__ = ["log", "quiet"]
