"""Parses the text of a `--bind` into an address, a UNIX socket or a descriptor."""

from __future__ import annotations

import os
import re

from esg.errors import ConfigError
from esg.frozen import frozen
from esg.net.unixsocket import LONGEST_PATH

_PORT = re.compile(r"[0-9]{1,5}")
_NAME = re.compile(r"[A-Za-z0-9_@][A-Za-z0-9._@-]*")
_DESCRIPTOR = re.compile(r"[0-9]{1,10}")
_HIGHEST_DESCRIPTOR = 2**31 - 1  # a C int


@frozen
class Address:
    """A TCP address to listen on, as the operator wrote it."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@frozen
class UnixAddress:
    """A UNIX socket to listen on: a path, or an abstract name that begins with `@` (unix(7))."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    @property
    def kernel_name(self) -> str:
        """The name for bind(2)."""
        return "\0" + self.path[1:] if self.path.startswith("@") else self.path


@frozen
class Descriptor:
    """An inherited socket: its descriptor, or its name in LISTEN_FDNAMES."""

    which: int | str

    def __str__(self) -> str:
        return f"fd://{self.which}"


Bind = Address | UnixAddress | Descriptor


def parse_bind(text: str, origin: str) -> Bind:
    """Read `HOST:PORT`, `[V6]:PORT`, `HOST`, `unix:PATH`, `unix:@NAME`, `fd://N` or `fd://NAME`.

    The first three may have gunicorn's `tcp://` in front. Raises ConfigError, which names `origin`.
    """
    if text.startswith("unix:"):
        return _parse_unix(text, origin)
    if text.startswith("fd://"):
        return _parse_descriptor(text, origin)
    address = text.removeprefix("tcp://")
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, "8000"
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"{origin}: {text!r}: write an IPv6 address in brackets, [::1]:8000")
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise ConfigError(f"{origin}: {text!r}: expected HOST:PORT with a port from 0 to 65535")
    if not _is_host(host):
        raise ConfigError(f"{origin}: {text!r}: {host!r} can't be the name of a host")
    return Address(host, int(port))


def _is_host(host: str) -> bool:
    """Whether a name can be looked up: labels have 1 to 63 bytes (RFC 1035, section 2.3.4)."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def _parse_unix(text: str, origin: str) -> UnixAddress:
    path = text.removeprefix("unix:")
    if path.startswith("//"):
        path = path[2:]
    if path in ("", "@"):
        raise ConfigError(f"{origin}: {text!r}: expected unix:PATH or unix:@NAME")
    size = len(os.fsencode(path))
    if size > LONGEST_PATH:
        raise ConfigError(
            f"{origin}: {text!r} has {size} bytes, but the path of a UNIX socket has at most "
            f"{LONGEST_PATH}; choose a shorter one"
        )
    return UnixAddress(path)


def _parse_descriptor(text: str, origin: str) -> Descriptor:
    which = text.removeprefix("fd://")
    if which.isascii() and which.isdigit():
        if not _DESCRIPTOR.fullmatch(which) or int(which) > _HIGHEST_DESCRIPTOR:
            raise ConfigError(f"{origin}: {text!r}: the number is too high for a descriptor")
        return Descriptor(int(which))
    if not _NAME.fullmatch(which):
        raise ConfigError(
            f"{origin}: {text!r}: expected fd://N, or fd://NAME with a name of LISTEN_FDNAMES"
        )
    return Descriptor(which)
