"""A TLS client that calls OpenSSL directly, because Python's `ssl` can't send KeyUpdate."""

from __future__ import annotations

import ctypes
import ctypes.util

import pytest

_POINTER = ctypes.c_void_p


def _library(name: str) -> ctypes.CDLL:
    path = ctypes.util.find_library(name)
    if path is None:
        pytest.skip(f"no lib{name} to load")
    return ctypes.CDLL(path)


class OpenSSL:
    """A TLS 1.3 client that can send KeyUpdate messages (RFC 8446, section 4.6.3)."""

    def __init__(self) -> None:
        ssl, crypto = _library("ssl"), _library("crypto")
        for library, name, result, *arguments in (
            (ssl, "TLS_client_method", _POINTER),
            (ssl, "SSL_CTX_new", _POINTER, _POINTER),
            (ssl, "SSL_new", _POINTER, _POINTER),
            (ssl, "SSL_free", None, _POINTER),
            (ssl, "SSL_CTX_free", None, _POINTER),
            (ssl, "SSL_set_bio", None, _POINTER, _POINTER, _POINTER),
            (ssl, "SSL_set_connect_state", None, _POINTER),
            (ssl, "SSL_do_handshake", ctypes.c_int, _POINTER),
            (ssl, "SSL_key_update", ctypes.c_int, _POINTER, ctypes.c_int),
            (ssl, "SSL_write", ctypes.c_int, _POINTER, ctypes.c_char_p, ctypes.c_int),
            (crypto, "BIO_s_mem", _POINTER),
            (crypto, "BIO_new", _POINTER, _POINTER),
            (crypto, "BIO_write", ctypes.c_int, _POINTER, ctypes.c_char_p, ctypes.c_int),
            (crypto, "BIO_read", ctypes.c_int, _POINTER, ctypes.c_char_p, ctypes.c_int),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self._lib, self._crypto = ssl, crypto
        self._context = ssl.SSL_CTX_new(ssl.TLS_client_method())
        self._ssl = ssl.SSL_new(self._context)
        self._in = crypto.BIO_new(crypto.BIO_s_mem())
        self._out = crypto.BIO_new(crypto.BIO_s_mem())
        ssl.SSL_set_bio(self._ssl, self._in, self._out)
        ssl.SSL_set_connect_state(self._ssl)

    def close(self) -> None:
        self._lib.SSL_free(self._ssl)
        self._lib.SSL_CTX_free(self._context)

    def take(self, data: bytes) -> bool:
        """Take data from the server; returns whether the handshake is complete."""
        self._crypto.BIO_write(self._in, data, len(data))
        return self._lib.SSL_do_handshake(self._ssl) == 1

    def sent(self) -> bytes:
        """Data to send to the server, at most 64 KiB."""
        buffer = ctypes.create_string_buffer(1 << 16)
        size = self._crypto.BIO_read(self._out, buffer, len(buffer))
        return buffer.raw[: max(0, size)]

    def data(self, content: bytes) -> bytes:
        """The records with this content."""
        assert self._lib.SSL_write(self._ssl, content, len(content)) == len(content)
        return self.sent()

    def key_update(self, *, answer: bool = True) -> bytes:
        """The record of a KeyUpdate; with `answer` it asks the server to update its keys, too."""
        assert self._lib.SSL_key_update(self._ssl, int(answer)) == 1
        assert self._lib.SSL_do_handshake(self._ssl) == 1
        return self.sent()
