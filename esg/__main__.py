"""`python -m esg`, and the `esg` command."""

import sys

from esg import platforms
from esg.errors import ESGError


def main() -> None:
    """Run the command, if this operating system can; ends with its exit code."""
    try:
        platforms.check()
    except ESGError as error:
        sys.exit(f"esg: error: {error}")
    from esg.cli import run  # which can't be imported everywhere

    run()


if __name__ == "__main__":
    main()
