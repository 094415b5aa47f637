"""`--log-config`: a file configures logging, in the forms of Python's `logging.config`.

The loggers are `esg` and `esg.access`. If a file was written for uvicorn and names uvicorn's
loggers, its settings apply to ESG's. https://docs.python.org/3/library/logging.config.html
"""

from __future__ import annotations

import configparser
import contextlib
import copy
import importlib.util
import json
import logging
import logging.config
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from esg.errors import ConfigError
from esg.frozen import frozen

Definition = dict[str, Any] | str
"""The content of a file: the dictionary in it, or its text if it is in .ini form."""

_UVICORN = "uvicorn.logging."
_THEIRS = {"uvicorn", "uvicorn.error", "uvicorn.access"}


def read(path: str, origin: str) -> Definition:
    """Read a .json, .yaml or .yml file. Any other is JSON if it begins with a brace, else .ini.

    `origin` names the setting that the path came from. Raises ConfigError.
    """
    where = f"{origin}: {path}"
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # without a byte order mark
    except OSError as error:
        raise ConfigError(f"{where}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: is not text in UTF-8") from None
    parse = _PARSERS.get(Path(path).suffix.lower())
    if parse is None and text.lstrip().startswith("{"):
        parse = json.loads  # a file in .ini form can't begin with a brace
    try:
        return _ini(text, path) if parse is None else _dictionary(parse, text)
    except ImportError:
        raise ConfigError(f"{where}: YAML needs PyYAML; try: pip install pyyaml") from None
    except (ValueError, configparser.Error) as error:
        raise ConfigError(f"{where}: {_line(error)}") from None
    except RecursionError:
        raise ConfigError(f"{where}: its values are nested too deeply") from None


def _yaml(text: str) -> object:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from None


_PARSERS: dict[str, Callable[[str], object]] = {
    ".json": json.loads,
    ".yaml": _yaml,
    ".yml": _yaml,
}


def _dictionary(parse: Callable[[str], object], text: str) -> dict[str, Any]:
    document = parse(text)
    if not isinstance(document, dict):
        raise ValueError("expected a dictionary, as for logging.config.dictConfig")
    return document


def _ini(text: str, path: str) -> str:
    parser = _parser(text, path)
    missing = {"loggers", "handlers", "formatters"} - set(parser.sections())
    if missing:
        raise ValueError(f"expected a section [{min(missing)}], as for logging.config.fileConfig")
    folder = os.path.dirname(os.path.abspath(path)).replace("%", "%%")
    return f"[DEFAULT]\nhere={folder}\n{text}" if "[DEFAULT]" not in text else text


def _parser(text: str, path: str = "") -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read_string(text, path)
    return parser


def apply(
    definition: Definition,
    where: str,
    application: Application | None = None,
    *,
    colors: bool | None = None,
) -> None:
    """Configure logging by `definition`. Raises ConfigError, whose text begins with `where`.

    The definition may name classes of the `application`. `colors` says whether uvicorn's formatters
    in it write in colour; None leaves that to the definition.
    """
    try:
        with contextlib.nullcontext() if application is None else application.importable():
            if isinstance(definition, str):
                named = _apply_ini(definition, colors)
            else:
                named = _apply_dictionary(definition, colors)
    except Exception as error:  # noqa: BLE001 - the file names code, which may raise anything
        cause = f": {_line(error.__cause__)}" if error.__cause__ else ""
        reason = misfit(definition) or f"{_line(error)}{cause}"
        raise ConfigError(f"{where}: can't configure logging: {reason}") from None
    log, access = logging.getLogger("esg"), logging.getLogger("esg.access")
    log.disabled = access.disabled = False  # dictConfig disables loggers that the file doesn't name
    if named & _THEIRS and "esg" not in named:
        log.parent = logging.getLogger("uvicorn.error")
        if "esg.access" not in named:
            access.parent = logging.getLogger("uvicorn.access")


def misfit(definition: Definition) -> str:
    """What is wrong with the structure of a dictionary, and where; "" if nothing is.

    Only for a dictionary that `logging.config` refuses, because its own errors are about attributes
    of Python types.
    """
    if isinstance(definition, str):
        return ""
    for section in ("formatters", "filters", "handlers", "loggers"):
        entries = definition.get(section, {})
        if not isinstance(entries, dict):
            return f"{section}: expected a dictionary, not {entries!r}"
        for name, entry in entries.items():
            if reason := _misfit_of_entry(entry, section):
                return f"{section}.{name}{reason}"
            if section == "handlers" and not (
                {"class", "()"} & entry.keys() or definition.get("incremental")
            ):
                return f"{section}.{name}: expected a key 'class' or '()'"
    reason = _misfit_of_entry(definition.get("root", {}), "loggers")
    return f"root{reason}" if reason else ""


def _misfit_of_entry(entry: object, section: str) -> str:
    """What is wrong with an entry of a section, beginning with a dot or a colon; or ""."""
    if not isinstance(entry, dict):
        return f": expected a dictionary, not {entry!r}"
    # Python 3.12 and newer also accept a class itself as the class of a handler.
    takes_class = section == "handlers" and sys.version_info >= (3, 12)
    for key, takes_object in (("class", takes_class), ("()", True)):
        value = entry.get(key) or ""
        if not isinstance(value, str) and not (takes_object and callable(value)):
            return f".{key}: expected the name of a class or function, not {value!r}"
    if section == "formatters" and not isinstance(entry.get("format") or "", str):
        return f".format: expected a string, not {entry['format']!r}"
    if section in ("handlers", "loggers"):
        for key in ("handlers", "filters"):
            value = entry.get(key) or []
            if not isinstance(value, list | tuple):
                return f".{key}: expected a list, not {value!r}"
    return ""


@frozen
class Application:
    """The folder of the modules that a definition may name, and the environment for importing them.

    If `forgets_modules`, modules imported for a definition are removed again, so that a later
    import loads them from the disk. The arbiter needs that: it forks the workers of later
    generations, and these must import the code that is on the disk by then.
    """

    folder: str
    variables: Mapping[str, str]
    forgets_modules: bool

    @contextlib.contextmanager
    def importable(self) -> Iterator[None]:
        """Find modules in the folder first, inside this context and afterwards.

        The folder stays on the Python path, for imports that a formatter makes when it is called,
        until the folder of another generation replaces it.
        """
        global _folder
        folder = os.path.abspath(self.folder)
        if _folder in sys.path:
            sys.path.remove(_folder)
        _folder = "" if folder in sys.path else folder
        if _folder:
            sys.path.insert(0, _folder)
        importlib.invalidate_caches()
        modules, environment = set(sys.modules), dict(os.environ)
        os.environ.update(self.variables)
        try:
            yield
        finally:
            if self.forgets_modules:
                for name in os.environ.keys() - environment.keys():
                    del os.environ[name]
                os.environ.update(environment)
                for name in set(sys.modules) - modules:
                    if _home(sys.modules[name]) == folder:
                        del sys.modules[name]


_folder = ""
"""The folder that `importable` has put on the Python path of this process."""


def _home(module: object) -> str:
    """The entry of the Python path that a module was found in; the longest, if several may be."""
    file = os.path.abspath(getattr(module, "__file__", None) or os.sep)
    entries = [os.path.abspath(entry) for entry in sys.path]
    return max((e for e in entries if file.startswith(e + os.sep)), key=len, default="")


def _apply_dictionary(definition: dict[str, Any], colors: bool | None) -> set[str]:
    definition = _copied(definition)
    found = definition.get("formatters")
    formatters = list(found.values()) if isinstance(found, dict) else []
    if colors is not None:
        for formatter in _of_uvicorn(formatters):
            formatter["use_colors"] = colors
    for formatter in formatters:
        for key in ("()", "class"):
            if key in formatter:
                formatter[key] = _available(formatter[key])
    logging.config.dictConfig(definition)
    return set(definition.get("loggers", ()))


def _copied(value: Any) -> Any:
    """A copy of nested dictionaries and lists; all other objects in them are shared.

    `copy.deepcopy` would fail for open files and other objects that can't be copied.
    """
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _of_uvicorn(formatters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The formatters that support colours. Raises ValueError if there are none."""
    found = [each for each in formatters if str(each.get("()")).startswith(_UVICORN)]
    if not found:
        raise ValueError(_NO_COLORS)
    return found


_NO_COLORS = "--use-colors needs one of uvicorn's formatters in a dictionary, and there is none"


def _apply_ini(text: str, colors: bool | None) -> set[str]:
    if colors is not None:
        raise ValueError(_NO_COLORS)
    parser = _parser(text)
    for section in parser.sections():
        if section.startswith("formatter_") and parser.has_option(section, "class"):
            parser.set(section, "class", _available(parser.get(section, "class")))
    logging.config.fileConfig(parser, disable_existing_loggers=False)
    names = (parser.get(section, "qualname", fallback="") for section in parser.sections())
    return {name for name in names if name}


def _available(name: object) -> Any:
    """A formatter's name; this module's class replaces uvicorn's if uvicorn isn't installed."""
    of_uvicorn = isinstance(name, str) and name.startswith(_UVICORN)
    if of_uvicorn and importlib.util.find_spec("uvicorn") is None:
        return f"{__name__}.{str(name).removeprefix(_UVICORN)}"
    return name


def _line(error: BaseException | None) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class DefaultFormatter(logging.Formatter):
    """Adds `%(levelprefix)s`: the level, a colon, and padding. Replaces uvicorn's class."""

    def __init__(self, *args: Any, use_colors: bool | None = None, **kwargs: Any) -> None:
        """By default, colours are used if standard output is a terminal and NO_COLOR isn't set."""
        super().__init__(*args, **kwargs)
        by_default = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._colors = by_default if use_colors is None else use_colors

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record = copy.copy(record)
        self._add(record)
        return super().formatMessage(record)

    def _add(self, record: logging.LogRecord) -> None:
        padding = " " * (8 - len(record.levelname))
        code = {"INFO": 32, "WARNING": 33, "ERROR": 31, "CRITICAL": 91}.get(record.levelname, 36)
        record.levelprefix = f"{self._colored(record.levelname, code)}:{padding}"

    def _colored(self, text: str, code: int) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colors else text


class AccessFormatter(DefaultFormatter):
    """Also adds `%(client_addr)s`, `%(request_line)s` and `%(status_code)s` of an access line."""

    def _add(self, record: logging.LogRecord) -> None:
        super()._add(record)
        if not isinstance(record.args, tuple) or len(record.args) != 5:
            return
        client, method, target, version, status = record.args
        record.client_addr = client
        record.request_line = self._colored(f"{method} {target} HTTP/{version}", 1)
        phrase = next((s.phrase for s in HTTPStatus if s.value == status), "")
        code = {2: 32, 3: 33, 4: 31, 5: 91}.get(int(str(status)) // 100, 37)
        record.status_code = self._colored(f"{status} {phrase}", code)
