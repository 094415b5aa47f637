"""Hooks for mkdocs: the site is made of pages that can also be read in the repository.

A link that leaves `docs/` works on the site because its target is put there: a Markdown page as a
page, any other file (or all of a folder) as a page that shows it. Pages of `nav` outside `docs/`
are put there, too. An entry of `nav` with a `*` stands for pages that match and have no entry of
their own; a section without pages is left out.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]

_FENCE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|#|/")


def on_config(config: Any) -> Any:
    """mkdocs has read its settings: replace the patterns in `nav` by pages."""
    pages = [str(path.relative_to(config.docs_dir)) for path in Path(config.docs_dir).rglob("*.md")]
    config.nav = expanded(config.nav, sorted(pages))
    return config


def expanded(nav: list[Any], pages: list[str]) -> list[Any]:
    """A `nav` whose patterns are replaced by pages that it doesn't name."""
    named = set(_entries(nav))

    def expand(items: list[Any]) -> Iterator[Any]:
        for item in items:
            if isinstance(item, dict):
                for title, inner in item.items():
                    pages_in = list(expand(inner)) if isinstance(inner, list) else inner
                    if pages_in:
                        yield {title: pages_in}
            elif "*" in item:
                matching = [page for page in fnmatch.filter(pages, item) if page not in named]
                named.update(matching)
                yield from matching
            else:
                yield item

    return list(expand(nav))


def _entries(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from _entries(item)


def on_files(files: Any, config: Any) -> Any:
    """mkdocs has found the pages of `docs/`: add the files outside it that they link to."""
    from mkdocs.structure.files import File, InclusionLevel

    named = set(_entries(config.nav))
    for uri, content in beyond(named).items():
        inclusion = InclusionLevel.INCLUDED if uri in named else InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, uri, content=content, inclusion=inclusion))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """mkdocs has read a page: make its links lead to the right places on the site."""
    uri = page.file.src_uri
    source = uri if page.file.generated_by else f"docs/{uri}"
    if page.file.generated_by and not (REPOSITORY / source).is_file():
        return markdown  # made by `folder_page`, with links of the site
    return relinked(markdown, source)


def relinked(markdown: str, source: str) -> str:
    """A page of the repository, with its links changed to those of the site."""
    start = posixpath.dirname(site_uri(source))

    def replace(link: str) -> str:
        path, _, anchor = link.partition("#")
        target = _target(source, path)
        if target is None:
            return link
        uri = site_uri(target)
        if (
            not anchor
            and uri != target
            and (REPOSITORY / target).is_file()
            and not _is_page(target)
        ):
            anchor = _anchor(posixpath.basename(target))
        return posixpath.relpath(uri, start or ".") + (f"#{anchor}" if anchor else "")

    return _in_text(markdown, lambda text: _LINK.sub(lambda match: replace(match[0]), text))


def beyond(named: Iterable[str] = ()) -> dict[str, str]:
    """The pages of the site that aren't in `docs/`, by their place on the site.

    `named` are those of `nav`, which needn't be linked to.
    """
    pages: dict[str, str] = {}
    shown: dict[str, set[str]] = {}
    todo = [f"docs/{path.relative_to(REPOSITORY / 'docs')}" for path in _pages()]
    todo += [page for page in named if not (REPOSITORY / "docs" / page).is_file()]
    seen = set(todo)
    while todo:
        source = todo.pop()
        text = (REPOSITORY / source).read_text(encoding="utf-8")
        if not source.startswith("docs/"):
            pages[site_uri(source)] = text
        for target in links(source, text):
            if target.startswith("docs/") or site_uri(target) == "index.md":
                continue
            if _is_page(target) or _is_page(f"{target}/README.md"):
                page = target if _is_page(target) else f"{target}/README.md"
                if page not in seen:
                    seen.add(page)
                    todo.append(page)
            elif (REPOSITORY / target).is_dir():
                _show_folder(target, shown)
            else:
                shown.setdefault(posixpath.dirname(target), set()).add(target)
    return pages | {site_uri(folder): folder_page(folder, shown) for folder in shown}


def _show_folder(folder: str, shown: dict[str, set[str]]) -> None:
    """Show a folder with everything below it."""
    mine = shown.setdefault(folder, set())
    for path in sorted((REPOSITORY / folder).iterdir()):
        name = f"{folder}/{path.name}"
        if path.name.startswith((".", "__")):
            continue
        if path.is_dir():
            _show_folder(name, shown)
        else:
            mine.add(name)


def folder_page(folder: str, shown: dict[str, set[str]]) -> str:
    """A page that shows files of a folder."""
    parts = [f"# {folder}\n"]
    inner = [other for other in sorted(shown) if posixpath.dirname(other) == folder]
    parts += [f"- [{other}]({posixpath.basename(other)}/index.md)" for other in inner]
    for name in sorted(shown[folder]):
        text = (REPOSITORY / name).read_text(encoding="utf-8").rstrip("\n")
        title = posixpath.basename(name)
        parts.append(f"\n## {title} {{ #{_anchor(title)} }}\n\n`````text\n{text}\n`````")
    return "\n".join(parts) + "\n"


def links(source: str, text: str) -> list[str]:
    """What a page links to in the repository, without anchors. Raises FileNotFoundError."""
    found = []

    def look(piece: str) -> str:
        for link in _LINK.findall(piece):
            target = _target(source, link.partition("#")[0])
            if target is not None:
                if not (REPOSITORY / target).exists():
                    raise FileNotFoundError(f"{source}: {link} leads nowhere")
                found.append(target)
        return piece

    _in_text(text, look)
    return found


def site_uri(path: str) -> str:
    """Where a page, a file or a folder of the repository is on the site, as mkdocs names it."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if _is_page(path):
        return path
    if _is_page(f"{path}/README.md"):
        return f"{path}/README.md"
    folder = path if (REPOSITORY / path).is_dir() else posixpath.dirname(path)
    return f"{folder}/index.md"


def _target(source: str, link: str) -> str | None:
    """The target of a relative link in the repository; None for any other link."""
    if not link or _ELSEWHERE.match(link):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _is_page(path: str) -> bool:
    return path.endswith(".md") and (REPOSITORY / path).is_file()


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _pages() -> list[Path]:
    return sorted((REPOSITORY / "docs").rglob("*.md"))


def _in_text(markdown: str, change: Callable[[str], str]) -> str:
    """Apply a change to everything outside of fenced blocks."""
    pieces, end = [], 0
    for fence in _FENCE.finditer(markdown):
        pieces += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, change(markdown[end:])])
