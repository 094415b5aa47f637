"""How a setting is declared: its type, default, help, flags, and whether a reload may change it."""

from __future__ import annotations

import dataclasses
from typing import Any

from esg.settings.kinds import Kind


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One setting's declaration.

    `flags` are the command line's names for it, `environment` those it has in the environment
    beside `ESG_<NAME>`. One that is `pending` is known, and refused until what it sets has been
    built, but for its default and the values that are `built`; `instead` is what a refusal advises.
    The value of one that is `secret` is shown to nobody.
    """

    name: str
    kind: Kind
    default: Any
    group: str
    help: str
    flags: tuple[str, ...]
    environment: tuple[str, ...]
    reloadable: bool
    pending: bool
    many: bool
    built: tuple[Any, ...] = ()
    instead: str = ""
    secret: bool = False

    @property
    def option(self) -> str:
        """The flag that ESG's own texts use."""
        flag = "--" + self.name.replace("_", "-")
        return flag if flag in self.flags else self.flags[-1]

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called in files, and by callers in Python; its own name is the first."""
        flags = [flag[2:].replace("-", "_") for flag in self.flags if flag.startswith("--")]
        return tuple(dict.fromkeys((self.name, *flags)))

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that give this setting, the strongest first."""
        return (*(f"ESG_{name.upper()}" for name in self.names), *self.environment)


def setting(
    default: Any,
    kind: Kind,
    group: str,
    help: str,
    *,
    flags: tuple[str, ...] = (),
    environment: tuple[str, ...] = (),
    reloadable: bool = True,
    pending: bool = False,
    built: tuple[Any, ...] = (),
    instead: str = "",
    secret: bool = False,
) -> Any:
    """Declare a setting as a field of `Config`."""
    spec = {
        "kind": kind,
        "group": group,
        "help": help,
        "flags": flags,
        "environment": environment,
        "reloadable": reloadable,
        "pending": pending,
        "built": built,
        "instead": instead,
        "secret": secret,
    }
    return dataclasses.field(default=default, metadata=spec, repr=not secret)


APPLICATION = "Application"
SOCKETS = "Sockets"
PROCESSES = "Processes"
HTTP = "HTTP"
WEBSOCKET = "WebSocket"
LIMITS = "Limits"
TLS = "TLS"
LOGGING = "Logging"
DEVELOPMENT = "Development"
