"""What the server makes of its settings before there is a worker: in the arbiter, each generation.

So what can't work stops the start or the reload, and needs no privileges when workers boot.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping

from esg.errors import ConfigError
from esg.server.proxy.headers import trusted_proxies
from esg.server.tls import server_context
from esg.settings.schema import Config

PACKAGES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("loop", "uvloop"): ("uvloop", "--loop asyncio"),
    ("http", "httptools"): ("httptools", "--http h11"),
    ("ws", "websockets"): ("websockets", "--ws none"),
    ("ws", "websockets-sansio"): ("websockets", "--ws none"),
    ("ws", "wsproto"): ("wsproto", "--ws none"),
}
"""What values of settings need: a package, called the same on PyPI, or what does without it."""


def check_packages(config: Config) -> None:
    """Raise ConfigError if a setting names what isn't installed."""
    for (name, value), (package, instead) in PACKAGES.items():
        if getattr(config, name) == value and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{config.origin(name)}: {package} is not installed; try: pip install {package}, "
                f"or {instead}"
            )


def prepare(config: Config) -> Config:
    """The same settings with what they refer to: certificates are read. Raises ConfigError.

    A link for `--app-dir` is followed now, so that a generation keeps its release: a worker that
    takes another's place later would find the next one there.
    """
    check_packages(config)
    trusted_proxies(config)
    if config.proxy_protocol and not config.forwarded_allow_ips:
        raise ConfigError(
            f"{config.origin('proxy_protocol')}: no proxy is trusted, so every connection would be "
            "refused; list them in --forwarded-allow-ips"
        )
    folder = os.path.realpath(config.app_dir) if config.app_dir else ""
    found = {"ssl_context": server_context(config), "app_dir": folder}
    return Config(**(vars(config) | found))
