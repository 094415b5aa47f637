"""`python -m esg`, and the `esg` command."""

import os
import signal
import sys
from types import FrameType

CHECKS = {"--check-config", "--print-config"}
"""Options with which exit code 0 means that a check has passed."""


def main() -> None:
    """Run the command if the operating system is supported, and exit with its exit code."""
    if not CHECKS.intersection(sys.argv):
        _end_on_request()
    from esg import platforms  # the imports from here on take some time
    from esg.errors import ESGError

    try:
        platforms.check()
    except ESGError as error:
        sys.exit(f"esg: error: {error}")
    from esg.cli import run  # this import may fail on an operating system that isn't supported

    run()


def _end_on_request() -> None:
    """Make TERM and INT end this process in an orderly way until the arbiter's handlers are set.

    Without a handler, PID 1 would ignore TERM (kill(2)), and any other process would end as if it
    had failed. This handler stays until the arbiter's replaces it, so that no signal is lost.
    """
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    # The parent process may have blocked these signals, and the mask is inherited.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))


def _end(signum: int, frame: FrameType | None) -> None:
    os._exit(0)  # nothing has to be closed


if __name__ == "__main__":
    main()
