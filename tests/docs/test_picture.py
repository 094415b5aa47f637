"""The README's picture of a terminal shows what ESG writes today."""

from __future__ import annotations

import importlib.util
import re
import xml.etree.ElementTree

from tests.support.runner import CHECKOUT

from .terminal import free_ports, normal

_spec = importlib.util.spec_from_file_location("esg_picture", CHECKOUT / "tools" / "picture.py")
assert _spec is not None
assert _spec.loader is not None
picture = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(picture)

DRAWN = CHECKOUT / "docs" / "images" / "terminal.svg"


def alike(lines: list[str]) -> set[str]:
    """The lines without times, pids and worker numbers."""
    return {re.sub(r"worker=\d+", "worker=N", normal(line)).rstrip() for line in lines}


def test_the_picture_shows_what_esg_writes():
    texts = xml.etree.ElementTree.parse(DRAWN).iter("{http://www.w3.org/2000/svg}text")
    drawn = alike(["".join(text.itertext()) for text in texts])
    (port,) = free_ports(1)
    log, typed = picture.transcript(int(port))
    written = alike([picture.without_colours(line) for line in [*log, *typed]])
    gone = {line for line in written | drawn if " gone: " in line}  # perhaps after the last line
    assert drawn - gone == written - gone
