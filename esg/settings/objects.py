"""The objects that a Python program gives in place of settings. A Config only says that they exist.

Settings come from text and can be written down, compared and pickled. An application, a function or
an open file can't, so these objects are kept here, next to the Config that they belong to.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any

from esg.frozen import frozen

DATA = (
    *(str, bytes, int, float, bool, type(None)),
    *(datetime.datetime, datetime.date, datetime.time),
)
"""Types of values that are data, besides dictionaries, lists and tuples: TOML's and a few more."""


@frozen
class Objects:
    """The objects that belong to the settings of a generation but aren't data.

    A Python program gives the first three; they are the same in every generation.
    """

    app: Any = None
    """The application, or its factory; None if it is imported by its name."""
    ssl_context_factory: Callable[..., Any] | None = None
    """A function that makes the SSL context. Its arguments are the Config, and a function that
    makes the context that the TLS settings describe."""
    log_config: tuple[Any, ...] = ()
    """The objects in a dictionary given as `log_config`; see `take_out`."""
    ssl_context: Any = None
    """The context that `esg.server.prepare` made for this generation; None for plain HTTP."""


NO_OBJECTS = Objects()


@frozen
class StandIn:
    """Takes the place of an object that was taken out of a dictionary."""

    number: int
    name: str
    """The object's own name or its type's, to compare and show."""


def take_out(value: Any, objects: list[Any]) -> Any:
    """A copy of nested dictionaries, lists and tuples in which StandIns replace all objects.

    Every value that isn't data counts as an object. Each object is appended to `objects`.
    """
    if isinstance(value, dict):
        return {take_out(key, objects): take_out(item, objects) for key, item in value.items()}
    if isinstance(value, list):
        return [take_out(item, objects) for item in value]
    if type(value) is tuple:
        return tuple(take_out(item, objects) for item in value)
    if type(value) in DATA or isinstance(value, StandIn):
        return value
    objects.append(value)
    return StandIn(len(objects) - 1, name_of(value))


def put_back(value: Any, objects: Sequence[Any]) -> Any:
    """The opposite of `take_out`: a copy in which objects replace their StandIns."""
    if isinstance(value, dict):
        return {put_back(key, objects): put_back(item, objects) for key, item in value.items()}
    if isinstance(value, list):
        return [put_back(item, objects) for item in value]
    if type(value) is tuple:
        return tuple(put_back(item, objects) for item in value)
    return objects[value.number] if isinstance(value, StandIn) else value


def name_of(thing: Any) -> str:
    """`MODULE:NAME` of a class or function, or of the class of any other object."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}:{named.__qualname__}"
