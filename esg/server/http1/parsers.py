"""Which parser a worker uses. Only that one is imported, since the other may not be installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from esg.server.http1.parser import Parser, Sink


def parser_class(name: str) -> Callable[[Sink], Parser]:
    """The parser that `--http` names; `auto` is httptools where it is installed.

    Whether another one is installed has been checked when the settings were read (`prepare`).
    """
    if name == "h11" or (name == "auto" and importlib.util.find_spec("httptools") is None):
        from esg.server.http1.h11_parser import H11Parser

        return H11Parser
    from esg.server.http1.httptools_parser import HttptoolsParser

    return HttptoolsParser
