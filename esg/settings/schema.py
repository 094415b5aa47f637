"""The settings of ESG: a frozen Config with one field for each declared setting. Data only.

The settings are declared in `service_settings.py` and `protocol_settings.py`. The options of the
command line, the keys of the file, the environment variables and the reference documentation are
all derived from these declarations.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from esg.errors import ConfigError
from esg.settings import aliases
from esg.settings.declaration import Setting
from esg.settings.kinds import LogDefinition
from esg.settings.protocol_settings import (
    HTTPSettings,
    LimitSettings,
    TLSSettings,
    WebSocketSettings,
)
from esg.settings.service_settings import (
    ApplicationSettings,
    DevelopmentSettings,
    LoggingSettings,
    ProcessSettings,
    SocketSettings,
)

WHERE = ("bind", "uds", "fd")
"""Settings that say where to listen, other than host and port."""

NO_EFFECT = {
    "reuse_port": "workers share the arbiter's sockets, and no other program can share the port",
    "initgroups": "--user includes all groups of that user",
    "worker_tmp_dir": "heartbeats are in shared memory",
    "enable_stdio_inheritance": "standard output and error are always inherited",
    "control_socket_disable": "there is no control socket without --control-socket",
    "timeout_notify": "workers send a heartbeat every second (--timeout)",
}
"""Settings of other servers that are accepted and ignored, and the reasons why ESG needs none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(
    # Fields of the last base class come first; the help and the documentation keep this order.
    DevelopmentSettings,
    LoggingSettings,
    TLSSettings,
    LimitSettings,
    WebSocketSettings,
    HTTPSettings,
    ProcessSettings,
    SocketSettings,
    ApplicationSettings,
):
    """Every setting of one generation. Times are in seconds, sizes in bytes.

    A Config is data: it can be pickled, and two are equal if all settings and variables in them
    are, wherever they were read. The objects that belong to a generation are in
    `esg.settings.objects.Objects`.
    """

    origins: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """The source of each setting that was given, for messages to the operator."""
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    """Environment variables that `env_file` adds to the workers' environment."""
    strays: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)
    """Warnings about variables and files that ESG doesn't read, or `--debug` without reloads."""
    files: tuple[str, ...] = dataclasses.field(default=(), compare=False, repr=False)
    """Absolute paths of the files that settings are read from, also of files that don't exist."""
    gaps: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """Maps the path of each file that was looked for to the reason why it has no settings,
    or to "" if it has some."""
    folder: str = dataclasses.field(default="", compare=False, repr=False)
    """The folder to run in, by the path that the operator gave; absolute, "" for no change."""
    real_folder: str = dataclasses.field(default="", compare=False, repr=False)
    """Where `folder` led when this generation began; "" until then."""
    app_link: str = dataclasses.field(default="", compare=False, repr=False)
    """`app_dir` by the path that the operator gave; absolute, "" until the generation begins."""
    app_is_object: bool = dataclasses.field(default=False, repr=False)
    """Whether the application or its factory was given as an object; `app` is only its label then.
    The object is in `esg.settings.objects.Objects`."""
    has_ssl_context_factory: bool = dataclasses.field(default=False, repr=False)
    """Whether a function given in Python makes the SSL context. It is in Objects, too."""

    @property
    def title(self) -> str:
        """The application's name in process titles and in the log."""
        return self.name or self.app

    @property
    def scheme(self) -> str:
        """The scheme of the listeners' URLs."""
        return "https" if self.ssl_certfile or self.has_ssl_context_factory else "http"

    @property
    def listen_settings(self) -> tuple[str, ...]:
        """The settings of WHERE that are set. If none is, host and port say where to listen."""
        return tuple(name for name in WHERE if getattr(self, name) not in ((), "", None))

    @property
    def leaves_logging(self) -> bool:
        """Whether `log_config=None` leaves logging to the application."""
        return isinstance(self.log_config, LogDefinition) and self.log_config.content is None

    @property
    def binds(self) -> tuple[str, ...]:
        """The addresses to listen on, in the form of `--bind`."""
        if self.bind:
            return self.bind
        if self.uds:
            return (f"unix:{self.uds}",)
        if self.fd is not None:
            return (f"fd://{self.fd}",)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{host}:{self.port}",)

    @property
    def binds_origin(self) -> str:
        """Where `binds` came from, for messages to the operator."""
        return " and ".join(self._binds_origins) or "the default"

    @property
    def _binds_origins(self) -> list[str]:
        names = self.listen_settings or ("host", "port")
        return list(dict.fromkeys(self.origins[n] for n in names if n in self.origins))

    @property
    def has_explicit_address(self) -> bool:
        """Whether a source other than PORT says where to listen.

        Platforms set PORT for every program, so it doesn't count.
        """
        return not all(origin.endswith(" PORT") for origin in self._binds_origins)

    def origin(self, name: str) -> str:
        """Where the value of the setting `name` came from, for messages to the operator."""
        return self.origins.get(name, "the default")

    def notices(self) -> Iterator[tuple[Literal["info", "warning"], str]]:
        """Messages about the settings, to log at startup: level and text."""
        for stray in self.strays:
            yield "warning", stray
        if self.worker_class:
            meant = aliases.WORKER_CLASSES[self.worker_class].items()
            text = " and ".join(f"--{name} {value}" for name, value in meant)
            yield (
                "info",
                f"{self.origin('worker_class')}: {self.worker_class} means "
                f"{text or 'the defaults of ESG'}",
            )
        if "uds" in self.listen_settings or "fd" in self.listen_settings:
            for name in ("host", "port"):
                if name in self.origins:
                    yield (
                        "info",
                        f"{self.origin(name)} has no effect: {self.binds_origin} says where to "
                        "listen",
                    )
        yield from self._folder_notices()
        for name, reason in NO_EFFECT.items():
            if getattr(self, name) != SETTINGS[name].default:
                yield "info", f"{self.origin(name)} has no effect: {reason}"
        if self.ssl_ca_certs and self.ssl_cert_reqs == "none":
            yield (
                "warning",
                f"{self.origin('ssl_ca_certs')}: no client is asked for a certificate; "
                "--ssl-cert-reqs required (or optional) does that",
            )
        if not self.reload:
            for name in ("reload_engine", "reload_dir", "reload_include", "reload_exclude"):
                if getattr(self, name) != SETTINGS[name].default:
                    yield "warning", f"{self.origin(name)} has no effect without --reload"
        if self.debug:
            yield (
                "warning",
                f"{self.origin('debug')}: clients see tracebacks of the application; "
                "this must not face the internet",
            )

    def _folder_notices(self) -> Iterator[tuple[Literal["info", "warning"], str]]:
        """Messages on where symbolic links lead, and on paths that don't follow a switched link."""
        if self.app_link and not self.real_folder:
            yield (
                "warning",
                f"the folder {self.folder} that ESG was started in is gone, so relative paths "
                "don't work; start ESG again in another folder",
            )
        if self.app_link and self.app_dir != os.path.normpath(self.app_link):
            yield "info", f"{self.origin('app_dir')}: {self.app_link} leads to {self.app_dir}"
        if not self.real_folder or self.real_folder == os.path.normpath(self.folder):
            return
        where = f"{self.origin('chdir')}: " if self.chdir else ""
        yield "info", f"{where}running in {self.real_folder}, where {self.folder} leads"
        for name in ("pid", "control_socket"):
            path = getattr(self, name)
            if path and not os.path.isabs(path):
                yield (
                    "warning",
                    f"{self.origin(name)}: {path!r} is in a folder behind a symbolic link, and "
                    "isn't moved when the link is switched; give an absolute path",
                )


def _declared(field: dataclasses.Field[Any]) -> Setting:
    spec = field.metadata
    flag = "--" + field.name.replace("_", "-")
    return Setting(
        name=field.name,
        kind=spec["kind"],
        default=field.default,
        group=spec["group"],
        help=spec["help"],
        flags=spec["flags"] or (flag,),
        environment=spec["environment"],
        reloadable=spec["reloadable"],
        pending=spec["pending"],
        many=isinstance(field.default, tuple),
        built=spec["built"],
        instead=spec["instead"],
        secret=spec["secret"],
    )


SETTINGS: Mapping[str, Setting] = {
    field.name: _declared(field) for field in dataclasses.fields(Config) if field.metadata
}

NAMES: Mapping[str, str] = {
    name: declared.name for declared in SETTINGS.values() for name in declared.names
}
"""For each name of a setting, the name of its field in Config."""


def setting_named(name: str, where: str) -> Setting:
    """The setting called `name` in the source `where`. Raises ConfigError if there is none."""
    key = name.replace("-", "_")
    if key not in NAMES:
        other = aliases.RENAMED.get(key) or aliases.PLURALS.get(key)
        hint = f"; did you mean {other}?" if other else nearest(key, NAMES)
        raise ConfigError(f"{where}: unknown key {name!r}{hint}")
    return SETTINGS[NAMES[key]]


def nearest(name: str, names: Mapping[str, object] | list[str]) -> str:
    """A hint "; did you mean X?" for a misspelt name, or nothing."""
    close = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {close[0]}?" if close else ""
