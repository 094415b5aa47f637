"""The arbiter's checks and preparations for each generation before its first worker.

So invalid settings stop the startup or the reload, and a worker needs no permission to read
the key of a certificate.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping

from esg.errors import ConfigError
from esg.payload import Settings
from esg.server.packages import import_packages
from esg.server.proxy.headers import trusted_proxies
from esg.server.tls import server_context
from esg.settings.objects import NO_OBJECTS, Objects
from esg.settings.schema import Config

PACKAGES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("loop", "uvloop"): ("uvloop", "--loop asyncio"),
    ("http", "httptools"): ("httptools", "--http h11"),
    ("ws", "websockets"): ("websockets", "--ws none"),
    ("ws", "websockets-sansio"): ("websockets", "--ws none"),
    ("ws", "wsproto"): ("wsproto", "--ws none"),
}
"""For values of settings: the package that they need, and an option that works without it."""


def check_packages(config: Config) -> None:
    """Raise ConfigError if a setting needs a package that isn't installed."""
    for (name, value), (package, instead) in PACKAGES.items():
        if getattr(config, name) == value and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{config.origin(name)}: {package} is not installed; try: pip install {package}, "
                f"or {instead}"
            )


def prepare(config: Config, objects: Objects = NO_OBJECTS) -> Settings:
    """Check the settings, and make the objects that every worker needs. Raises ConfigError.

    The SSL context is made, and a symbolic link for `--app-dir` is followed. So a generation stays
    in its release: a replacement for one of its workers doesn't load the code of the next release.
    The packages that serve are imported, so that workers get them by forking.
    """
    check_packages(config)
    import_packages(config)
    trusted_proxies(config)
    if config.proxy_protocol and not config.forwarded_allow_ips:
        raise ConfigError(
            f"{config.origin('proxy_protocol')}: no proxy is trusted, so every connection would be "
            "refused; list them in --forwarded-allow-ips"
        )
    folder = os.path.realpath(config.app_dir) if config.app_dir else ""
    context = server_context(config, objects.ssl_context_factory)
    return Settings(
        Config(**(vars(config) | {"app_dir": folder})),
        dataclasses.replace(objects, ssl_context=context),
    )
