"""No file of `esg` imports itself by way of others, not even for the type checker alone.

import-linter compares layers; it has no contract against a cycle of files.
"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

import esg

PACKAGE = Path(esg.__file__).parent


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


FILES = {name_of(file): file for file in PACKAGE.rglob("*.py")}


def imports_of(source: str) -> set[str]:
    """The modules of `esg` that a source imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            inner = {f"{module}.{alias.name}" for alias in node.names}
            names.update(inner & FILES.keys() or {module})
    return names & FILES.keys()


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("import esg.errors", {"esg.errors"}),
        ("from esg import forks, errors", {"esg.forks", "esg.errors"}),
        ("from esg.errors import ESGError", {"esg.errors"}),
        ("if TYPE_CHECKING:\n    from esg.server import state", {"esg.server.state"}),
        ("def late():\n    from esg.server.state import Service", {"esg.server.state"}),
        ("import json", set()),
    ],
)
def test_every_kind_of_import_is_found(source, imported):
    assert imports_of(source) == imported


def test_imports_have_no_cycle():
    graph = {name: imports_of(file.read_text()) for name, file in FILES.items()}
    graphlib.TopologicalSorter(graph).prepare()
