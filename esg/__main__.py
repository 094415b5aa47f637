"""`python -m esg`: the same as the `esg` command."""

import sys

from esg.cli import main

if __name__ == "__main__":
    sys.exit(main())
