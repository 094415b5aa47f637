"""What ESG needs of the operating system, and what to say where it isn't there."""

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
"""Functions of Python's that exist where the kernel's do, and whether they do here."""


def check() -> None:
    """Raise ESGError if this operating system lacks something without which nothing is served."""
    missing = [name for name, is_there in NEEDED.items() if not is_there]
    if missing:
        raise ESGError(
            f"ESG needs Linux; Python on {platform.system()} has no {', '.join(missing)}; "
            "use a container, a virtual machine or, on Windows, WSL 2"
        )
