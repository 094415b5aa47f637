"""Which parser a worker uses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from esg.errors import BootError
from esg.server.http1 import parser
from esg.server.http1.h11_parser import H11Parser
from esg.server.http1.httptools_parser import HttptoolsParser


@pytest.mark.parametrize(
    ("name", "expected"),
    [("auto", HttptoolsParser), ("httptools", HttptoolsParser), ("h11", H11Parser)],
)
def test_the_parser_by_name(name, expected):
    assert parser.parser_class(name) is expected


@pytest.fixture
def no_httptools(monkeypatch):
    monkeypatch.setattr(parser.importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize("name", ["auto", "h11"])
def test_h11_where_httptools_is_missing(no_httptools, name):
    assert parser.parser_class(name) is H11Parser


def test_httptools_asked_for_and_missing(no_httptools):
    with pytest.raises(BootError, match="--http httptools: httptools is not installed; try: pip"):
        parser.parser_class("httptools")


def test_the_server_runs_without_httptools():
    """Nothing imports it that isn't asked to."""
    code = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "httptools":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "httptools" else found(name, *more)
import esg.cli, esg.server.worker, esg.server.http1.connection
from esg.server.http1.parser import parser_class
print(parser_class("auto").__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "H11Parser\n"
