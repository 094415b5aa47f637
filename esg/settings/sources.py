"""Reads settings from their sources, in this order of precedence:

defaults < file (TOML) < variables of `--env-file` < environment < command line.

Each value keeps its origin for messages to the operator.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from esg.errors import ConfigError
from esg.settings import aliases, secret_variables
from esg.settings.aliases import PLURALS
from esg.settings.build import Raw, build
from esg.settings.objects import NO_OBJECTS, Objects
from esg.settings.schema import NAMES, SETTINGS, WHERE, Config, setting_named

DEFAULT_FILE = "esg.toml"
PROJECT_FILE = "pyproject.toml"

ENCODING = "utf-8-sig"
"""The encoding of all files: UTF-8, with or without a byte order mark (Windows adds one)."""

EMPTY = "is empty"

PREFIX = "ESG_"

UVICORNS, GUNICORNS_ARGUMENTS, GUNICORNS = "UVICORN_", "GUNICORN_CMD_ARGS", "gunicorn.conf.py"
"""Settings of uvicorn and gunicorn: a prefix of variables, a variable's name, and a file."""

EVERYWHERE = "0.0.0.0"
"""The host to use with PORT if no source sets one: platforms that set PORT connect from outside."""


def load(
    command_line: Mapping[str, Raw],
    environment: Mapping[str, str],
    *,
    file: str | None = None,
    folder: Path,
    objects: Objects = NO_OBJECTS,
) -> Config:
    """Read every source and make a Config from their settings.

    `file` is the settings file named on the command line. Without it, `esg.toml` and then
    `[tool.esg]` of `pyproject.toml` are looked for in `folder`, the absolute path, as the operator
    sees it, of the folder where ESG was started. The paths of these files, of `--env-file` and of
    `--chdir` are relative to it. `objects` are the objects that belong to the settings. Raises
    ConfigError.
    """
    raw, gaps = _read_files(file, folder)
    has_file = bool(raw) or file is not None
    named = {**raw, **from_environment(environment), **command_line}
    variables = from_env_file(named.get("env_file"), folder)
    if named.get("env_file"):
        gaps[str(folder / str(named["env_file"].value))] = "" if variables else EMPTY
    added = {name: value for name, value in variables.items() if name not in environment}
    for stronger in (
        from_environment(added, "env file"),
        from_environment(environment),
        command_line,
    ):
        raw = _merged(raw, stronger)
    port = raw.get("port")
    if port is not None and _is_generic(port) and "host" not in raw:
        raw["host"] = Raw(EVERYWHERE, port.origin)
    strays = [*strays_in(environment), *strays_in(added, "env file"), *foreign_in(environment)]
    if not has_file:
        strays += _foreign_file(folder)
    files = _files(file, named.get("env_file"))
    paths = tuple(str(folder / name) for name in files)
    config = build(
        raw,
        variables={
            name: text for name, text in added.items() if name not in secret_variables.NAMES
        },
        strays=tuple(strays),
        files=paths,
        gaps=gaps,
        start=str(folder),
        objects=objects,
    )
    return _reloading(config) if config.debug and "reload" not in raw else config


def _reloading(config: Config) -> Config:
    """Turn `--reload` on if it is possible; for `--debug` without an explicit `--reload`."""
    origin = config.origin("debug")
    if config.app_is_object:
        return config  # an object's code can't be loaded again
    if importlib.util.find_spec("watchfiles") is None:
        stray = (
            f"{origin}: changed files aren't noticed, because watchfiles is not installed; "
            "try: pip install watchfiles (or --no-reload)"
        )
        return dataclasses.replace(config, strays=(*config.strays, stray))
    origins = {**config.origins, "reload": origin}
    return dataclasses.replace(config, reload=True, origins=origins)


def _files(file: str | None, env_file: Raw | None) -> list[str]:
    """The files to read settings from, whether they exist or not."""
    files = [file] if file is not None else [DEFAULT_FILE, PROJECT_FILE]
    named = env_file is not None and isinstance(env_file.value, str) and env_file.value
    return [*files, named] if named else files


def _merged(weak: Mapping[str, Raw], strong: Mapping[str, Raw]) -> dict[str, Raw]:
    """The settings of two sources, with precedence for `strong`.

    If `strong` has a setting that says where to listen, those of `weak` are dropped. But host and
    port may come from different sources, and PORT is dropped if `weak` has one of `WHERE`.
    """
    kept = dict(weak)
    if any(name in strong for name in WHERE):
        for name in ("host", "port", *WHERE):
            kept.pop(name, None)
    elif _is_generic(strong.get("port")) and any(
        name in kept and kept[name].value for name in WHERE
    ):
        strong = {name: given for name, given in strong.items() if name != "port"}
    if "host" in strong or "port" in strong:
        for name in WHERE:
            kept.pop(name, None)
    return kept | dict(strong)


def _is_generic(port: Raw | None) -> bool:
    """Whether a port comes from PORT, which platforms set for every program."""
    return port is not None and port.origin.endswith(" PORT")


def from_env_file(given: Raw | None, folder: Path) -> dict[str, str]:
    """The variables of the file that `--env-file` names. Raises ConfigError."""
    if given is None or not given.value or not isinstance(given.value, str) or "\0" in given.value:
        return {}  # `build` refuses a value that can't be a path
    try:
        dotenv = importlib.import_module("dotenv")
    except ImportError:
        raise ConfigError(
            f"{given.origin}: python-dotenv is not installed; try: pip install python-dotenv"
        ) from None
    path = folder / given.value
    try:
        with path.open(encoding=ENCODING) as stream:
            found = dotenv.dotenv_values(stream=stream)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{given.origin}: {given.value!r} can't be read: {reason}") from None
    return {name: value for name, value in found.items() if value is not None}


def from_environment(environment: Mapping[str, str], where: str = "environment") -> dict[str, Raw]:
    """The settings in environment variables; an empty variable counts as unset."""
    found = {}
    for declared in SETTINGS.values():
        for variable in reversed(declared.variables):
            if environment.get(variable):
                found[declared.name] = Raw(environment[variable], f"{where} {variable}")
    if _is_generic(found.get("port")) and any(name in found for name in WHERE):
        del found["port"]
    return found


def strays_in(environment: Mapping[str, str], where: str = "environment") -> Iterator[str]:
    """A warning if there are variables with ESG's prefix that aren't settings.

    It isn't an error, because other programs may set such variables.
    """
    known = {variable for declared in SETTINGS.values() for variable in declared.variables}
    strays = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    if strays:
        names = ", ".join(name + _meant(name) for name in strays)
        yield f"{where}: no setting is called {names}"


def foreign_in(environment: Mapping[str, str]) -> Iterator[str]:
    """Warnings about variables that only uvicorn or gunicorn would read."""
    found = {}
    for variable in sorted(environment):
        name = variable.removeprefix(UVICORNS).lower()
        name = PLURALS.get(name, name)
        if variable.startswith(UVICORNS) and name in NAMES and environment[variable]:
            found[variable] = f"{PREFIX}{NAMES[name].upper()}"
    if found:
        yield f"environment: {', '.join(found)} not read; use {', '.join(found.values())}"
    if environment.get(GUNICORNS_ARGUMENTS):
        yield f"environment: {GUNICORNS_ARGUMENTS} not read; put it on the command line"


def _foreign_file(folder: Path) -> Iterator[str]:
    """A warning if there is a file that gunicorn would read."""
    if (folder / GUNICORNS).is_file():
        yield f"not read: {_translation(folder / GUNICORNS, GUNICORNS)}"


def _meant(variable: str) -> str:
    """A hint with the closest variable of ESG, for a misspelt one. The prefix isn't compared."""
    close = difflib.get_close_matches(variable.removeprefix(PREFIX).lower(), list(NAMES), 1)
    return f" (did you mean {PREFIX}{close[0].upper()}?)" if close else ""


def from_file(file: str | None, folder: Path) -> dict[str, Raw]:
    """The settings of the configuration file, or none if there is no file."""
    return _read_files(file, folder)[0]


def _read_files(file: str | None, folder: Path) -> tuple[dict[str, Raw], dict[str, str]]:
    """The settings of the file, and `Config.gaps` for each file that was looked for."""
    if file is not None:
        path = folder / file
        found = _settings_of(path, shown=file)
        return found, {str(path): _gap(path, found)}
    gaps = {}
    for path in (folder / DEFAULT_FILE, folder / PROJECT_FILE):
        try:
            found = _settings_of(path)
        except FileNotFoundError:
            if path.is_symlink():
                raise ConfigError(f"{path.name}: is a symbolic link to a missing file") from None
            gaps[str(path)] = "is missing"
        else:
            return found, gaps | {str(path): _gap(path, found)}
    return {}, gaps


def _gap(path: Path, found: Mapping[str, Raw]) -> str:
    """Why a file has no settings, or "" if it has some."""
    if found:
        return ""
    return "has no settings in [tool.esg]" if path.name == PROJECT_FILE else EMPTY


def _settings_of(path: Path, shown: str = "") -> dict[str, Raw]:
    """The settings of one file. `shown` is its name in messages if the operator named the file.

    Raises FileNotFoundError if the operator didn't name the file and it doesn't exist; otherwise
    ConfigError.
    """
    if shown.startswith("python:") or path.suffix == ".py":
        raise ConfigError(f"--config: {_translation(path, shown)}")
    where = shown or path.name
    try:
        document = tomllib.loads(path.read_text(encoding=ENCODING))
    except FileNotFoundError:
        if not shown:
            raise
        raise ConfigError(f"--config: there is no file {shown!r}") from None
    except OSError as error:
        raise ConfigError(f"{where}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: not valid TOML: it is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where}: its values are nested too deeply") from None
    except ValueError:  # from int(): see sys.get_int_max_str_digits
        raise ConfigError(f"{where}: a number in it has too many digits") from None
    if path.name == PROJECT_FILE:
        tools = document.get("tool", {})
        document = tools.get("esg", {}) if isinstance(tools, dict) else {}
        where = f"{where} [tool.esg]"
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: expected a table of settings")
    return _known(where, document)


def _known(where: str, document: Mapping[str, object]) -> dict[str, Raw]:
    found: dict[str, Raw] = {}
    for key, value in document.items():
        if isinstance(value, dict) and key.replace("-", "_") not in NAMES:
            raise ConfigError(
                f"{where}: unknown key {key!r}: no setting is a table; {_flat(key, where)}"
            )
        name = setting_named(key, where).name
        if name in found:
            raise ConfigError(f"{where}: {found[name].origin.split()[-1]} and {key} are the same")
        found[name] = Raw(value, f"{where}: {key}", typed=True)
    return found


def _flat(key: str, where: str) -> str:
    """Advice on where to put the keys of a table."""
    if where.endswith("]"):
        return f"put its keys into {where.split()[-1]} itself"
    return f"put its keys at the top of the file, without [{key}]"


def _translation(path: Path, shown: str) -> str:
    """Advice on what to write in place of gunicorn's Python file, from the names that it sets."""
    text = f"{shown!r} is Python, and settings are TOML here; write esg.toml"
    try:
        names = aliases.assigned_names(path.read_text(encoding=ENCODING))
    except (OSError, UnicodeDecodeError):
        return text
    same = {name: aliases.RENAMED.get(name, name) for name in names}
    known = [
        f"{name} as {key}" if name != key else key for name, key in same.items() if key in NAMES
    ]
    unknown = [name for name, key in same.items() if key not in NAMES]
    text += f" with {', '.join(known)}" if known else ""
    return text + (f" (ESG has no setting called {', '.join(unknown)})" if unknown else "")
