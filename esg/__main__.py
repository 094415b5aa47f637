"""`python -m esg`: the same as the `esg` command."""

from esg.cli import run

if __name__ == "__main__":
    run()
