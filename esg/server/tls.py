"""TLS: the SSL context of one generation, and the `tls` extension of a connection's scopes.

The context is made in the arbiter whenever the settings are read. So a bad certificate stops the
startup or the reload, a reload loads a renewed certificate, and all workers share the keys of
session tickets.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable
from typing import Any, cast

from esg.errors import ConfigError
from esg.settings.schema import Config

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
CERT_REQS = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
PROTOCOL_NUMBERS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
"""The numbers of versions on the wire (RFC 5246 and RFC 8446, appendix D)."""

DEPENDENT = (
    "ssl_keyfile",
    "ssl_keyfile_password",
    "ssl_version",
    "ssl_cert_reqs",
    "ssl_ca_certs",
    "ssl_ciphers",
)
"""Settings that have no meaning without a certificate."""

_CERTIFICATE = re.compile(
    r"-----BEGIN CERTIFICATE-----\s.*?-----END CERTIFICATE-----", re.DOTALL
)  # RFC 7468, section 5

# OpenSSL's names, and the short names of RFC 4514, section 3. Other attributes keep OpenSSL's name.
_SHORT_NAMES = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}


class ServerContext(ssl.SSLContext):
    """An SSLContext with the attributes that scopes need. `described` sets them."""

    certificate: str | None
    """The certificate that is sent to clients, in PEM; None if it isn't known."""
    cipher_numbers: dict[str, int]
    """The number of each cipher suite on the wire."""


def server_context(
    config: Config, factory: Callable[..., Any] | None = None
) -> ServerContext | None:
    """The context that the TLS settings describe, or None if they turn TLS off.

    If the settings say that a function makes the context, `factory` is that function. Raises
    ConfigError for whatever would keep ESG from serving TLS with these settings.
    """
    if config.has_ssl_context_factory:
        return _made(config, factory)
    _check_together(config)
    return _usual_context(config) if config.ssl_certfile else None


def described(context: ssl.SSLContext, certificate: str | None) -> ServerContext:
    """Set the attributes of `ServerContext` on a context; returns the same context."""
    context = cast(ServerContext, context)
    context.certificate = certificate
    context.cipher_numbers = {
        cipher["name"]: cipher["id"] & 0xFFFF for cipher in context.get_ciphers()
    }
    return context


def _made(config: Config, factory: Any) -> ServerContext:
    """What `ssl_context_factory` makes; called as uvicorn calls it."""
    where = "argument ssl_context_factory"

    def usual() -> ssl.SSLContext:
        if not config.ssl_certfile:
            raise ConfigError(
                f"{where}: the function that it is given needs ssl_certfile; give that, too, or "
                "make the context without calling the function"
            )
        _check_together(config)
        return _usual_context(config)

    try:
        context = factory(config, usual)
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{where}: it failed: {reason}") from error
    if not isinstance(context, ssl.SSLContext):
        raise ConfigError(f"{where}: it returned {context!r}, not an ssl.SSLContext")
    if context.protocol == ssl.PROTOCOL_TLS_CLIENT:
        raise ConfigError(f"{where}: it returned a context for clients; use PROTOCOL_TLS_SERVER")
    return described(context, getattr(context, "certificate", None))


def _usual_context(config: Config) -> ServerContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[config.ssl_version]
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    certificate = _load_certificate(context, config)
    _set_verification(context, config)
    if config.ssl_ciphers:
        try:
            context.set_ciphers(config.ssl_ciphers)
        except ssl.SSLError:
            origin = config.origin("ssl_ciphers")
            raise ConfigError(
                f"{origin}: {config.ssl_ciphers!r} selects no cipher; see: openssl ciphers -v"
            ) from None
    return described(context, certificate)


def _check_together(config: Config) -> None:
    if not config.ssl_certfile:
        for name in DEPENDENT:
            if getattr(config, name) != getattr(Config, name):
                raise ConfigError(
                    f"{config.origin(name)}: TLS needs a certificate, too; give --ssl-certfile"
                )
        return
    if config.ssl_cert_reqs != "none" and not config.ssl_ca_certs:
        raise ConfigError(
            f"{config.origin('ssl_cert_reqs')}: clients' certificates can't be checked without "
            "authorities; give --ssl-ca-certs"
        )
    if config.ssl_ciphers and config.ssl_version == "1.3":
        raise ConfigError(
            f"{config.origin('ssl_ciphers')}: TLS 1.3 has ciphers of its own; leave this out"
        )


def _certificate(config: Config) -> str:
    """The first certificate in the file of `--ssl-certfile`, in PEM."""
    found = _CERTIFICATE.search(_read(config.ssl_certfile, config.origin("ssl_certfile")))
    if found is None:
        raise ConfigError(
            f"{config.origin('ssl_certfile')}: no certificate in {config.ssl_certfile!r}; expected "
            "PEM, which begins with -----BEGIN CERTIFICATE-----"
        )
    return found[0] + "\n"


def _load_certificate(context: ssl.SSLContext, config: Config) -> str:
    """Load certificate and key; returns the certificate, in PEM."""
    certfile = config.ssl_certfile
    keyfile = config.ssl_keyfile or certfile
    certificate = _certificate(config)
    key_origin = config.origin("ssl_keyfile" if config.ssl_keyfile else "ssl_certfile")
    if "PRIVATE KEY-----" not in _read(keyfile, key_origin):
        raise ConfigError(
            f"{key_origin}: no private key in {keyfile!r}; expected PEM"
            + ("" if config.ssl_keyfile else ", or the key's file as --ssl-keyfile")
        )
    asked = False

    def password() -> str:
        nonlocal asked
        asked = True  # without this function OpenSSL would ask on the terminal
        return config.ssl_keyfile_password

    try:
        context.load_cert_chain(certfile, keyfile, password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(_why_not_loaded(config, keyfile, key_origin, error, asked)) from None
    if config.ssl_keyfile_password and not asked:
        raise ConfigError(
            f"{config.origin('ssl_keyfile_password')}: the key in {keyfile!r} has no password; "
            "leave this out"
        )
    return certificate


def _why_not_loaded(
    config: Config, keyfile: str, key_origin: str, error: Exception, asked: bool
) -> str:
    if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
        return (
            f"{key_origin}: the private key in {keyfile!r} doesn't belong to the certificate in "
            f"{config.ssl_certfile!r}"
        )
    if asked and config.ssl_keyfile_password:
        origin = config.origin("ssl_keyfile_password")
        return f"{origin}: this isn't the password of the private key in {keyfile!r}"
    if asked:
        return (
            f"{key_origin}: the private key in {keyfile!r} has a password; "
            "give --ssl-keyfile-password"
        )
    reason = getattr(error, "reason", None) or "not valid PEM"
    return (
        f"{config.origin('ssl_certfile')}: OpenSSL can't load the certificate in "
        f"{config.ssl_certfile!r} with the private key in {keyfile!r}: {reason}"
    )


def _read(path: str, origin: str) -> str:
    try:
        with open(path, encoding="latin-1") as file:
            return file.read()
    except OSError as error:
        why = error.strerror or os.strerror(error.errno or 0)
        raise ConfigError(f"{origin}: {path!r} can't be read: {why}") from None


def _set_verification(context: ssl.SSLContext, config: Config) -> None:
    context.verify_mode = CERT_REQS[config.ssl_cert_reqs]
    if not config.ssl_ca_certs:
        return
    origin = config.origin("ssl_ca_certs")
    _read(config.ssl_ca_certs, origin)
    try:
        context.load_verify_locations(config.ssl_ca_certs)
    except (ssl.SSLError, OSError):
        raise ConfigError(
            f"{origin}: no certificates in {config.ssl_ca_certs!r}; expected PEM"
        ) from None


# -- one connection --------------------------------------------------------------------------


def tls_extension(context: ServerContext, connection: ssl.SSLObject) -> dict[str, Any]:
    """The `tls` extension of a connection's scopes, after the handshake.

    https://asgi.readthedocs.io/en/latest/specs/tls.html, version 0.2. `client_cert_error` is always
    None: if the client's certificate can't be verified, the handshake fails.
    """
    cipher, version = connection.cipher(), connection.version()
    certificate = connection.getpeercert()
    return {
        "server_cert": context.certificate,
        "client_cert_chain": client_chain(connection),
        "client_cert_name": distinguished_name(certificate) if certificate else None,
        "client_cert_error": None,
        "tls_version": PROTOCOL_NUMBERS.get(version or ""),
        "cipher_suite": context.cipher_numbers.get(cipher[0]) if cipher else None,
    }


def client_chain(connection: Any) -> tuple[str, ...]:
    """The certificates that the client sent, its own first, in PEM.

    Only its own is known before Python 3.13, and in a resumed session.
    """
    own = connection.getpeercert(binary_form=True)
    if own is None:
        return ()
    get_chain = getattr(connection, "get_unverified_chain", list)
    chain = get_chain() or [own]
    return tuple(ssl.DER_cert_to_PEM_cert(certificate) for certificate in chain)


def distinguished_name(certificate: Any) -> str:
    """The subject of a certificate from `getpeercert`, in the form of RFC 4514."""
    names = ["+".join(_attribute(*pair) for pair in names) for names in certificate["subject"]]
    return ",".join(reversed(names))


def _attribute(kind: str, value: str) -> str:
    escaped = re.sub(r'([\\"+,;<>])', r"\\\1", value).replace("\0", "\\00")
    if escaped[:1] in ("#", " "):
        escaped = "\\" + escaped
    if escaped[-1:] == " " and len(value) > 1:
        escaped = escaped[:-1] + "\\ "
    return f"{_SHORT_NAMES.get(kind, kind)}={escaped}"
