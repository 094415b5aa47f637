"""What the server makes of its settings before there is a worker: in the arbiter, each generation.

So what can't work stops the start or the reload, and needs no privileges when workers boot.
"""

from __future__ import annotations

from esg.config import Config
from esg.errors import ConfigError
from esg.server.proxy_headers import trusted_proxies
from esg.server.tls import server_context


def prepare(config: Config) -> Config:
    """The same settings with what they refer to: certificates are read. Raises ConfigError."""
    trusted_proxies(config)
    if config.proxy_protocol and not config.forwarded_allow_ips:
        raise ConfigError(
            f"{config.origin('proxy_protocol')}: no proxy is trusted, so every connection would be "
            "refused; list them in --forwarded-allow-ips"
        )
    return Config(**(vars(config) | {"ssl_context": server_context(config)}))
