"""Checks that the operating system has what ESG needs."""

from __future__ import annotations

import os
import platform
import socket

from esg.errors import ESGError

NEEDED = {
    "os.fork": hasattr(os, "fork"),
    "os.memfd_create": hasattr(os, "memfd_create"),
    "socket.SOCK_SEQPACKET": hasattr(socket, "SOCK_SEQPACKET"),
    "socket.AF_UNIX": hasattr(socket, "AF_UNIX"),
}
"""Whether this Python has the functions and constants that ESG needs; they exist only where the
kernel provides them.
"""


def check() -> None:
    """Raise ESGError if ESG can't serve on this operating system."""
    missing = [name for name, is_there in NEEDED.items() if not is_there]
    if missing:
        raise ESGError(
            f"ESG needs Linux; Python on {platform.system()} has no {', '.join(missing)}; "
            "use a container, a virtual machine or, on Windows, WSL 2"
        )
