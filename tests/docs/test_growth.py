"""The pictures of growing costs show the results that are kept."""

from __future__ import annotations

import importlib.util
import json
import xml.etree.ElementTree

from tests.support.runner import CHECKOUT

_spec = importlib.util.spec_from_file_location("esg_chart", CHECKOUT / "bench" / "chart.py")
assert _spec is not None
assert _spec.loader is not None
chart = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chart)

RESULTS = json.loads(chart.RESULTS.read_text())


def test_the_pictures_are_drawn_from_the_results():
    for name, svg in chart.pictures(RESULTS).items():
        assert (chart.IMAGES / f"{name}.svg").read_text(encoding="utf-8") == svg, name
        xml.etree.ElementTree.fromstring(svg)


def test_the_tables_of_the_results_have_the_same_numbers():
    results = (CHECKOUT / "bench" / "RESULTS.md").read_text(encoding="utf-8")
    for part in RESULTS.values():
        assert chart.table(part) in results
