"""Turns the values of all sources into a checked Config, and checks what a reload may change.

`build` checks each value, adds the settings that others imply, and refuses combinations that
contradict each other. `check_reload` compares two Configs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from esg.errors import ConfigError
from esg.frozen import frozen
from esg.settings import aliases
from esg.settings.declaration import Setting
from esg.settings.kinds import (
    CALL,
    INTERFACE_PREFIXES,
    LOG_LEVELS,
    BadItemError,
    check_type,
    without_interface,
)
from esg.settings.objects import NO_OBJECTS, Objects
from esg.settings.schema import SETTINGS, WHERE, Config

ASK_FOR_ACCESS_LOG = {"access_log", "access_logfile"}
"""Settings that turn the access log on or off. Without them `log_level` decides."""


@frozen
class Raw:
    """An unchecked value, and its origin (`--port`, `ESG_PORT`, a file's key).

    `typed` is true if the source has types (a file), so that a value of the wrong type is an error.
    """

    value: object
    origin: str
    typed: bool = False


def build(
    raw: Mapping[str, Raw],
    *,
    variables: Mapping[str, str] | None = None,
    strays: tuple[str, ...] = (),
    files: tuple[str, ...] = (),
    gaps: Mapping[str, str] | None = None,
    start: str = "",
    objects: Objects = NO_OBJECTS,
) -> Config:
    """Check every value and make a Config from them; missing settings have their defaults.

    `start` is the absolute path that `chdir` is relative to. `objects` are the objects that belong
    to the settings. The other arguments are attributes of the Config. Raises ConfigError for the
    first value that can't be used.
    """
    app_is_object = objects.app is not None
    # The name of an object is only a label.
    to_check = {n: given for n, given in raw.items() if not (app_is_object and n == "app")}
    values = {name: _checked(SETTINGS[name], given) for name, given in to_check.items()}
    origins = {name: given.origin for name, given in raw.items()}
    for name, given in list(_implied(values, origins)):
        values[name] = _checked(SETTINGS[name], given)
        origins[name] = given.origin
    if app_is_object:
        values["app"] = raw["app"].value
    config = Config(
        **values,
        origins=origins,
        variables=variables or {},
        strays=strays,
        files=files,
        gaps=gaps or {},
        folder=os.path.join(start, values["chdir"]) if values.get("chdir") else start,
        app_is_object=app_is_object,
        has_ssl_context_factory=objects.ssl_context_factory is not None,
    )
    _check_together(config)
    return config


def _implied(values: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[tuple[str, Raw]]:
    """Settings that other settings imply.

    An explicit value takes precedence, or is an error if it conflicts.
    """
    if values.get("wsgi"):
        if values.get("interface", "auto") not in ("auto", "wsgi"):
            raise ConfigError(
                f"{origins['wsgi']} and {origins['interface']} {values['interface']} "
                "say different things; use one"
            )
        yield "interface", Raw("wsgi", origins["wsgi"])
    if "app" in values:
        yield from _implied_by_name(values, origins)
    for name, value in aliases.WORKER_CLASSES.get(values.get("worker_class", ""), {}).items():
        if name not in values:
            yield name, Raw(value, f"{origins['worker_class']} {values['worker_class']}")
    level = values.get("log_level", "info")
    if LOG_LEVELS[level] > LOG_LEVELS["info"] and not ASK_FOR_ACCESS_LOG & values.keys():
        yield "access_log", Raw(False, f"{origins['log_level']} {level}")


def _implied_by_name(
    values: Mapping[str, Any], origins: Mapping[str, str]
) -> Iterator[tuple[str, Raw]]:
    """What the application's name implies: `wsgi:` in front of it, or `()` at its end."""
    origin = f"{origins['app']} {values['app']}"
    interface, app = without_interface(values["app"])
    meant: dict[str, object] = {}
    if interface:
        meant["interface"] = INTERFACE_PREFIXES[interface]
    if app.endswith(CALL):
        meant["factory"] = True
    for name, value in meant.items():
        other = "wsgi" if name == "interface" and values.get("wsgi") else name
        said = "wsgi" if other == "wsgi" else values.get(name, value)
        if said not in ("auto", value):
            raise ConfigError(
                f"{origins['app']} {values['app']!r} and {origins[other]} say different things; "
                "use one"
            )
        yield name, Raw(value, origin)
    if meant:
        yield "app", Raw(app.removesuffix(CALL), origins["app"])


def _checked(declared: Setting, given: Raw) -> Any:
    try:
        if given.typed:
            check_type(declared.kind, given.value)
        value = declared.kind.parse(given.value)
    except BadItemError as error:
        raise ConfigError(_complaint(declared, given.origin, error.item, error)) from None
    except ValueError as error:
        raise ConfigError(_complaint(declared, given.origin, given.value, error)) from None
    if declared.pending and value != declared.default and value not in declared.built:
        advice = declared.instead or "leave it out"
        raise ConfigError(f"{given.origin}: this version of ESG can't do that yet; {advice}")
    return value


def _complaint(declared: Setting, origin: str, value: object, error: ValueError) -> str:
    """The text of an error about a value; a secret value isn't repeated in it."""
    shown = "" if declared.secret else f" {value!r}"
    return f"{origin}: invalid value{shown}: {error}"


def _check_together(config: Config) -> None:
    if not config.app:
        raise ConfigError("no application given; expected MODULE:ATTRIBUTE, as in: esg example:app")
    said = [*config.listen_settings]
    if "bind" in config.listen_settings:
        said += [name for name in ("host", "port") if name in config.origins]
    if len(said) > 1:
        raise ConfigError(
            f"{config.origin(said[0])} and {config.origin(said[1])} both say where to listen; "
            "use one, or several --bind"
        )
    if config.control_socket and config.control_socket_disable:
        raise ConfigError(
            f"{config.origin('control_socket_disable')} and {config.origin('control_socket')} "
            "say different things; use one"
        )
    if config.interface == "wsgi" and config.lifespan == "on":
        raise ConfigError(
            f"{config.origin('lifespan')}: a WSGI application has no lifespan "
            f"({config.origin('interface')}); leave it out"
        )
    if 0 < config.max_memory_hard <= config.max_memory:
        raise ConfigError(
            f"{config.origin('max_memory_hard')}: {config.max_memory_hard} bytes must be more than "
            f"{config.max_memory} ({config.origin('max_memory')}), or a worker is killed first"
        )
    if config.root_path and not config.root_path.startswith("/"):
        raise ConfigError(f"{config.origin('root_path')}: {config.root_path!r} must begin with '/'")
    if config.log_config and not config.leaves_logging:
        _check_log_config(config)


def _check_log_config(config: Config) -> None:
    """Refuse settings that `--log-config` replaces."""
    for name in ("access_logfile", "error_logfile", "log_format"):
        if getattr(config, name) != SETTINGS[name].default:
            what = "the file of " if isinstance(config.log_config, str) else ""
            raise ConfigError(
                f"{config.origin(name)}: {what}{config.origin('log_config')} decides "
                "this; set it there, or leave one of the two out"
            )


def check_reload(old: Config, new: Config) -> None:
    """Raise ConfigError if `new` changes a setting that only a restart can change.

    Also raise it if a file that `old` was made from is missing or empty. The file may be in the
    middle of being replaced, and a service must not fall back to the defaults because of that.
    """
    for path, gap in new.gaps.items():
        if gap and old.gaps.get(path) == "":
            raise ConfigError(
                f"{path} {gap}, and the settings that are in use came from it; put it back, or "
                "restart to do without it"
            )
    if _says_address(old) and not _says_address(new):
        raise ConfigError(
            f"no setting says where to listen any more, as {old.binds_origin} did; a reload "
            "doesn't fall back to the default address: set the address again, or restart"
        )
    for declared in SETTINGS.values():
        before, after = getattr(old, declared.name), getattr(new, declared.name)
        if not declared.reloadable and before != after:
            raise ConfigError(
                f"{new.origin(declared.name)}: {declared.name} changed from {before!r} to "
                f"{after!r}, which a reload can't do; restart to change it"
            )


def _says_address(config: Config) -> bool:
    """Whether any source says where to listen; PORT counts as well."""
    return any(name in config.origins for name in ("host", "port", *WHERE))
