"""The TLS settings: errors are one clear line; and the scope of a TLS connection."""

from __future__ import annotations

import dataclasses
import ssl
from pathlib import Path

import pytest

from esg.errors import ConfigError
from esg.server.prepare import prepare
from esg.server.tls import client_chain, distinguished_name, server_context
from esg.settings.build import Raw, build
from esg.settings.kinds import CERT_REQS, TLS_VERSION
from esg.settings.objects import Objects
from esg.settings.schema import Config
from tests.support.certificates import Authority, encrypted


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def pair(authority):
    return authority.issue()


def config(**values):
    given = {"app": "example:app"} | values
    flags = {name: "--" + name.replace("_", "-") for name in given}
    return build({name: Raw(value, flags[name]) for name, value in given.items()})


def refusal(**values):
    """The one-line error for these settings."""
    with pytest.raises(ConfigError) as caught:
        server_context(config(**values))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- ssl_context_factory -----------------------------------------------------------------


def made_by(factory, **values):
    """Settings with this factory, and the factory among the objects."""
    return dataclasses.replace(config(**values), has_ssl_context_factory=True), Objects(
        ssl_context_factory=factory
    )


def test_a_factory_changes_the_usual_context(pair):
    certfile, keyfile = pair
    seen = []

    def factory(its_config, usual):
        seen.append(its_config.ssl_certfile)
        context = usual()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    made, _ = made_by(factory, ssl_certfile=certfile, ssl_keyfile=keyfile)
    context = server_context(made, factory)
    assert seen == [certfile]
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert context.certificate in Path(certfile).read_text()


def test_a_factory_makes_a_context_of_its_own(pair):
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made, objects = made_by(lambda *_: own)
    assert made.scheme == "https"
    context = server_context(made, objects.ssl_context_factory)
    assert context is own
    assert context.certificate is None
    assert 0x1302 in context.cipher_numbers.values()


def test_a_factory_is_asked_again_at_each_reload(pair):
    calls = []

    def factory(*_):
        calls.append(1)
        return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    made = made_by(factory)
    prepare(*made)
    prepare(*made)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (lambda config, usual: usual(), "needs ssl_certfile"),
        (lambda config, usual: None, "returned None, not an ssl.SSLContext"),
        (lambda config, usual: 1 / 0, "failed: ZeroDivisionError: division by zero"),
        (lambda: None, "failed: TypeError"),
        (lambda *_: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "a context for clients"),
    ],
)
def test_bad_factories_are_refused(factory, told):
    with pytest.raises(ConfigError, match=f"^argument ssl_context_factory: .*{told}"):
        prepare(*made_by(factory))


# -- the settings ------------------------------------------------------------------------


def test_without_a_certificate_there_is_no_tls():
    assert server_context(config()) is None
    assert config().scheme == "http"


def test_a_context_has_safe_options_and_its_certificate(pair):
    certfile, keyfile = pair
    made = config(ssl_certfile=certfile, ssl_keyfile=keyfile)
    context = server_context(made)
    assert made.scheme == "https"
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.certificate in Path(certfile).read_text()
    assert context.cipher_numbers["TLS_AES_256_GCM_SHA384"] == 0x1302
    assert prepare(made).objects.ssl_context.certificate == context.certificate
    assert prepare(made).config == made


def test_key_and_certificate_may_be_in_one_file(pair, tmp_path):
    both = tmp_path / "both.pem"
    both.write_text(Path(pair[1]).read_text() + Path(pair[0]).read_text())
    assert server_context(config(ssl_certfile=str(both))) is not None


def test_an_encrypted_key_needs_its_password(pair):
    certfile, keyfile = pair
    values = {"ssl_certfile": certfile, "ssl_keyfile": encrypted(keyfile, "sesame")}
    assert server_context(config(ssl_keyfile_password="sesame", **values)) is not None
    assert "--ssl-keyfile: " in refusal(**values)
    assert "give --ssl-keyfile-password" in refusal(**values)
    told = refusal(ssl_keyfile_password="open", **values)
    assert told.startswith("--ssl-keyfile-password: ")
    assert "isn't the password" in told
    assert "isn't the password" in refusal(ssl_keyfile_password="x" * 5000, **values)


def test_a_password_for_a_key_that_has_none_is_refused(pair):
    told = refusal(ssl_certfile=pair[0], ssl_keyfile=pair[1], ssl_keyfile_password="sesame")
    assert "has no password" in told


def test_a_missing_file_is_refused(pair, tmp_path):
    missing = str(tmp_path / "missing.pem")
    assert refusal(ssl_certfile=missing) == (
        f"--ssl-certfile: {missing!r} can't be read: No such file or directory"
    )
    assert refusal(ssl_certfile=pair[0], ssl_keyfile=missing).startswith("--ssl-keyfile: ")
    told = refusal(
        ssl_certfile=pair[0], ssl_keyfile=pair[1], ssl_cert_reqs="required", ssl_ca_certs=missing
    )
    assert told.startswith("--ssl-ca-certs: ")
    assert "Is a directory" in refusal(ssl_certfile=str(tmp_path))


def test_a_file_with_other_content_is_refused(pair, tmp_path):
    junk = tmp_path / "junk.pem"
    junk.write_bytes(b"\x30\x82\xff\x00 no PEM")
    assert "no certificate in" in refusal(ssl_certfile=str(junk))
    assert "no private key in" in refusal(ssl_certfile=pair[0], ssl_keyfile=str(junk))
    assert "or the key's file as --ssl-keyfile" in refusal(ssl_certfile=pair[0])
    told = refusal(
        ssl_certfile=pair[0], ssl_keyfile=pair[1], ssl_cert_reqs="required", ssl_ca_certs=str(junk)
    )
    assert "no certificates in" in told
    junk.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    assert "can't load" in refusal(ssl_certfile=str(junk), ssl_keyfile=pair[1])
    junk.write_text("-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n")
    assert "can't load" in refusal(ssl_certfile=pair[0], ssl_keyfile=str(junk))


def test_a_key_of_another_certificate_is_refused(pair, authority):
    _, other = authority.issue("other")
    told = refusal(ssl_certfile=pair[0], ssl_keyfile=other)
    assert told.startswith("--ssl-keyfile: ")
    assert "doesn't belong to the certificate" in told


def test_ciphers_can_be_chosen(pair):
    values = {"ssl_certfile": pair[0], "ssl_keyfile": pair[1]}
    context = server_context(config(ssl_ciphers="ECDHE+CHACHA20", **values))
    names = {c["name"] for c in context.get_ciphers() if c["protocol"] == "TLSv1.2"}
    assert names
    assert all("CHACHA20" in name for name in names)
    assert refusal(ssl_ciphers="NONSENSE", **values).startswith("--ssl-ciphers: 'NONSENSE'")
    assert "of its own" in refusal(ssl_ciphers="ECDHE+CHACHA20", ssl_version="1.3", **values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ssl_keyfile", "key.pem"),
        ("ssl_keyfile_password", "sesame"),
        ("ssl_ca_certs", "ca.pem"),
        ("ssl_cert_reqs", "required"),
        ("ssl_version", "1.3"),
        ("ssl_ciphers", "ECDHE"),
    ],
)
def test_other_tls_settings_need_a_certificate(name, value):
    told = refusal(**{name: value})
    assert told.startswith(f"--{name.replace('_', '-')}: ")
    assert "give --ssl-certfile" in told


def test_clients_certificates_need_authorities(pair, authority):
    values = {"ssl_certfile": pair[0], "ssl_keyfile": pair[1]}
    assert "give --ssl-ca-certs" in refusal(ssl_cert_reqs="optional", **values)


def test_authorities_that_check_no_client_cause_a_warning():
    assert not list(Config(app="a:b", ssl_ca_certs="c", ssl_cert_reqs="optional").notices())
    ((level, text),) = Config(app="a:b", ssl_ca_certs="c").notices()
    assert level == "warning"
    assert "--ssl-cert-reqs required" in text


@pytest.mark.parametrize(
    ("raw", "version"),
    [
        ("1.2", "1.2"),
        ("1.3", "1.3"),
        (1.3, "1.3"),
        ("tlsv1.3", "1.3"),
        ("TLSv1_2", "1.2"),
        ("TLS_SERVER", "1.2"),
        ("SSLv23", "1.2"),
        (int(ssl.PROTOCOL_TLS_SERVER), "1.2"),
        (int(ssl.PROTOCOL_TLS), "1.2"),
        ("5", "1.2"),
    ],
)
def test_versions_have_several_names(raw, version):
    assert TLS_VERSION.parse(raw) == version


@pytest.mark.parametrize(
    "raw", ["1.1", "1.0", "TLSv1", "TLSv1_1", "SSLv3", "3", "4", "16", "", 2.0]
)
def test_an_old_version_is_refused(raw):
    with pytest.raises(ValueError, match=r"1\.2 or 1\.3"):
        TLS_VERSION.parse(raw)


@pytest.mark.parametrize(
    ("raw", "value"),
    [(0, "none"), ("1", "optional"), (2, "required"), ("CERT_REQUIRED", "required")],
)
def test_cert_reqs_have_several_names(raw, value):
    assert CERT_REQS.parse(raw) == value


@pytest.mark.parametrize("raw", ["3", "-1", "yes", ""])
def test_invalid_cert_reqs(raw):
    with pytest.raises(ValueError, match="none, optional or required"):
        CERT_REQS.parse(raw)


def test_trusted_proxies_are_checked_before_any_worker_starts():
    with pytest.raises(ConfigError, match=r"--forwarded-allow-ips: '10\.0\.0\.256'"):
        prepare(config(forwarded_allow_ips="127.0.0.1, 10.0.0.256"))
    with pytest.raises(ConfigError, match=r"--proxy-protocol: no proxy is trusted"):
        prepare(config(proxy_protocol=True, forwarded_allow_ips=[]))


# -- in the scope ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        ([[("commonName", "alice")]], "CN=alice"),
        (
            [[("countryName", "SE")], [("organizationName", "A, B")], [("commonName", "alice")]],
            r"CN=alice,O=A\, B,C=SE",
        ),
        (
            [[("organizationalUnitName", "Sales"), ("commonName", "J.  Smith")]],
            "OU=Sales+CN=J.  Smith",
        ),
        ([[("emailAddress", "a@b")]], "emailAddress=a@b"),
        ([[("commonName", ' #"+,;<>\\ ')]], r"CN=\ #\"\+\,\;\<\>\\\ "),
        ([[("commonName", "#1")]], r"CN=\#1"),
        ([[("commonName", " ")]], r"CN=\ "),
        ([[("commonName", "a\0b")]], r"CN=a\00b"),
        ([[("commonName", "")]], "CN="),
        ([], ""),
    ],
)
def test_a_distinguished_name_is_written_as_in_rfc_4514(subject, name):
    assert distinguished_name({"subject": subject}) == name


class Session:
    """An SSLObject whose client has presented a certificate."""

    def getpeercert(self, binary_form):
        return b"own"


class SessionWithChain(Session):
    """The same in Python 3.13."""

    def __init__(self, chain):
        self._chain = chain

    def get_unverified_chain(self):
        return self._chain


def test_a_clients_chain_begins_with_its_own_certificate():
    own, more = ssl.DER_cert_to_PEM_cert(b"own"), ssl.DER_cert_to_PEM_cert(b"more")
    assert client_chain(Session()) == (own,)
    assert client_chain(SessionWithChain([b"own", b"more"])) == (own, more)
    assert client_chain(SessionWithChain([])) == (own,)
