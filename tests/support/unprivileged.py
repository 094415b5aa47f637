"""A Python for an unprivileged user, who can't read the folders of other users."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig

import pytest

from .runner import CHECKOUT

NOBODY = pwd.getpwnam("nobody")


def as_nobody() -> tuple[str, dict[str, str]]:
    """A Python that `nobody` can run, and the environment with the packages installed here."""
    paths = [str(CHECKOUT), sysconfig.get_paths()["purelib"]]
    extra = {"PYTHONPATH": os.pathsep.join(paths)}
    for python in (sys.executable, shutil.which("python3", path="/usr/bin")):
        check = ["/usr/bin/env", python, "-c", "import esg.cli, uvloop, httptools, setproctitle"]
        if python and os.geteuid() == 0:
            result = subprocess.run(
                check,
                user="nobody",
                group=NOBODY.pw_gid,
                extra_groups=[],
                env=extra | {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
                cwd="/",
                capture_output=True,
            )
            if result.returncode == 0:
                return python, extra
    pytest.skip("needs root, and a Python that the user nobody can run")
