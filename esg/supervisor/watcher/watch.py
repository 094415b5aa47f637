"""The watcher, a child of the arbiter with `--reload`: reports which files have changed.

It is a separate process because watchfiles runs a thread, and a process that forks must have
none. It uses uvicorn's rules for what counts as a change, so that the options mean the same.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import signal
import threading
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from esg import mailbox
from esg.errors import ConfigError
from esg.log.files import stream_fds
from esg.settings.schema import Config

INCLUDED = ("*.py",)
EXCLUDED = (".*", ".py[cod]", ".sw.*", "~*")
"""The default patterns, which are uvicorn's. Giving one to the opposite option removes it from
the defaults."""

STEP = 15
"""Milliseconds without another change after which a burst counts as over."""

LONGEST_BURST = 200
"""Milliseconds after which a burst is reported even if it continues."""

GLANCE = 250
"""Milliseconds between two checks of files without kernel events: links, and single files."""

CLOCK_REALTIME_COARSE = 5
"""The clock of files' times in Linux, late by up to about 4 ms: clock_getres(2), linux/time.h."""

PRUNED = ("__pycache__", "node_modules")
"""Folders in which ESG doesn't look for links."""

POLLING = {"auto": None, "poll": True, "inotify": False}
"""The value of --reload-engine for watchfiles; None lets watchfiles decide."""

SHOWN = 3
"""The most names of changed files in one line of the log."""


def check(config: Config) -> None:
    """Raise ConfigError if `--reload` isn't possible with these settings."""
    if not config.reload:
        return
    origin = config.origin("reload")
    if config.app_is_object:
        raise ConfigError(
            f"{origin}: the application was given as an object, so its code can't be loaded again; "
            "give MODULE:ATTRIBUTE"
        )
    if importlib.util.find_spec("watchfiles") is None:
        raise ConfigError(f"{origin}: watchfiles is not installed; try: pip install watchfiles")
    for folder in config.reload_dir:
        if not os.path.isdir(folder):
            raise ConfigError(f"{config.origin('reload_dir')}: there is no folder {folder!r}")


# -- what counts -------------------------------------------------------------------------


class Selection:
    """Which files count, by the rules of uvicorn's --reload-include and --reload-exclude."""

    def __init__(self, config: Config) -> None:
        """Reads the disk, because a pattern may be the name of a folder."""
        include, exclude = config.reload_include, config.reload_exclude
        self.includes = [pattern for pattern in (*INCLUDED, *include) if pattern not in exclude]
        self.excludes = [pattern for pattern in EXCLUDED if pattern not in include]
        self.excludes += [pattern for pattern in exclude if not os.path.isdir(pattern)]
        self.excluded_folders = [Path(p).resolve() for p in exclude if os.path.isdir(p)]
        roots = self._roots(config)
        self.roots = {root: found for root, (found, _) in roots.items()}
        """The folders as given, perhaps links, each with its state at this moment."""
        self.folders = sorted({folder for _, folder in roots.values()})
        """The real paths of the folders."""

    def _roots(self, config: Config) -> dict[Path, tuple[object, Path]]:
        home = Path(config.folder or Path.cwd())  # to notice when a link is switched
        given = {Path(folder) for folder in config.reload_dir}
        given.update(folder for p in config.reload_include for folder in _folders_of(p))
        excluded = {(home / f).resolve() for p in config.reload_exclude for f in _folders_of(p)}
        roots = {f: (_inode(f), f.resolve()) for f in (home / each for each in given)}
        roots = {r: at for r, at in roots.items() if not excluded & {at[1], *at[1].parents}}
        if not roots:
            default = (Path(), Path(config.app_link or config.app_dir))
            roots = {f: (_inode(f), f.resolve()) for f in (home / each for each in default)}
        folders = {folder for _, folder in roots.values()}
        return {r: at for r, at in roots.items() if not folders & set(at[1].parents)}

    def has(self, path: Path) -> bool:
        """Whether a change of `path` counts. A file that is included by its name always counts."""
        matching = [pattern for pattern in self.includes if path.match(pattern)]
        named = any(str(path).endswith(pattern) for pattern in matching)
        return named or (bool(matching) and not self._is_excluded(path))

    def _is_excluded(self, path: Path) -> bool:
        return any(folder in path.parents for folder in self.excluded_folders) or any(
            path.match(pattern) for pattern in self.excludes
        )

    def files_below(self, folder: Path) -> Iterator[Path]:
        """The files that count in a folder, at any depth; links to folders aren't followed."""
        for parent, folders, names in os.walk(folder):
            folders[:] = [f for f in folders if f not in PRUNED and not f.startswith(".")]
            yield from (path for name in names if self.has(path := Path(parent, name)))


def _folders_of(pattern: str) -> list[Path]:
    """The folders for a pattern: the folder of this name, or the folders that match."""
    if pattern == ".*":  # matches files; hidden folders aren't meant
        return []
    if os.path.isdir(pattern):
        return [Path(pattern)]
    try:
        return [found for found in Path().glob(pattern) if found.is_dir()]
    except (ValueError, NotImplementedError, OSError):  # for example an absolute pattern
        return []


class Glances:
    """Files to check regularly: the targets of links, and the settings' files.

    A write to a link's target causes no event for the link, and a watched single file is lost
    when it is replaced.
    """

    def __init__(self, files: Sequence[str]) -> None:
        """`files` are checked in addition to the links."""
        self._files = [Path(file) for file in files]
        self._seen: dict[Path, object] = {}

    def look_for_links(self, selection: Selection) -> None:
        """Find the links in the selection; the known states of files are kept."""
        found = [
            path
            for folder in selection.folders
            for path in selection.files_below(folder)
            if path.is_symlink()
        ]
        self._seen = {p: self._seen.get(p, _identity(p)) for p in (*self._files, *found)}

    def changed(self) -> set[Path]:
        """The files that have changed since the last call."""
        now = {path: _identity(path) for path in self._seen}
        before, self._seen = self._seen, now
        return {path for path, identity in now.items() if identity != before[path]}


def _identity(path: Path) -> object:
    """A value that changes when a file, or a link's target, changes; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


# -- the process -------------------------------------------------------------------------


def run(config: Config, post: mailbox.Mailbox, since: int) -> int:
    """In the child: watch until the arbiter is gone; returns the exit status.

    Files that have changed since the time `since` (see `stamp`) are reported as well.

    Every descriptor except the mailbox and the standard streams is closed, so that none of the
    arbiter's files stays open after the arbiter's end. Signals to the whole process group
    don't end the watcher before the arbiter wants it.
    """
    for signum in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(signum, signal.SIG_IGN)
    _close_all_but({*post.descriptors, *stream_fds()})
    threading.Thread(target=_end_with_arbiter, args=(post.fileno(),), daemon=True).start()
    try:
        Watch(config, post, since).run()
    except Exception as error:  # noqa: BLE001 - the arbiter logs it, and tries again
        post.send(mailbox.CantWatch(f"{type(error).__name__}: {error}"))
    return 1


def _close_all_but(kept: Iterable[int]) -> None:
    first = 3
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _end_with_arbiter(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, 0)  # hang-ups are always reported: poll(2)
    poll.poll()
    os._exit(0)


class Watch:
    """Reports changes, also those that happened while nothing was watched."""

    def __init__(self, config: Config, post: mailbox.Mailbox, since: int) -> None:
        """Changes before the time `since` (see `stamp`) are known already."""
        self._config = config
        self._post = post
        self._since = since
        self._glances = Glances(config.files)
        self._selection = Selection(config)
        self._watching = ""
        # When watchfiles polls, it compares whole seconds, and would miss a second save in one.
        self._polls = config.reload_engine == "poll"

    def run(self) -> None:
        """Never returns. Raises errors that a new watch can't fix, for example OSError."""
        while True:
            roots = self._selection.roots
            self._glances.look_for_links(self._selection)
            self._report_changes()
            while not all(root.is_dir() for root in roots):
                time.sleep(GLANCE / 1000)
            now = stamp()
            replaced = [root for root, was in roots.items() if _inode(root) != was]
            if replaced:
                self._since = now
                self._watching = ""
                self._post.send(mailbox.Changed(shown(replaced)))
                with contextlib.suppress(OSError):
                    os.chdir(self._config.folder or ".")
            self._selection = Selection(self._config)

    def _report_changes(self) -> None:
        """Watch until the set of watched folders changes.

        A replaced folder has no events any more, and the target of a new link has none yet.
        """
        selection = self._selection
        events = _events(selection.folders, self._config.reload_engine)
        with contextlib.closing(events):
            for number, changes in enumerate(events):
                if number and changes is None:
                    return
                now = stamp()
                raw = [Path(path) for _, path in changes or ()]
                paths = {*_relevant(selection, raw), *self._glances.changed()}
                if not number or self._polls:
                    paths |= self._missed(now)
                if not number:
                    self._report_folders()
                self._since = now
                if paths:
                    forget_bytecode(paths)
                    self._post.send(mailbox.Changed(shown(paths)))
                links = [path for path in raw if path.is_symlink()]
                if _differ(selection.roots) or any(link.is_dir() for link in links):
                    return
                if any(selection.has(link) for link in links):
                    self._glances.look_for_links(selection)
                if paths or changes is None:
                    time.sleep(self._config.reload_delay)

    def _missed(self, now: int) -> set[Path]:
        """The files that changed since the last check, but before `now`, the current tick."""
        files = {Path(file) for file in self._config.files}
        files.update(*map(self._selection.files_below, self._selection.folders))
        return {file for file in files if self._since <= _changed_at(file) < now}

    def _report_folders(self) -> None:
        what = ", ".join(map(str, self._selection.folders))
        if what != self._watching:
            self._watching = what
            self._post.send(mailbox.Watching(what))


def _events(
    folders: Sequence[Path], engine: str
) -> Generator[Collection[tuple[object, str]] | None, None, None]:
    """The changes that watchfiles reports, an empty set every 250 ms without any, None if it fails.

    watchfiles fails on a name that isn't UTF-8, and loses the changes that it was about to report.
    """
    from watchfiles import watch  # not in the arbiter: the import takes a tenth of a second

    events = watch(
        *folders,
        watch_filter=None,
        debounce=LONGEST_BURST,
        step=STEP,
        rust_timeout=GLANCE,
        force_polling=POLLING[engine],
        yield_on_timeout=True,
        raise_interrupt=False,
        ignore_permission_denied=True,
    )
    with contextlib.closing(events):
        try:
            yield from events
        except RuntimeError as error:  # watchfiles raises its own subclass of this
            if "Unable to decode path" not in str(error):
                raise
            yield None


def stamp() -> int:
    """The time of a file that is changed now, in nanoseconds."""
    return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)


def _changed_at(path: Path) -> int:
    """The time at which a file, or a link's target, last changed, in nanoseconds; 0 if missing.

    It is `st_ctime`, because programs that copy or unpack files set the other times.
    """
    try:
        return max(path.lstat().st_ctime_ns, path.stat().st_ctime_ns)
    except OSError:
        return 0


def _differ(folders: Mapping[Path, object]) -> bool:
    return any(_inode(folder) != inode for folder, inode in folders.items())


def _inode(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _relevant(selection: Selection, paths: Iterable[Path]) -> Iterator[Path]:
    """The paths that count. For a new folder, these are the files in it, which have no events."""
    for path in paths:
        if selection.has(path):
            yield path
        elif path.is_dir() and path.name not in PRUNED:
            yield from selection.files_below(path)


def forget_bytecode(paths: Iterable[Path]) -> None:
    """Remove the cached bytecode of changed files if Python would still use it.

    Python compares the time in whole seconds, and the size (see PEP 552 for the format). After
    two saves in one second, the code of the first one could run.
    """
    for path in paths:
        with contextlib.suppress(OSError, NotImplementedError, ValueError):
            cached = Path(importlib.util.cache_from_source(os.fspath(path)))
            head, found = cached.read_bytes()[4:16], path.stat()
            times = (0, int(found.st_mtime) & 0xFFFFFFFF, found.st_size & 0xFFFFFFFF)
            if head == b"".join(number.to_bytes(4, "little") for number in times):
                cached.unlink()


def shown(paths: Collection[Path]) -> str:
    """A few names for the log, relative to the current folder if they are in it."""
    try:
        folder = Path.cwd()
    except FileNotFoundError:  # it was deleted, for example with an old release
        return _some(sorted(map(str, paths)))
    return _some(
        sorted(str(p.relative_to(folder) if p.is_relative_to(folder) else p) for p in paths)
    )


def _some(names: Sequence[str]) -> str:
    """The first of these names, and the number of the others."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
