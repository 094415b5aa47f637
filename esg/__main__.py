"""`python -m esg`, and the `esg` command."""

import os
import signal
import sys
from types import FrameType

CHECKS = {"--check-config", "--print-config"}
"""Options with which an exit code of 0 says that something was found to be good."""


def main() -> None:
    """Run the command, if this operating system can; ends with its exit code."""
    if not CHECKS.intersection(sys.argv):
        _end_on_request()
    from esg import platforms  # from here on it takes its time
    from esg.errors import ESGError

    try:
        platforms.check()
    except ESGError as error:
        sys.exit(f"esg: error: {error}")
    from esg.cli import run  # which can't be imported everywhere

    run()


def _end_on_request() -> None:
    """Have TERM and INT end this process in good order until the arbiter's handlers are in.

    Without one TERM would be lost on PID 1 (kill(2)), and an error of other processes. The first
    handler stays until the other takes its place, so that no signal falls between.
    """
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    # The parent process may have blocked these signals, and the mask is inherited.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))


def _end(signum: int, frame: FrameType | None) -> None:
    os._exit(0)  # nothing is open that would have to be closed


if __name__ == "__main__":
    main()
