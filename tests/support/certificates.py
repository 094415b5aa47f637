"""Certificates for tests: an authority, servers and clients, as PEM files."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization


class Authority:
    """A certificate authority that writes its certificates and keys into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.file = str(folder / "ca.pem")
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, name: str = "server", common_name: str | None = None) -> tuple[str, str]:
        """A new certificate for 127.0.0.1: the files of its chain and of its key."""
        issued = self._ca.issue_cert("127.0.0.1", "localhost", common_name=common_name)
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return str(certificate), str(key)

    def client_context(self, certificate: tuple[str, str] | None = None) -> ssl.SSLContext:
        """A context that trusts only this authority, with a certificate if one is given."""
        context = ssl.create_default_context(cafile=self.file)
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return context


def encrypted(key: str, password: str) -> str:
    """The file of a private key, encrypted with a password."""
    loaded: Any = serialization.load_pem_private_key(Path(key).read_bytes(), None)
    path = Path(key).with_suffix(".encrypted")
    path.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password.encode()),
        )
    )
    return str(path)


def serial_number(certificate: str | bytes) -> int:
    """The serial number of the first certificate of a PEM file, or of one in DER."""
    if isinstance(certificate, bytes):
        return x509.load_der_x509_certificate(certificate).serial_number
    return x509.load_pem_x509_certificate(Path(certificate).read_bytes()).serial_number
