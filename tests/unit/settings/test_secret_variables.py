"""Secrets are taken out of the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from esg.settings import secret_variables

PASSWORD = "ESG_SSL_KEYFILE_PASSWORD"

SHOW = """
from pathlib import Path
from esg.settings import secret_variables
import os, subprocess, sys
print(secret_variables.take())
shown = Path("/proc/self/environ").read_bytes()
print(b"hush" in shown, b"OTHER=kept" in shown, os.environ["OTHER"])
print(b"hush" in subprocess.run(["env"], capture_output=True, check=True).stdout)
"""


def test_only_variables_of_passwords_are_secret():
    assert PASSWORD in secret_variables.NAMES
    assert "ESG_PORT" not in secret_variables.NAMES


def test_without_secrets_nothing_happens(monkeypatch):
    monkeypatch.delenv(PASSWORD, raising=False)
    before = dict(os.environ)
    assert secret_variables.take() == {}
    assert dict(os.environ) == before


def test_a_secret_is_neither_passed_on_nor_shown():
    environment = {**os.environ, "OTHER": "kept", PASSWORD: "hush"}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{{'{PASSWORD}': 'hush'}}", "False True kept", "False"]


def test_a_secret_is_removed_even_without_proc(monkeypatch, tmp_path):
    monkeypatch.setenv(PASSWORD, "hush")
    monkeypatch.setattr(secret_variables, "Path", lambda path: Path(f"{tmp_path}{path}"))
    assert secret_variables.take() == {PASSWORD: "hush"}
    assert PASSWORD not in os.environ
