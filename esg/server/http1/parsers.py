"""Selects the parser of a worker. Only this one is imported; the other may not be installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from esg.server.http1.parser import Parser, Sink


def parser_class(name: str) -> Callable[[Sink], Parser]:
    """The parser that `--http` names; `auto` is httptools if it is installed.

    `prepare` has checked that a parser named in the settings is installed.
    """
    if name == "h11" or (name == "auto" and importlib.util.find_spec("httptools") is None):
        from esg.server.http1.h11_parser import H11Parser

        return H11Parser
    from esg.server.http1.httptools_parser import HttptoolsParser

    return HttptoolsParser
