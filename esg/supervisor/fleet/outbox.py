"""The actions that an event leads to, in order."""

from __future__ import annotations

from esg.supervisor.fleet import actions as do
from esg.supervisor.fleet.actions import Action
from esg.supervisor.fleet.members import Member, Members


class Outbox(list[Action]):
    """The actions that the fleet has decided on since the last event."""

    __slots__ = ()

    def log(
        self, level: do.Level, event: str, member: Member | None = None, detail: str = ""
    ) -> None:
        """Add a line of the log: about a worker, or about the whole service."""
        self.append(do.Log(level, event, member.number if member else None, detail))

    def show_failure(self, members: Members, reason: str, detail: str = "") -> None:
        """Make the workers that have a debug page show why a reload failed."""
        shown = [m.number for m in members.values() if m.generation.terms.debug]
        if shown:
            self.append(do.ShowFailure(tuple(shown), reason, detail))
