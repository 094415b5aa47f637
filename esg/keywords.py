"""Settings that a Python program gives by keyword: for `esg.run`, and the public `esg.Config`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esg.errors import ConfigError
from esg.settings import schema, secret_variables, sources
from esg.settings.aliases import PLURALS
from esg.settings.build import Raw, build
from esg.settings.kinds import LogDefinition
from esg.settings.objects import Objects, name_of, take_out
from esg.settings.schema import setting_named

FACTORY = "ssl_context_factory"
"""The keyword whose value is a function. It isn't a setting, because only Python can give it."""


class Config(schema.Config):
    """Checked settings for `esg.Server`: the application, and the keywords.

    Files and environment variables aren't read. Raises ConfigError.
    """

    __slots__ = ("objects",)  # so that `vars` has only the settings

    objects: Objects
    """The settings that were given as objects."""

    def __init__(self, app: Any, **settings: Any) -> None:
        raw, objects = read(app, settings)
        variables = sources.from_env_file(raw.get("env_file"), Path())
        variables = {name: text for name, text in variables.items() if name not in os.environ}
        for name in secret_variables.NAMES:
            variables.pop(name, None)
        super().__init__(**vars(build(raw, variables=variables, objects=objects)))
        self.objects = objects


def read(app: Any, settings: Mapping[str, Any]) -> tuple[dict[str, Raw], Objects]:
    """Keywords as a source of settings, and the objects among them.

    Raises ConfigError for a keyword that isn't known, or an object of the wrong kind.
    """
    name = app if isinstance(app, str) else _label(app)
    given = {"app": Raw(name, "argument app")}
    log_objects: list[Any] = []
    for keyword, value in settings.items():
        if keyword == FACTORY:
            continue
        if keyword in REFUSED:
            if value is None:
                continue
            raise ConfigError(f"argument {keyword}: {REFUSED[keyword]}")
        declared = setting_named(PLURALS.get(keyword, keyword), "arguments")
        if declared.name in given:
            raise ConfigError(
                f"{given[declared.name].origin} and {keyword} are the same; give one of them"
            )
        if value is None:
            value = NONE_MEANS.get(declared.name)
        elif declared.name == "log_level" and value is not False and value == logging.NOTSET:
            continue  # in uvicorn, None means the level that is configured elsewhere
        if declared.name == "log_config" and isinstance(value, dict):
            value = take_out(value, log_objects)
        if value is not None:
            given[declared.name] = Raw(_text_of(value), f"argument {keyword}")
    return given, Objects(
        app=None if isinstance(app, str) else app,
        ssl_context_factory=_ssl_context_factory(settings),
        log_config=tuple(log_objects),
    )


def _ssl_context_factory(settings: Mapping[str, Any]) -> Any:
    """The function that the keyword gives, or None. Raises ConfigError if it isn't callable."""
    factory = settings.get(FACTORY)
    if factory is not None and not callable(factory):
        raise ConfigError(
            f"argument {FACTORY}: expected a function of a Config and of a function that "
            f"makes the usual context, not {factory!r}"
        )
    return factory


REFUSED: Mapping[str, str] = {
    "callback_notify": "ESG calls no function of the application's from time to time; "
    "start a task in its lifespan",
}
"""Keywords of uvicorn that aren't options, and why they are refused; None is accepted."""

NONE_MEANS: Mapping[str, object] = {
    "log_config": LogDefinition(None),
    "ws_ping_interval": 0,
    "ws_ping_timeout": 0,
}
"""The values that None means in uvicorn, for keywords for which None isn't the default."""


def _text_of(value: Any) -> Any:
    """Convert paths to text, also those in a list; leave anything else as it is."""
    if isinstance(value, list | tuple):
        return [_text_of(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _label(app: Any) -> str:
    """The name, in process titles and the log, of an application that was given as an object."""
    return name_of(app).replace("<locals>.", "").replace("<lambda>", "app")
