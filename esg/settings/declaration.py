"""How a setting is declared: its type, default, help, flags, and whether a reload may change it."""

from __future__ import annotations

import dataclasses
from typing import Any

from esg.frozen import frozen
from esg.settings.kinds import Kind


@frozen
class Setting:
    """One setting's declaration.

    `flags` are its names on the command line. `environment` lists its environment variables other
    than `ESG_<NAME>`. A `pending` setting isn't implemented yet: only its default and the values in
    `built` are accepted, and the error for any other value advises `instead`. The value of a
    `secret` setting is never shown.
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
        """Its names in files and as keywords in Python; the setting's own name comes first."""
        flags = [flag[2:].replace("-", "_") for flag in self.flags if flag.startswith("--")]
        return tuple(dict.fromkeys((self.name, *flags)))

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables for this setting; the first one that is set is used."""
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
