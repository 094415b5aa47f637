"""The generations by number: the settings of each, and its open sockets and log files.

The fleet decides when a generation is prepared, adopted and retired; this module does it.
Everything else in the arbiter refers to a generation by its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esg.log.files import LogFiles
from esg.log.records import Subject
from esg.log.setup import LogSetup
from esg.net.listeners import Handed, Listener
from esg.payload import Settings
from esg.settings import folders
from esg.settings.objects import Objects
from esg.settings.schema import Config
from esg.supervisor.fleet.terms import Terms
from esg.supervisor.sockets import Sockets


@dataclass(slots=True, eq=False)
class Generation:
    """What one load of the settings produced."""

    number: int
    config: Config
    terms: Terms
    objects: Objects
    logs: LogSetup | None = None
    """Its log set-up, with open files; None until it is prepared."""
    listeners: Sequence[Listener] = ()
    """Its listeners; empty until it is prepared."""


class Generations:
    """The generations that may still get new workers."""

    def __init__(self, settings: Settings, sockets: Sockets, files: LogFiles) -> None:
        """`settings` are those of generation 1, which is the current one."""
        self._sockets = sockets
        self.files = files
        self._by_number: dict[int, Generation] = {}
        self._newest_prepared = 0
        self.current = self.add(settings)
        """The generation that serves; the arbiter logs and watches files by its settings."""

    def __getitem__(self, number: int) -> Generation:
        return self._by_number[number]

    def add(self, settings: Settings) -> Generation:
        """A generation with these settings. Nothing is opened for it yet.

        Numbers grow. If a generation was retired without having been prepared, its number may be
        used again, because no worker and no line in the log has it. A number may also be skipped:
        while a reload is queued, a newer one can't have its number.
        """
        number = max(self._newest_prepared, *self._by_number, 0) + 1
        config = settings.config
        generation = Generation(number, config, Terms.of(config), settings.objects)
        self._by_number[number] = generation
        return generation

    def open_log(self) -> LogSetup:
        """Open the log files of the first generation. Raises LogFileError or ConfigError."""
        self.current.logs = self._open_log(self.current)
        return self.current.logs

    def listen(self, handed: Sequence[Handed]) -> list[str]:
        """Open the sockets of the first generation.

        Returns and raises the same as `Sockets.begin`.
        """
        number = self.current.number
        unused = self._sockets.begin(number, self.current.config, handed)
        self.current.listeners = self._sockets.of(number)
        self._newest_prepared = number
        return unused

    def prepare(self, number: int, subject: Subject) -> None:
        """Open the sockets and log files of a generation, before its first worker.

        Raises ListenError, LogFileError or ConfigError; then the generation is to be retired.
        `subject` is the arbiter, which tries the generation's log set-up.
        """
        generation = self[number]
        with folders.kept():  # relative paths are relative to the generation's folder
            folders.enter_serving(generation.config)
            generation.logs = self._open_log(generation)
            if self.current.logs is not None:
                generation.logs.check(subject, self.current.logs)
            generation.listeners = self._sockets.open(number, generation.config)
        self._newest_prepared = max(self._newest_prepared, number)

    def _open_log(self, generation: Generation) -> LogSetup:
        return LogSetup.open(generation.config, self.files, generation.objects)

    def adopt(self, number: int) -> Generation:
        """Make a generation the current one; returns the previous one."""
        before, self.current = self.current, self[number]
        return before

    def retire(self, number: int) -> None:
        """Forget a generation, and close the sockets and log files that no other generation has."""
        del self._by_number[number]
        self._sockets.retire(number)
        setups = [g.logs for g in self._by_number.values() if g.logs is not None]
        self.files.keep(file for setup in setups for file in (setup.access, setup.error))
