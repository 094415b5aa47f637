"""The site's links, also those that leave `docs/`, and its navigation."""

from __future__ import annotations

import importlib.util
import posixpath
import re

import pytest
import yaml

from tests.support.runner import CHECKOUT

from .pages import PAGES

_spec = importlib.util.spec_from_file_location("esg_site", CHECKOUT / "tools" / "site.py")
assert _spec is not None
assert _spec.loader is not None
site = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(site)

SOURCES = [str(page.relative_to(CHECKOUT)) for page in PAGES]


@pytest.mark.parametrize("source", SOURCES)
def test_every_link_leads_to_a_file(source):
    site.links(source, (CHECKOUT / source).read_text())


@pytest.mark.parametrize("source", SOURCES)
def test_every_link_to_a_heading_leads_to_one(source):
    wrong = []
    text = (CHECKOUT / source).read_text()
    for link in re.findall(r"\]\(([^)\s:]*\.md)?#([^)\s]+)\)", text):
        page = CHECKOUT / posixpath.dirname(source) / link[0] if link[0] else CHECKOUT / source
        if link[1] not in headings(page.read_text()):
            wrong.append("#".join(link))
    assert wrong == []


def headings(text: str) -> list[str]:
    """The anchors of a page. GitHub and mkdocs derive them from plain headings in the same way."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles]


def test_a_link_that_leads_nowhere_is_found():
    with pytest.raises(FileNotFoundError, match=r"docs/x\.md: \.\./gone leads nowhere"):
        site.links("docs/x.md", "[a](settings.md#tls) [b](https://example.org/) [c](../gone)")


def test_a_link_in_a_code_block_does_not_count():
    assert site.links("docs/x.md", "```text\n[a](gone.md)\n```\n[b](tls.md)") == ["docs/tls.md"]


@pytest.mark.parametrize(
    ("source", "link", "there"),
    [
        ("docs/tls.md", "settings.md", "settings.md"),
        ("docs/tls.md", "#renewing", "#renewing"),
        ("docs/tls.md", "https://example.org/a", "https://example.org/a"),
        ("docs/tls.md", "../README.md", "index.md"),
        ("docs/tls.md", "../bench/RESULTS.md#websockets", "bench/RESULTS.md#websockets"),
        ("docs/tls.md", "../deploy/systemd", "deploy/systemd/index.md"),
        ("docs/tls.md", "../deploy/systemd/esg.socket", "deploy/systemd/index.md#esg-socket"),
        ("docs/howto/socket-activation.md", "../tls.md", "../tls.md"),
        ("docs/howto/socket-activation.md", "../../CHANGELOG.md", "../CHANGELOG.md"),
        ("bench/RESULTS.md", "README.md", "README.md"),
        ("bench/RESULTS.md", "../docs/design.md", "../design.md"),
    ],
)
def test_links_lead_to_the_right_place_on_the_site(source, link, there):
    assert site.relinked(f"a [b]({link})\n", source) == f"a [b]({there})\n"


def test_linked_files_outside_docs_are_on_the_site():
    pages = site.beyond(["CHANGELOG.md"])
    assert "### Added" in pages["CHANGELOG.md"]
    assert "## esg.socket { #esg-socket }" in pages["deploy/systemd/index.md"]
    assert "ListenStream=127.0.0.1:8000" in pages["deploy/systemd/index.md"]


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((CHECKOUT / "mkdocs.yml").read_text())["nav"]
    pages = [source.removeprefix("docs/") for source in SOURCES if source.startswith("docs/")]
    entries = list(site._entries(site.expanded(nav, pages)))
    assert sorted(set(pages) - set(entries)) == []
    assert len(entries) == len(set(entries))


def test_patterns_in_the_navigation_are_expanded():
    nav = ["a.md", {"B": ["b/[!f]*.md", {"From": ["b/from-*.md"]}]}, {"None": ["c/*.md"]}]
    pages = ["a.md", "b/x.md", "b/from-y.md", "b/w.md"]
    assert site.expanded(nav, pages) == [
        "a.md",
        {"B": ["b/x.md", "b/w.md", {"From": ["b/from-y.md"]}]},
    ]
