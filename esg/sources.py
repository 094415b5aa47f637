"""Where settings come from: defaults < file (TOML) < environment < command line, with origins."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from esg.config import SETTINGS, Config, Raw, build, nearest
from esg.errors import ConfigError

DEFAULT_FILE = "esg.toml"
PROJECT_FILE = "pyproject.toml"


def load(
    command_line: Mapping[str, Raw],
    environment: Mapping[str, str],
    *,
    file: str | None = None,
    folder: Path | None = None,
) -> Config:
    """Read every source and make a Config of what they say.

    `file` is the one named on the command line; without it `esg.toml`, then `[tool.esg]` of
    `pyproject.toml`, is looked for in `folder` (the current one by default). Raises ConfigError.
    """
    raw = from_file(file, folder or _current_folder())
    raw |= from_environment(environment)
    raw |= command_line
    return build(raw)


def _current_folder() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(f"the working directory can't be used: {error.strerror}") from None


def from_environment(environment: Mapping[str, str]) -> dict[str, Raw]:
    """The settings that environment variables give; an empty variable counts as unset."""
    found = {}
    for declared in SETTINGS.values():
        for variable in reversed(declared.variables):
            if environment.get(variable):
                found[declared.name] = Raw(environment[variable], f"environment {variable}")
    return found


def from_file(file: str | None, folder: Path) -> dict[str, Raw]:
    """The settings of the configuration file, or none if there is no file."""
    if file is not None:
        return _settings_of(Path(file), required=True)
    return _settings_of(folder / DEFAULT_FILE) or _settings_of(folder / PROJECT_FILE)


def _settings_of(path: Path, required: bool = False) -> dict[str, Raw]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not required:
            return {}
        raise ConfigError(f"--config: there is no file {str(path)!r}") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    where = path.name if not required else str(path)
    if path.name == PROJECT_FILE:
        tools = document.get("tool", {})
        document = tools.get("esg", {}) if isinstance(tools, dict) else {}
        where = f"{where} [tool.esg]"
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: expected a table of settings")
    return {name: _known(where, name, value) for name, value in _flattened(document).items()}


def _flattened(document: Mapping[str, object]) -> dict[str, object]:
    return {name.replace("-", "_"): value for name, value in document.items()}


def _known(where: str, name: str, value: object) -> Raw:
    if name not in SETTINGS:
        raise ConfigError(f"{where}: unknown key {name!r}{nearest(name, dict(SETTINGS))}")
    return Raw(value, f"{where}: {name}")
