"""The terminal that plays the pages: the transcripts that it accepts and refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .pages import blocks
from .terminal import Terminal, matched
from .test_commands import READERS


@pytest.fixture
def play(tmp_path):
    """Play a page with this text to its end; returns its folder."""
    terminals = []

    def play(text: str) -> Path:
        page = tmp_path / "page.md"
        page.write_text(text)
        folder = tmp_path / "folder"
        folder.mkdir()
        terminals.append(Terminal(folder, text))
        for block in blocks(page):
            if block.excuse is None:
                terminals[0].play(block)
        terminals[0].finish()
        return folder

    # Places are relative to the checkout, but this page is outside.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.docs.pages.CHECKOUT", tmp_path)
        yield play
    for terminal in terminals:
        terminal.close()


def console(*lines: str) -> str:
    return "\n".join(["```console", *lines, "```", ""])


def test_output_that_does_not_match_is_refused(play):
    with pytest.raises(AssertionError, match=r"page\.md:1: .*doesn't write what is shown"):
        play(console("$ echo one", "two"))


def test_more_output_than_shown_is_refused(play):
    with pytest.raises(AssertionError, match="doesn't write what is shown"):
        play(console("$ printf 'one\\ntwo\\n'", "one"))


def test_a_failure_is_refused(play):
    with pytest.raises(AssertionError, match="'false' failed with 1, which the page doesn't show"):
        play(console("$ false", "$ true"))


def test_a_failure_at_the_end_is_refused(play):
    with pytest.raises(AssertionError, match="'false' failed with 1, which the page doesn't show"):
        play(console("$ false"))


def test_a_failure_that_is_shown_is_accepted(play):
    play(console("$ (exit 3)", "$ echo $?", "3"))


def test_a_command_that_neither_serves_nor_ends_is_refused(play, monkeypatch):
    monkeypatch.setattr("tests.docs.terminal.eventually", impatient)
    with pytest.raises(AssertionError, match="neither ends nor serves"):
        play(console("$ sleep 60"))


def impatient(condition, what):
    assert condition(), what


def test_the_folder_and_variables_are_kept(play):
    more = ("$ export WHO='a", "b'", '$ echo "$WHO ${PWD##*/}"', "a", "b one")
    play(console("$ mkdir one", "$ cd one", *more))


def test_continued_lines_are_one_command(play):
    folder = play(console("$ cat > file <<EOF", "$ no command", "EOF", "$ echo a \\", "  b", "a b"))
    assert (folder / "file").read_text() == "$ no command\n"


def test_a_marked_block_is_not_run(play):
    assert list(play("<!-- not run: it fails -->\n" + console("$ false")).iterdir()) == []


SERVER = """$ esg esg.demo:app --port 4321
...
arbiter gen=1 pid=1 serving workers=1
"""


def test_a_server_runs_until_it_is_interrupted(play):
    play(
        console(SERVER.strip(), "$ curl -o /dev/null http://localhost:4321/")
        + console('INFO:     127.0.0.1:50434 - "GET / HTTP/1.1" 200 OK')
        + console("^C", "...", "arbiter gen=1 pid=1 stopped, exit status 0")
    )


def test_a_line_that_the_server_does_not_write_is_refused(play, monkeypatch):
    page = console(SERVER.strip()) + console("^C", "...", "arbiter gen=1 pid=1 exploded")
    with pytest.raises(AssertionError, match="doesn't go on with"):
        play(page)


@pytest.mark.parametrize(
    ("shown", "written", "fits"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a...c", "abc", True),
        ("...|c", "a|b|c", True),
        ("a|...|c", "a|c", True),
        ("a|c", "a|b|c", False),
        ("pid=1 ready", "2026-11-21 06:19:12.808 INFO     pid=77 ready", True),
        ("2026-11-21 06:19:12.808 INFO     ready", "2027-01-02 03:04:05.678 INFO     ready", True),
        ("2026-11-21 06:19:12.808 ERROR    ready", "2027-01-02 03:04:05.678 INFO     ready", False),
    ],
)
def test_shown_lines_are_matched_with_written_ones(shown, written, fits):
    from .terminal import normal

    text = normal("".join(f"{line}\n" for line in written.split("|")))
    assert (matched(shown.split("|"), text, whole=True) >= 0) is fits


@pytest.mark.parametrize(
    ("language", "text", "complaint"),
    [
        ("console", "$ true && sudo reboot", "sudo can't be run in a test"),
        ("console", "$ kill $(pgrep esg)", "pgrep can't be run in a test"),
        ("ini", "no section", "no section headers"),
        ("python", "def f(:", "invalid syntax"),
        ("sh", "esg example:app", "a console block"),
        ("text", "$ esg example:app", "a console block"),
        ("toml", 'port = "80', "Illegal character"),
        ("toml", "prot = 80", "did you mean port"),
        ("toml", '[tool.esg]\nlog_level = "loud"', "expected one of"),
        ("yaml", "a: [", "expected the node content"),
    ],
)
def test_a_bad_block_is_found(tmp_path, monkeypatch, language, text, complaint):
    monkeypatch.setattr("tests.docs.pages.CHECKOUT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"```{language}\n{text}\n```\n")
    (block,) = blocks(page)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each reader has its own
        READERS[language](block)
    assert re.search(complaint, str(caught.value))


def test_the_marks_of_a_page_are_read(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        '<!-- not run: why -->\n\n- item\n\n  ```sh title="a.sh"\n  a\n  ```\n\n```\n```\n'
    )
    first, second = blocks(page)
    assert (first.excuse, first.title, first.lines) == (None, "a.sh", ("a",))
    assert (second.excuse, second.language) == (None, "")
    page.write_text("<!-- not run: why -->\n\n```sh\na\n```\n")
    (only,) = blocks(page)
    assert only.excuse == "why"
