"""Which WebSocket library a worker uses. Only its codec is imported; others may be missing."""

from __future__ import annotations

import importlib.util

from esg.server.websocket.codec import Library
from esg.settings.schema import Config


def library(config: Config) -> Library | None:
    """The library that `--ws` selects; None if there are to be no WebSockets.

    `prepare` has checked that the library named by `--ws` is installed.
    """
    name = config.ws
    if name == "none":
        return None
    if name == "wsproto":
        from esg.server.websocket.wsproto_codec import Wsproto

        return Wsproto()
    if name == "auto" and importlib.util.find_spec("websockets") is None:
        return None
    from esg.server.websocket.websockets_codec import Websockets

    return Websockets()
