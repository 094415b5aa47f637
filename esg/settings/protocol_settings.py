"""Declarations of the settings of the protocols: HTTP, WebSocket, limits, TLS."""

from __future__ import annotations

import dataclasses

from esg.settings.declaration import HTTP, LIMITS, TLS, WEBSOCKET, setting
from esg.settings.kinds import (
    BOOLEAN,
    CERT_REQS,
    HEADERS,
    ITEMS,
    SWITCH,
    TEXT,
    TLS_VERSION,
    choice,
    seconds,
    size,
    whole_number,
)


@dataclasses.dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class HTTPSettings:
    """How requests are read and answered."""

    loop: str = setting(
        "auto",
        choice("auto", "asyncio", "uvloop"),
        HTTP,
        "Event loop; auto: uvloop if it is installed.",
        flags=("--asgi-loop", "--loop"),
    )
    http: str = setting(
        "auto",
        choice("auto", "httptools", "h11"),
        HTTP,
        "HTTP parser; auto: httptools if it is installed.",
    )
    sendfile: bool = setting(
        False,
        SWITCH,
        HTTP,
        "Let the kernel send the files of ASGI applications (extensions http.response.pathsend and "
        "zerocopysend). "
        "Middleware that reads or changes response bodies doesn't see these files.",
    )
    threads: int = setting(
        0,
        whole_number(0, 1024),
        HTTP,
        "Threads per worker that run a WSGI application; 0: 4 per CPU, at least 8, at most 32.",
    )
    timeout_keep_alive: float = setting(
        5.0,
        seconds(),
        HTTP,
        "Close a connection if no further request arrives on it for this long.",
        flags=("--timeout-keep-alive", "--keep-alive"),
    )
    proxy_headers: bool = setting(
        True,
        SWITCH,
        HTTP,
        "Take the client's address, scheme and host from the X-Forwarded-* or Forwarded fields of "
        "trusted proxies.",
    )
    forwarded_allow_ips: tuple[str, ...] = setting(
        ("127.0.0.1", "::1"),
        ITEMS,
        HTTP,
        "Proxies whose X-Forwarded-* fields are believed: addresses, CIDR ranges, unix: for UNIX "
        "sockets, or * for everybody.",
        environment=("FORWARDED_ALLOW_IPS",),
    )
    proxy_protocol: bool = setting(
        False,
        SWITCH,
        HTTP,
        "Expect a PROXY protocol header (v1 or v2) on each connection; only proxies in "
        "--forwarded-allow-ips may connect.",
    )
    server_header: bool = setting(True, SWITCH, HTTP, "Add a Server field to responses.")
    date_header: bool = setting(True, SWITCH, HTTP, "Add a Date field to responses.")
    header: tuple[str, ...] = setting(
        (), HEADERS, HTTP, "Add this field to every response; repeatable."
    )
    http2: bool = setting(False, SWITCH, HTTP, "Serve HTTP/2 as well.", pending=True)


@dataclasses.dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class WebSocketSettings:
    """How WebSockets are served."""

    ws: str = setting(
        "auto",
        choice("auto", "none", "websockets", "websockets-sansio", "wsproto"),
        WEBSOCKET,
        "Library for WebSockets; auto: websockets if it is installed; none: no WebSockets.",
    )
    ws_max_size: int = setting(
        16777216,
        size(0),
        WEBSOCKET,
        "Largest message from a client, in bytes (else close with 1009); 0: no limit.",
        flags=("--websocket-max-message-size", "--ws-max-size"),
    )
    ws_max_queue: int = setting(
        32,
        whole_number(0),
        WEBSOCKET,
        "Messages of one client that may wait for APP; 0: only their size in bytes is limited.",
    )
    ws_max_buffered: int = setting(
        268435456,
        size(0),
        WEBSOCKET,
        "Memory that one worker may use for WebSocket messages that are incomplete or wait for "
        "APP, in bytes (else close with 1013); 0: no limit.",
    )
    ws_message_timeout: float = setting(
        60.0,
        seconds(),
        WEBSOCKET,
        "Time a client may take to send one message (else close with 1008); 0: no limit.",
    )
    ws_ping_interval: float = setting(
        20.0, seconds(), WEBSOCKET, "Send a ping this often; 0: never."
    )
    ws_ping_timeout: float = setting(
        20.0,
        seconds(),
        WEBSOCKET,
        "Close the connection if the client doesn't answer a ping for this long; 0: never.",
    )
    ws_per_message_deflate: bool = setting(
        True, BOOLEAN, WEBSOCKET, "Compress messages if the client supports it."
    )
    ws_handshake_timeout: float = setting(
        20.0,
        seconds(0.1),
        WEBSOCKET,
        "Time APP may take to accept or refuse a WebSocket (else 503).",
    )


@dataclasses.dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class LimitSettings:
    """What clients may send, and how long they may take."""

    limit_request_line: int = setting(
        8190, size(64), LIMITS, "Longest request target, in bytes (else 414)."
    )
    limit_request_fields: int = setting(
        100, whole_number(1), LIMITS, "Most header fields in a request (else 431)."
    )
    limit_request_header_size: int = setting(
        65536,
        size(256),
        LIMITS,
        "Largest header section of a request, in bytes (else 431).",
        flags=("--h11-max-incomplete-event-size", "--limit-request-header-size"),
    )
    limit_request_body: int = setting(
        0, size(0), LIMITS, "Largest request body, in bytes (else 413); 0: no limit."
    )
    timeout_request_header: float = setting(
        10.0,
        seconds(0.1),
        LIMITS,
        "Time a client may take to send a request's header section (else 408).",
    )
    timeout_request_body: float = setting(
        60.0, seconds(0.1), LIMITS, "Answer 408 if no more of a request body arrives for this long."
    )
    timeout_send: float = setting(
        60.0,
        seconds(0.1),
        LIMITS,
        "Close the connection if the client reads nothing of a response for this long.",
    )

    limit_concurrency: int = setting(
        0,
        whole_number(0),
        LIMITS,
        "Requests and WebSockets that one worker handles at the same time (else 503), background "
        "tasks included; idle connections don't count; 0: no limit.",
    )
    limit_connections: int = setting(
        0,
        whole_number(0),
        LIMITS,
        "Connections that one worker accepts at the same time; more wait in the queue; 0: no "
        "limit.",
        flags=("--worker-connections", "--limit-connections"),
    )
    request_timeout: float = setting(
        0.0,
        seconds(),
        LIMITS,
        "Cancel a request that takes longer than this, and log where it was; 0: never.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)
class TLSSettings:
    """Certificates, and the rules for connections."""

    ssl_keyfile: str = setting(
        "", TEXT, TLS, "Private key, in PEM.", flags=("--keyfile", "--ssl-keyfile")
    )
    ssl_certfile: str = setting(
        "",
        TEXT,
        TLS,
        "Certificate with its chain, in PEM; turns TLS on.",
        flags=("--certfile", "--ssl-certfile"),
    )
    ssl_keyfile_password: str = setting("", TEXT, TLS, "Password of the private key.", secret=True)
    ssl_version: str = setting(
        "1.2",
        TLS_VERSION,
        TLS,
        "Oldest TLS version that clients may use: 1.2 or 1.3.",
    )
    ssl_cert_reqs: str = setting(
        "none",
        CERT_REQS,
        TLS,
        "Whether clients must present a certificate.",
        flags=("--cert-reqs", "--ssl-cert-reqs"),
    )
    ssl_ca_certs: str = setting(
        "",
        TEXT,
        TLS,
        "Certificates of the authorities that sign clients' certificates, in PEM.",
        flags=("--ca-certs", "--ssl-ca-certs"),
    )
    ssl_ciphers: str = setting(
        "",
        TEXT,
        TLS,
        "Ciphers for TLS 1.2, in OpenSSL's notation.",
        flags=("--ciphers", "--ssl-ciphers"),
    )

    ssl_handshake_timeout: float = setting(
        10.0, seconds(0.1), TLS, "Time a client may take for the TLS handshake."
    )
