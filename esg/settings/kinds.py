"""Kinds of values: how the value of a setting is read from text, from TOML or from Python.

A kind checks a single value. The settings are declared in `service_settings.py` and
`protocol_settings.py`; `build.py` checks values that depend on each other.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from esg.frozen import frozen
from esg.log import accessformat
from esg.settings import aliases, cpus
from esg.settings.objects import take_out


@frozen
class Kind:
    """How one kind of value is read: `parse` accepts text or a TOML value, or raises ValueError.

    `types` are the TOML types that the value may have in a file; only `parse` checks the values of
    other sources. `words` are strings that a file may have in place of a number.
    """

    metavar: str
    parse: Callable[[object], Any]
    is_flag: bool = False
    choices: tuple[str, ...] = ()
    types: tuple[type, ...] = (str,)
    words: tuple[str, ...] = ()


_TYPES: Mapping[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a table",
}
"""Names of TOML's types for error messages."""


def check_type(kind: Kind, value: object) -> None:
    """Raise ValueError if a value from a file has a type that this kind doesn't accept."""
    given = type(value)
    if given in kind.types or (given is int and float in kind.types) or value in kind.words:
        return
    wanted = [_TYPES[each] for each in kind.types] + [repr(word) for word in kind.words]
    raise ValueError(f"expected {' or '.join(wanted)}, not {_TYPES.get(given, 'a date or time')}")


class BadItemError(ValueError):
    """The error for one `item` of a list."""

    def __init__(self, item: object, reason: str) -> None:
        super().__init__(reason)
        self.item = item


def _each(parse: Callable[[object], str], items: Iterable[object]) -> tuple[str, ...]:
    """Parse every item. Raises BadItemError for the first invalid one."""
    parsed = []
    for item in items:
        try:
            parsed.append(parse(item))
        except ValueError as error:
            raise BadItemError(item, str(error)) from None
    return tuple(parsed)


def whole_number(least: int, most: int | None = None) -> Kind:
    """A whole number from `least` to `most`, both included."""
    wanted = f"a whole number from {least} to {most}" if most else f"a whole number >= {least}"

    def parse(raw: object) -> int:
        if isinstance(raw, bool) or not re.fullmatch(r"-?[0-9]+", str(raw).strip()):
            raise ValueError(f"expected {wanted}")
        value = int(str(raw))
        if value < least or (most is not None and value > most):
            raise ValueError(f"expected {wanted}")
        return value

    return Kind("INTEGER", parse, types=(int,))


_DURATION_UNITS: Mapping[str, float] = {
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_SIZE_UNITS: Mapping[str, int] = {"k": 1024, "m": 1024**2, "g": 1024**3}
"""Powers of 1024, as in nginx and systemd; `kB` and `KiB` are the same as `k`."""

_AMOUNT = re.compile(r"([0-9]++(?:\.[0-9]++)?+) ?+([A-Za-z]*+)")
"""A number and a unit. Nothing is matched in two ways, so a repetition of it takes linear time."""


def seconds(least: float = 0.0) -> Kind:
    """A duration of at least `least` seconds, kept in seconds.

    It is a number of seconds, a `datetime.timedelta`, or text with units: `500ms`, `30s`, `5m`,
    `1h`, `1d`, `1h30m`.
    """

    def parse(raw: object) -> float:
        value = raw.total_seconds() if isinstance(raw, datetime.timedelta) else _seconds_in(raw)
        if not math.isfinite(value) or value < least:
            raise ValueError(
                f"expected a number of seconds >= {least:g}, or a time such as {_TIMES}"
            )
        return value

    return Kind("DURATION", parse, types=(float, str))


_TIMES = "500ms, 30s, 5m, 1h or 1d"


def _seconds_in(raw: object) -> float:
    """A number or a text such as `1h30m` in seconds; NaN if it isn't a duration."""
    if isinstance(raw, bool):
        return math.nan
    text = str(raw).strip()
    if re.fullmatch(r"[-+0-9.eE]+", text):
        with contextlib.suppress(ValueError):
            return float(text)
    if not re.fullmatch(rf"(?:{_AMOUNT.pattern} ?)+", text):
        return math.nan
    amounts = _AMOUNT.findall(text)
    if len({unit for _, unit in amounts}) < len(amounts):
        return math.nan
    return sum(float(number) * _DURATION_UNITS.get(unit, math.nan) for number, unit in amounts)


def size(least: int) -> Kind:
    """A size of at least `least` bytes, kept in bytes: a whole number, or text such as `64k`.

    Units are `k`, `m` and `g`, also written `kB` or `KiB`, in either case; each is 1024 times the
    one before.
    """

    def parse(raw: object) -> int:
        value = math.nan if isinstance(raw, bool) else _bytes_in(str(raw).strip())
        if not value >= least:
            raise ValueError(
                f"expected a whole number >= {least} of bytes, or a size such as 64k or 16MiB"
            )
        return int(value)

    return Kind("SIZE", parse, types=(int, str))


def _bytes_in(text: str) -> float:
    """A text such as `64k` in bytes; NaN if it isn't a size."""
    if re.fullmatch(r"[0-9]+", text):
        return int(text)
    amount = _AMOUNT.fullmatch(text)
    unit = re.fullmatch(r"([kmg])(?:i?b)?", amount[2].lower()) if amount else None
    if amount is None or unit is None:
        return math.nan
    from fractions import Fraction  # seldom needed, and slow to import

    value = Fraction(amount[1]) * _SIZE_UNITS[unit[1]]
    return int(value) if value.denominator == 1 else math.nan


def choice(*names: str) -> Kind:
    """One of a few words."""

    def parse(raw: object) -> str:
        if isinstance(raw, str) and raw.strip().lower() in names:
            return raw.strip().lower()
        hint = difflib.get_close_matches(str(raw), names, 1)
        meant = f" (did you mean {hint[0]!r}?)" if hint else ""
        raise ValueError(f"expected one of {', '.join(names)}{meant}")

    return Kind("[" + "|".join(names) + "]", parse, choices=names)


TRUE_WORDS = frozenset(("1", "true", "yes", "on"))
FALSE_WORDS = frozenset(("0", "false", "no", "off"))


def _parse_switch(raw: object) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise ValueError("expected true or false")


def _parse_text(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError("expected a string")
    if "\0" in raw or "\n" in raw:
        raise ValueError("expected one line of text")
    return raw


def _parse_log_format(raw: object) -> str:
    text = _parse_text(raw)
    if text.strip() == accessformat.UVICORN:
        return accessformat.UVICORN
    if text:
        accessformat.parse(text)
    return text


def _parse_octal(raw: object) -> str:
    """Permission bits. A number is used as it is (TOML has 0o22); a text is octal."""
    number = raw if isinstance(raw, int) and not isinstance(raw, bool) else -1
    if isinstance(raw, str):
        digits = raw.strip().lower().removeprefix("0o")
        number = int(digits, 8) if re.fullmatch("[0-7]{1,4}", digits) else -1
    if not 0 <= number <= 0o777:
        raise ValueError("expected permissions in octal, from 000 to 777")
    return f"{number:03o}"


def _parse_account(raw: object) -> str:
    return str(raw) if isinstance(raw, int) and not isinstance(raw, bool) else _parse_text(raw)


def _parse_optional_octal(raw: object) -> str:
    return "" if raw == "" else _parse_octal(raw)


def _parse_texts(raw: object) -> tuple[str, ...]:
    if isinstance(raw, str):
        raw = [item.strip() for item in raw.split(",") if item.strip()]
    if isinstance(raw, (list, tuple)):
        return _each(_parse_text, raw)
    raise ValueError("expected a string or a list of strings")


def _parse_items(raw: object) -> tuple[str, ...]:
    return _parse_texts(",".join(_parse_texts(raw)))


INTERFACE_PREFIXES: Mapping[str, str] = {"asgi": "asgi3", "wsgi": "wsgi"}
"""Interfaces by hypercorn's prefixes of an application's name, as in `wsgi:app:main`."""

CALL = "()"
"""At the end of an application's name this means that it is a factory, as in gunicorn."""


def _parse_app(raw: object) -> str:
    text = _parse_text(raw).strip()
    wanted = "expected MODULE:ATTRIBUTE, for example example:app"
    module, _, attribute = without_interface(text)[1].partition(":")
    if "/" in module or module.endswith(".py"):
        dotted = module.removesuffix(".py").strip("./").replace("/", ".")
        raise ValueError(f"{wanted}; write {dotted}:{attribute or 'app'}, not a file name")
    # The import decides which names of modules are valid. An empty part would make it relative.
    attributes = attribute.removesuffix(CALL).split(".") if attribute else []
    if not all(module.split(".")) or not all(name.isidentifier() for name in attributes):
        raise ValueError(wanted)
    return text


def without_interface(app: str) -> tuple[str, str]:
    """The interface in front of an application's name, if there is one, and the rest.

    Only a name with two colons has an interface, because a module may be called `asgi`.
    """
    interface, _, rest = app.partition(":")
    return (interface, rest) if interface in INTERFACE_PREFIXES and ":" in rest else ("", app)


def _parse_workers(raw: object) -> int:
    if isinstance(raw, str) and raw.strip().lower() == "auto":
        return min(cpus.usable(), MOST_WORKERS)
    try:
        return int(whole_number(1, MOST_WORKERS).parse(raw))
    except ValueError as error:
        raise ValueError(f"{error}, or auto for one per CPU") from None


_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FRAMING_FIELDS = ("connection", "content-length", "transfer-encoding")


def _parse_headers(raw: object) -> tuple[str, ...]:
    """One or several header fields, each as text (`Name: value`) or as a pair; returns texts."""
    if isinstance(raw, str):
        raw = [line for line in raw.splitlines() if line.strip()]
    if not isinstance(raw, list | tuple):
        raise ValueError("expected NAME:VALUE, or a list of them")
    return _each(_parse_header, raw)


def _parse_header(raw: object) -> str:
    pair = raw.partition(":")[::2] if isinstance(raw, str) and ":" in raw else raw
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ValueError("expected NAME:VALUE")
    name, value = (_parse_text(part).strip(" \t") for part in pair)
    if not _FIELD_NAME.fullmatch(name):
        raise ValueError(f"{name!r} isn't a valid name of a header field")
    if name.lower() in _FRAMING_FIELDS:
        raise ValueError(f"{name} says where a message ends, so only the server can set it")
    if not value.replace("\t", " ").isprintable() or not _is_latin(value):
        raise ValueError(f"the value of {name} has characters that a header field can't have")
    return f"{name}: {value}"


def _is_latin(text: str) -> bool:
    return all(ord(char) < 256 for char in text)


def _parse_worker_class(raw: object) -> str:
    name = _parse_text(raw).strip()
    if name and name not in aliases.WORKER_CLASSES:
        known = ", ".join(aliases.WORKER_CLASSES)
        raise ValueError(f"{aliases.why_not(name)}; leave it out, or use one of {known}")
    return name


MOST_WORKERS = 512
"""The limit for one generation. The scoreboard has room for two generations and draining
workers."""


def synonyms(metavar: str, wanted: str, names: Mapping[str, tuple[str, ...]]) -> Kind:
    """One of a few values, each with the names that other programs have for it."""
    values = {name.lower(): value for value, all_ in names.items() for name in (value, *all_)}

    def parse(raw: object) -> str:
        try:
            return values[str(raw).strip().lower()]
        except KeyError:
            raise ValueError(f"expected {wanted}") from None

    return Kind(metavar, parse, types=(str, float))


# The numbers are the ssl module's constants, which uvicorn accepts; the names are gunicorn's and
# OpenSSL's. Constants that negotiate the version mean 1.2, the oldest version that ESG supports.
TLS_VERSION = synonyms(
    "VERSION",
    "1.2 or 1.3 (older versions of TLS aren't safe)",
    {
        "1.2": (
            "TLSv1.2", "TLSv1_2", "PROTOCOL_TLSv1_2", "5",
            "TLS", "PROTOCOL_TLS", "SSLv23", "2", "TLS_SERVER", "PROTOCOL_TLS_SERVER", "17",
        ),
        "1.3": ("TLSv1.3", "TLSv1_3"),
    },
)  # fmt: skip
CERT_REQS = synonyms(
    "[none|optional|required]",
    "none, optional or required",
    {
        "none": ("CERT_NONE", "0"),
        "optional": ("CERT_OPTIONAL", "1"),
        "required": ("CERT_REQUIRED", "2"),
    },
)
LOG_LEVELS: Mapping[str, int] = {
    "critical": 50,
    "error": 40,
    "warning": 30,
    "info": 20,
    "debug": 10,
    "trace": 5,
}
"""The levels with the logging module's numbers, from the highest; trace is uvicorn's."""


def _parse_log_level(raw: object) -> str:
    """The name of a level; a number between two levels counts as the higher level.

    Each record has one of these levels. So the number 25, which hides all records below it, has the
    same effect as 30.
    """
    names = {name: name for name in LOG_LEVELS} | {"warn": "warning", "fatal": "critical"}
    word = "" if isinstance(raw, bool) else str(raw).strip().lower()
    if word.isascii() and word.isdigit() and 0 < int(word) <= max(LOG_LEVELS.values()):
        return [name for name, number in LOG_LEVELS.items() if number >= int(word)][-1]
    if word not in names:
        hint = difflib.get_close_matches(word, LOG_LEVELS, 1)
        meant = f" (did you mean {hint[0]!r}?)" if hint else ""
        numbers = ", ".join(f"{number} {name}" for name, number in LOG_LEVELS.items())
        raise ValueError(
            f"expected one of {', '.join(LOG_LEVELS)}, or a number from 1 to 50 ({numbers}){meant}"
        )
    return names[word]


@frozen
class LogDefinition:
    """The content of a `--log-config` file, given as a value in place of a file's name.

    `content` is the dictionary for `logging.config.dictConfig`, the text of a file for
    `logging.config.fileConfig`, or None to leave logging to the application. In a dictionary,
    StandIns take the place of objects.
    """

    content: dict[str, Any] | str | None


def _parse_log_config(raw: object) -> str | LogDefinition:
    if isinstance(raw, dict):
        return LogDefinition(take_out(raw, []))
    if isinstance(raw, io.TextIOBase):
        return LogDefinition(raw.read())
    if isinstance(raw, LogDefinition):
        return raw
    if isinstance(raw, str):
        return _parse_text(raw)
    import configparser  # seldom needed, and slow to import

    if isinstance(raw, configparser.RawConfigParser):
        text = io.StringIO()
        raw.write(text)
        return LogDefinition(text.getvalue())
    raise ValueError(
        "expected the name of a file, or a dictionary as for logging.config.dictConfig"
    )


SWITCH = Kind("BOOLEAN", _parse_switch, is_flag=True, types=(bool,))
BOOLEAN = Kind("BOOLEAN", _parse_switch, types=(bool,))
WORKERS = Kind("INTEGER|auto", _parse_workers, types=(int,), words=("auto",))
HEADERS = Kind("NAME:VALUE", _parse_headers, types=(str, list))
WORKER_CLASS = Kind("TEXT", _parse_worker_class)
TEXT = Kind("TEXT", _parse_text)
ACCOUNT = Kind("NAME|ID", _parse_account)
OCTAL = Kind("OCTAL", _parse_octal)
OPTIONAL_OCTAL = Kind("OCTAL", _parse_optional_octal)
LOG_FORMAT = Kind("FORMAT", _parse_log_format)
LOG_LEVEL = Kind(
    f"[{'|'.join(LOG_LEVELS)}]", _parse_log_level, choices=tuple(LOG_LEVELS), types=(str, int)
)
LOG_CONFIG = Kind("FILE", _parse_log_config, types=(str, dict))
TEXTS = Kind("TEXT", _parse_texts, types=(str, list))
ITEMS = Kind("TEXT", _parse_items, types=(str, list))
"""Like TEXTS, but commas also separate items within an element of a list."""
APP = Kind("APP", _parse_app)
