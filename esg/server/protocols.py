"""The protocols that a worker's connections speak.

The protocols know `Service`, and it knows none of them; here they meet.
"""

from __future__ import annotations

from esg.server.http1.parsers import parser_class
from esg.server.http1.response import Heads
from esg.server.state import Service
from esg.server.websocket.handshake import WebSockets
from esg.server.websocket.libraries import library


def enable(service: Service) -> None:
    """Set what HTTP/1.1 and WebSockets need of a service, before its first connection."""
    config = service.config
    service.parser = parser_class(config.http)
    service.heads = Heads(config.server_header, config.date_header, config.header)
    chosen = library(config)
    service.upgrades = None if chosen is None else WebSockets(service, chosen)
