"""The watcher, a child of the arbiter with `--reload`: tells it which files have changed.

It is a process of its own because watchfiles runs a thread, and a process that forks must have
none. What counts as a change is uvicorn's rule, so that its options mean the same here.
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
"""Patterns that hold without being given, as uvicorn has them; giving one on the other side lifts
it."""

STEP = 15
"""Milliseconds without another change after which a burst counts as over."""

LONGEST_BURST = 200
"""Milliseconds after which a burst is told of though it goes on."""

GLANCE = 250
"""Milliseconds between two looks at what the kernel doesn't tell of: links, and single files."""

CLOCK_REALTIME_COARSE = 5
"""The clock by which Linux stamps files, 4 ms slow or so: clock_getres(2), linux/time.h."""

PRUNED = ("__pycache__", "node_modules")
"""Folders in which nobody looks for links."""

POLLING = {"auto": None, "poll": True, "inotify": False}
"""What --reload-engine is to watchfiles; None goes by its own variables and what it finds."""

SHOWN = 3
"""Names of changed files in one line of the log."""


def check(config: Config) -> None:
    """Raise ConfigError if `--reload` can't be done as the settings say."""
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
        """Looks at the disk, since a pattern may be the name of a folder."""
        include, exclude = config.reload_include, config.reload_exclude
        self.includes = [pattern for pattern in (*INCLUDED, *include) if pattern not in exclude]
        self.excludes = [pattern for pattern in EXCLUDED if pattern not in include]
        self.excludes += [pattern for pattern in exclude if not os.path.isdir(pattern)]
        self.excluded_folders = [Path(p).resolve() for p in exclude if os.path.isdir(p)]
        roots = self._roots(config)
        self.roots = {root: found for root, (found, _) in roots.items()}
        """The folders as they were given, links among them, and what each was at this moment."""
        self.folders = sorted({folder for _, folder in roots.values()})
        """Where they are."""

    def _roots(self, config: Config) -> dict[Path, tuple[object, Path]]:
        home = Path(config.folder or Path.cwd())  # so that a link is seen to be switched
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
        """Whether a change of `path` counts. One that is included by its name always does."""
        matching = [pattern for pattern in self.includes if path.match(pattern)]
        named = any(str(path).endswith(pattern) for pattern in matching)
        return named or (bool(matching) and not self._is_excluded(path))

    def _is_excluded(self, path: Path) -> bool:
        return any(folder in path.parents for folder in self.excluded_folders) or any(
            path.match(pattern) for pattern in self.excludes
        )

    def files_below(self, folder: Path) -> Iterator[Path]:
        """The files in a folder, at any depth, that count; links to folders aren't followed."""
        for parent, folders, names in os.walk(folder):
            folders[:] = [f for f in folders if f not in PRUNED and not f.startswith(".")]
            yield from (path for name in names if self.has(path := Path(parent, name)))


def _folders_of(pattern: str) -> list[Path]:
    """The folders that a pattern stands for: the one of this name, or those that match."""
    if pattern == ".*":  # is about files; hidden folders aren't meant
        return []
    if os.path.isdir(pattern):
        return [Path(pattern)]
    try:
        return [found for found in Path().glob(pattern) if found.is_dir()]
    except (ValueError, NotImplementedError, OSError):  # an absolute one, say
        return []


class Glances:
    """Files to look at now and then: those that links lead to, and what settings were read from.

    A link shows no event when what it leads to is written; and a single file can't be watched
    beyond being replaced by another.
    """

    def __init__(self, files: Sequence[str]) -> None:
        """`files` are looked at beside the links."""
        self._files = [Path(file) for file in files]
        self._seen: dict[Path, object] = {}

    def look_for_links(self, selection: Selection) -> None:
        """Find the links among what is selected; what is known of files stays known."""
        found = [
            path
            for folder in selection.folders
            for path in selection.files_below(folder)
            if path.is_symlink()
        ]
        self._seen = {p: self._seen.get(p, _identity(p)) for p in (*self._files, *found)}

    def changed(self) -> set[Path]:
        """Those that are not what they were at the last call."""
        now = {path: _identity(path) for path in self._seen}
        before, self._seen = self._seen, now
        return {path for path, identity in now.items() if identity != before[path]}


def _identity(path: Path) -> object:
    """What tells a file, behind a link or not, from what it was; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


# -- the process -------------------------------------------------------------------------


def run(config: Config, post: mailbox.Mailbox, since: int) -> int:
    """In the child: watch until the arbiter is gone; returns the exit status.

    Files that have changed since the time `since`, as `stamp` gives it, are told of as well.

    Every descriptor but the mailbox and the standard streams is closed, so that nothing the
    arbiter has open outlives it here. Signals that are sent to a whole group of processes have it
    end no sooner than the arbiter wants.
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
    poll.register(fd, 0)  # hang-ups are always told of: poll(2)
    poll.poll()
    os._exit(0)


class Watch:
    """Tells of changes, also of those that came while nothing was watched."""

    def __init__(self, config: Config, post: mailbox.Mailbox, since: int) -> None:
        """What changed before the time `since`, as `stamp` gives it, is known."""
        self._config = config
        self._post = post
        self._since = since
        self._glances = Glances(config.files)
        self._selection = Selection(config)
        self._watching = ""
        # watchfiles compares times in whole seconds then, and wouldn't see a second save in one.
        self._polls = config.reload_engine == "poll"

    def run(self) -> None:
        """Never returns. Raises what can't be mended by watching anew, OSError for one."""
        while True:
            roots = self._selection.roots
            self._glances.look_for_links(self._selection)
            self._tell_of_changes()
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

    def _tell_of_changes(self) -> None:
        """Watch for as long as there is nothing else to watch.

        A folder that was replaced has no events any more, and one behind a new link has none yet.
        """
        selection = self._selection
        events = _events(selection.folders, self._config.reload_engine)
        with contextlib.closing(events):
            for number, changes in enumerate(events):
                if number and changes is None:
                    return
                now = stamp()
                raw = [Path(path) for _, path in changes or ()]
                paths = {*_counting(selection, raw), *self._glances.changed()}
                if not number or self._polls:
                    paths |= self._missed(now)
                if not number:
                    self._say_what_is_watched()
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
        """The files that changed between the last look and `now`: those of this tick are next."""
        files = {Path(file) for file in self._config.files}
        files.update(*map(self._selection.files_below, self._selection.folders))
        return {file for file in files if self._since <= _changed_at(file) < now}

    def _say_what_is_watched(self) -> None:
        what = ", ".join(map(str, self._selection.folders))
        if what != self._watching:
            self._watching = what
            self._post.send(mailbox.Watching(what))


def _events(
    folders: Sequence[Path], engine: str
) -> Generator[Collection[tuple[object, str]] | None, None, None]:
    """The changes that watchfiles tells of, nothing four times a second; at its end None.

    It fails at a name that isn't UTF-8, and what it was about to tell is lost.
    """
    from watchfiles import watch  # not in the arbiter: it takes a tenth of a second

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
        except RuntimeError as error:  # a subclass of it, which watchfiles has for itself
            if "Unable to decode path" not in str(error):
                raise
            yield None


def stamp() -> int:
    """The time that a file would have which is changed now; nanoseconds."""
    return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)


def _changed_at(path: Path) -> int:
    """When a file, or what it links to, was changed last; nanoseconds, 0 if it isn't there.

    By `st_ctime`, since the other times are what programs that copy and unpack make of them.
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


def _counting(selection: Selection, paths: Iterable[Path]) -> Iterator[Path]:
    """The paths that count. A folder that came counts by what is in it, which has no events."""
    for path in paths:
        if selection.has(path):
            yield path
        elif path.is_dir() and path.name not in PRUNED:
            yield from selection.files_below(path)


def forget_bytecode(paths: Iterable[Path]) -> None:
    """Remove cached bytecode that would be taken for that of a file which has changed.

    Python compares the time in whole seconds, and the size (PEP 552 tells of the format): who
    saves twice in a second could get the code of the first time.
    """
    for path in paths:
        with contextlib.suppress(OSError, NotImplementedError, ValueError):
            cached = Path(importlib.util.cache_from_source(os.fspath(path)))
            head, found = cached.read_bytes()[4:16], path.stat()
            times = (0, int(found.st_mtime) & 0xFFFFFFFF, found.st_size & 0xFFFFFFFF)
            if head == b"".join(number.to_bytes(4, "little") for number in times):
                cached.unlink()


def shown(paths: Collection[Path]) -> str:
    """A few of the names for the log, from the current folder where they are in it."""
    try:
        folder = Path.cwd()
    except FileNotFoundError:  # it was deleted, as a release that nobody serves any more
        return _some(sorted(map(str, paths)))
    return _some(
        sorted(str(p.relative_to(folder) if p.is_relative_to(folder) else p) for p in paths)
    )


def _some(names: Sequence[str]) -> str:
    """The first of these names, and how many there are beyond."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
