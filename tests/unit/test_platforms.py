"""If ESG can't run on a system, it says so in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.runner import environment

WITHOUT = "import os, runpy, signal, socket; {}; runpy.run_module('esg', run_name='__main__')"


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("del os.fork, os.memfd_create, socket.AF_UNIX, signal.SIGURG", "os.fork"),
        ("del os.memfd_create", "os.memfd_create"),
    ],
    ids=["as on Windows", "as on macOS"],
)
def test_the_command_says_what_is_missing(missing, named):
    command = [sys.executable, "-c", WITHOUT.format(missing)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"esg: error: ESG needs Linux; Python on Linux has no {named}")
    assert "WSL 2" in line


def test_the_package_can_be_imported_anywhere_and_its_names_raise_the_error():
    program = (
        "import os, signal; del os.fork, signal.SIGURG; import esg; print(esg.__version__)\n"
        "try: esg.run\nexcept Exception as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment()
    )
    version, line = done.stdout.splitlines()
    assert version
    assert line.startswith("ESG needs Linux")
