"""What a worker has said about where it stands. It is only shown in the log. Pure."""

from __future__ import annotations

from esg import mailbox, stacktext, waits
from esg.settings.schema import Config


class Progress:
    """Of one worker: how far its boot has come."""

    def __init__(self) -> None:
        self._startup_began: float | None = None
        self._startup_place = ""

    def take(self, message: mailbox.InStartup, now: float) -> None:
        """Remember what the worker has said."""
        if self._startup_began is None:
            self._startup_began = now
        self._startup_place = message.place[-stacktext.LONGEST_PLACE :]

    def of_boot(self, config: Config, since_fork: float, stacks: str, now: float) -> str:
        """What the boot is waiting for, in words.

        `config` is the worker's, `since_fork` seconds, `stacks` what its `faulthandler` has just
        written, if anything.
        """
        importing, place = stacktext.where_boot_stands(stacks, config.real_folder)
        if importing and place:
            return waits.importing(since_fork, place)
        if self._startup_began is not None:
            seconds = now - self._startup_began
            return waits.in_startup(
                config.app or "the application", seconds, place or self._startup_place
            )
        return waits.starting(since_fork)
