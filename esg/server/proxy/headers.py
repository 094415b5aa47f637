"""The client's address and scheme from trusted proxies: X-Forwarded-* and Forwarded (RFC 7239).

A proxy appends to these fields and passes on what it received. So the rightmost element comes from
the peer, and every other element comes from the address that the element to its right names. The
elements are read from right to left, up to the first address that isn't trusted: that is the
client. Reading also stops at an element that can't be parsed, which is never the client.

If a request has both kinds of fields, X-Forwarded-* is used and Forwarded is ignored. Most proxies
write X-Forwarded-*, and pass on a Forwarded field from the client unread.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from esg.errors import ConfigError
from esg.server.asgi.types import Endpoint, Headers, Scope
from esg.server.memo import Memo
from esg.settings.schema import Config

MOST_HOPS = 64
"""The most elements of a field that are read, from the right; no chain of proxies is longer."""

LONGEST_NODE = 64
"""The most characters that can name a node: an IPv6 address in brackets, and a port."""

MOST_KNOWN, LONGEST_KNOWN = 1024, 384
"""How many results of `read` are remembered, and the most bytes of fields that each may have. One
takes about 5 us to compute.
"""

MOST_NODES = 4096
"""How many parsed addresses are remembered."""

_FORWARDED = b"forwarded"
_FOR, _PROTO = b"x-forwarded-for", b"x-forwarded-proto"
_HOST, _PORT = b"x-forwarded-host", b"x-forwarded-port"

_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
"""The scheme of the HTTP request; for a WebSocket, proxies may say `ws` or `wss`."""

_NODE = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[0-9.]+))"
    r"(?::(?:(?P<port>[0-9]{1,5})|_[A-Za-z0-9._-]+))?|(?P<bare>[0-9A-Fa-f:.]+)"
)
_IDENTIFIER = re.compile(r"(unknown|_[A-Za-z0-9._-]+)(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?", re.I)
_NAME_AND_PORT = re.compile(r"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")

# RFC 7239, section 4. Values with a port or brackets should be quoted, but not all proxies do.
_PAIR = r"""([!#$%&'*+.^_`|~0-9A-Za-z-]+)=([]\[:!#$%&'*+.^_`|~0-9A-Za-z-]+|"(?:[^"\\]|\\.)*")"""
_PAIRS = re.compile(rf"[ \t]*(?:{_PAIR})?[ \t]*(?:;|\Z)")
_ESCAPED = re.compile(r"\\(.)")


Fields = tuple[tuple[bytes, bytes], ...]

Node = tuple[str, int, bool]
"""An address, its port (0 if it has none), and whether the address is trusted."""


class Said(NamedTuple):
    """What trusted proxies say about a request; None where they say nothing that is valid."""

    client: Endpoint | None = None
    scheme: str | None = None
    host: bytes | None = None
    port: int | None = None


class TrustedProxies:
    """The peers that `--forwarded-allow-ips` lists. Pure, apart from `on_untrusted`."""

    def __init__(self, entries: Sequence[str], origin: str) -> None:
        """`origin` is the source of the entries. Raises ConfigError for an invalid entry."""
        self.memo: Memo[Fields, Said] = Memo(MOST_KNOWN, LONGEST_KNOWN)
        """Recent results of `read`. All requests of one client have the same fields."""
        self._trusted: Memo[str | None, bool] = Memo(MOST_NODES, LONGEST_NODE)
        self._nodes: Memo[str, Node | None] = Memo(MOST_NODES, LONGEST_NODE)
        self._everyone = "*" in entries
        self._unnamed = self._everyone or "unix:" in entries
        self._addresses: set[str] = set()
        self._networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network] = []
        self._names: set[str] = set()
        self.on_untrusted: Callable[[str | None, bytes], None] | None = None
        """Called for the first peer that isn't trusted and sends one of the fields, with its
        address (None for a UNIX socket) and the name of the field.
        """
        for entry in entries:
            if entry not in ("*", "unix:"):
                self._add(entry, origin)

    def _add(self, entry: str, origin: str) -> None:
        try:
            if "/" in entry:
                self._networks.append(ipaddress.ip_network(entry))
            else:
                self._addresses.add(_plain(ipaddress.ip_address(entry)))
        except ValueError as error:
            if re.fullmatch(r"[0-9./]+|[0-9A-Fa-f:./]*:[0-9A-Fa-f:./]*", entry):
                raise ConfigError(
                    f"{origin}: {entry!r} is not an address or network ({error}); expected for "
                    "example 10.0.0.1, 10.0.0.0/8, unix: or *"
                ) from None
            self._names.add(entry)

    def trusts(self, host: str | None) -> bool:
        """Whether the peer with this address is trusted; None means a peer on a UNIX socket."""
        trusted = self._trusted.known.get(host)
        if trusted is None:
            trusted = self._trusted.keep(host, self._trusts(host), host or "")
        return trusted

    def _trusts(self, host: str | None) -> bool:
        if self._everyone or host is None:
            return self._unnamed
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return host in self._names
        if _plain(address) in self._addresses:
            return True
        return any(_mapped(address) in network for network in self._networks)

    def concerns(self, host: str | None) -> bool:
        """Whether `heed` has to see the requests of the peer with this address."""
        return self.on_untrusted is not None or self.trusts(host)

    def trusts_name(self, identifier: str) -> bool:
        """Whether an identifier of a proxy (RFC 7239, section 6.3) is trusted."""
        return self._everyone or identifier in self._names

    def node(self, text: str) -> Node | None:
        """The node in an element of X-Forwarded-For, or in a `for` of Forwarded.

        None if the text isn't an address.
        """
        try:
            return self._nodes.known[text]
        except KeyError:
            return self._nodes.keep(text, self._node(text), text)

    def _node(self, text: str) -> Node | None:
        match = _NODE.fullmatch(text) if len(text) <= LONGEST_NODE else None
        if match is None:
            return None
        try:
            if match["v4"]:
                host = str(ipaddress.IPv4Address(match["v4"]))
            elif match["v6"]:
                host = _plain(ipaddress.IPv6Address(match["v6"]))
            else:
                host = _plain(ipaddress.ip_address(match["bare"]))
        except ValueError:
            return None
        port = int(match["port"] or 0)
        return (host, port, self.trusts(host)) if port <= 65535 else None


def _mapped(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address; an IPv4-mapped IPv6 address becomes an IPv4 address."""
    return getattr(address, "ipv4_mapped", None) or address


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return str(_mapped(address))


def trusted_proxies(config: Config) -> TrustedProxies:
    """The trusted proxies of a configuration. Raises ConfigError."""
    return TrustedProxies(config.forwarded_allow_ips, config.origin("forwarded_allow_ips"))


def heed(scope: Scope, proxies: TrustedProxies) -> None:
    """Apply the fields of a request if its peer is trusted; otherwise report the peer, once.

    The scope has at least one of `FIELDS` in its headers. Never raises.
    """
    client = scope["client"]
    host = client and client[0]
    if proxies.trusts(host):
        apply(scope, proxies)
    elif proxies.on_untrusted is not None:
        report, proxies.on_untrusted = proxies.on_untrusted, None
        report(host, next(name for name, _ in scope["headers"] if name in FIELDS))


def apply(scope: Scope, proxies: TrustedProxies) -> None:
    """Update the scope of a request from a trusted peer with what the proxies say.

    Sets `client`, `scheme`, the Host field in `headers`, and the port of `server`. Never raises.
    """
    headers: Headers = scope["headers"]
    said = read(headers, proxies)
    if said.client is not None:
        scope["client"] = said.client
    if said.scheme is not None:
        scope["scheme"] = said.scheme
    if said.host is not None:
        headers[:] = [field for field in headers if field[0] != b"host"]
        headers.insert(0, (b"host", said.host))
    if said.port is not None and scope["server"] is not None:
        scope["server"] = (scope["server"][0], said.port)


def read(headers: Headers, proxies: TrustedProxies) -> Said:
    """What the header section of a request from a trusted peer says about the client."""
    fields = tuple([field for field in headers if field[0] in FIELDS])
    said = proxies.memo.known.get(fields)
    if said is None:
        parts = itertools.chain.from_iterable(fields)  # names count, too: there may be many fields
        said = proxies.memo.keep(fields, _read(fields, proxies), *parts)
    return said


def _read(fields: Fields, proxies: TrustedProxies) -> Said:
    given: dict[bytes, bytes] = {}
    for name, value in fields:
        given[name] = given[name] + b"," + value if name in given else value
    texts = {name: value.decode("latin-1") for name, value in given.items()}
    if texts.keys() == {_FORWARDED}:
        return _read_forwarded(texts[_FORWARDED], proxies)
    return _read_x_forwarded(texts, proxies)


FIELDS = frozenset((_FORWARDED, _FOR, _PROTO, _HOST, _PORT))
"""The fields that `apply` reads, in lower case. A request without them needn't be passed to it."""


# -- X-Forwarded-* ---------------------------------------------------------------------------


def _read_x_forwarded(texts: dict[bytes, str], proxies: TrustedProxies) -> Said:
    client, hops = None, 0
    for element in _listed(texts.get(_FOR, "")):
        node = proxies.node(element)
        if node is None:
            break
        client, hops = (node[0], node[1]), hops + 1
        if not node[2]:
            break
    hops = max(hops, 1)
    return Said(
        client,
        _scheme(_nth_from_right(texts.get(_PROTO), hops)),
        _host(_nth_from_right(texts.get(_HOST), hops)),
        _port(_nth_from_right(texts.get(_PORT), hops)),
    )


def _listed(text: str) -> Iterator[str]:
    """The elements of a list from the right, without empty ones (RFC 9110, section 5.6.1)."""
    for element in reversed(text.rsplit(",", MOST_HOPS)):
        stripped = element.strip(" \t")
        if stripped:
            yield stripped


def _nth_from_right(text: str | None, hops: int) -> str | None:
    """The element from the proxy that the client connected to: number `hops` from the right.

    A proxy may append to a field or replace it. If there are fewer elements, it is the leftmost.
    """
    elements = list(itertools.islice(_listed(text or ""), hops))
    return elements[-1] if elements else None


# -- Forwarded -------------------------------------------------------------------------------


def _read_forwarded(text: str, proxies: TrustedProxies) -> Said:
    said = Said()
    for element in itertools.islice(_elements(text), MOST_HOPS):
        pairs = _pairs(element)
        if pairs is None:
            break
        said = said._replace(
            scheme=_scheme(pairs.get("proto")) or said.scheme,
            host=_host(pairs.get("host")) or said.host,
        )
        name = pairs.get("for", "")
        node = proxies.node(name)
        if node is not None:
            said = said._replace(client=(node[0], node[1]))
            trusted = node[2]
        else:
            identifier = _IDENTIFIER.fullmatch(name[: LONGEST_NODE * 2])
            trusted = identifier is not None and proxies.trusts_name(identifier[1])
        if not trusted:
            break
    return said


def _elements(text: str) -> Iterator[str]:
    """The elements of a Forwarded field from right to left; a comma may be quoted.

    Quotes are matched from the right. So a quote that the client left open can't hide elements that
    proxies appended.
    """
    if '"' not in text:
        yield from _listed(text)
        return
    end, quoted = len(text), False
    for at in range(len(text) - 1, -1, -1):
        char = text[at]
        if char == '"':
            before = text[max(0, at - LONGEST_NODE) : at]
            escaped = (len(before) - len(before.rstrip("\\"))) % 2
            quoted = quoted != (not escaped)
        elif char == "," and not quoted:
            if text[at + 1 : end].strip(" \t"):
                yield text[at + 1 : end]
            end = at
    if text[:end].strip(" \t"):
        yield text[:end]


def _pairs(element: str) -> dict[str, str] | None:
    """The parameters of an element, their names in lower case; None if it is malformed."""
    pairs: dict[str, str] = {}
    at = 0
    while at < len(element):
        match = _PAIRS.match(element, at)
        if match is None:
            return None
        at = match.end()
        if match[1] is not None:
            name, value = match[1].lower(), match[2]
            if name in pairs:
                return None
            pairs[name] = _ESCAPED.sub(r"\1", value[1:-1]) if value[0] == '"' else value
    return pairs


# -- values ----------------------------------------------------------------------------------


def _scheme(text: str | None) -> str | None:
    return _SCHEMES.get(text.lower()) if text is not None else None


def _host(text: str | None) -> bytes | None:
    if text is None or not _NAME_AND_PORT.fullmatch(text):
        return None
    return text.encode("ascii")


def _port(text: str | None) -> int | None:
    if text is None or not re.fullmatch(r"[0-9]{1,5}", text):
        return None
    return int(text) if 0 < int(text) <= 65535 else None
