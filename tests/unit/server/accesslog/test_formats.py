"""The values of a format's atoms, compared with gunicorn's lines; and JSON lines."""

from __future__ import annotations

import base64
import csv
import datetime
import json
import os
import re
import shlex
from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from esg.log.accessformat import ATOMS, PRESETS
from esg.log.records import worker_subject
from esg.server.accesslog.access_log import formatted, json_line

glogging = pytest.importorskip("gunicorn.glogging")

HEADERS = [
    (b"host", b"shop.example"),
    (b"referer", b"http://a.example/?q=1"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux)"),
    (b"authorization", b"Basic am9lOnNlY3JldA=="),
    (b"x-request-id", b"abc-123"),
]


def exchange(**changes):
    """The parts of a finished exchange that a line needs."""
    scope = {
        "client": ("192.0.2.1", 4711),
        "server": ("127.0.0.1", 8000),
        "method": "GET",
        "http_version": "1.1",
        "headers": HEADERS,
        "scheme": "http",
        "root_path": "",
    }
    scope |= {name: changes.pop(name) for name in list(changes) if name in scope}
    values = {
        "target": b"/a/b?c=d&e=f",
        "status": 404,
        "sent": 29,
        "seconds": 2.034567,
        "response_headers": [(b"Content-Type", b"text/plain"), (b"x-cache", b"hit")],
    }
    return SimpleNamespace(scope=scope, **(values | changes))


def of_gunicorn(text, made):
    """The line that gunicorn writes for the same request."""
    path, _, query = made.target.decode("latin-1").partition("?")
    environ = {
        "REMOTE_ADDR": made.scope["client"][0],
        "REQUEST_METHOD": made.scope["method"],
        "RAW_URI": made.target.decode("latin-1"),
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": f"HTTP/{made.scope['http_version']}",
        "SERVER_NAME": made.scope["server"][0],
        "SERVER_PORT": str(made.scope["server"][1]),
        "SCRIPT_NAME": made.scope["root_path"],
        "wsgi.url_scheme": made.scope["scheme"],
    }
    for name, value in made.scope["headers"]:
        environ["HTTP_" + name.decode().upper().replace("-", "_")] = value.decode("latin-1")
    fields = [(n.decode(), v.decode("latin-1")) for n, v in made.response_headers]
    response = SimpleNamespace(status=f"{made.status} X", sent=made.sent, headers=fields)
    request = SimpleNamespace(
        headers=[(n.decode(), v.decode("latin-1")) for n, v in made.scope["headers"]]
    )
    logger = glogging.Logger.__new__(glogging.Logger)
    duration = datetime.timedelta(microseconds=int(made.seconds * 1_000_000))
    atoms = logger.atoms(response, request, environ, duration)
    return text % glogging.SafeAtoms(atoms)


EVERYTHING = " ".join(f"%({name})s" for name in ATOMS) + (
    " %({X-Request-ID}i)s %({none}i)s %({content-type}o)s %({X-Cache}o)s %({none}o)s"
    " %({REQUEST_METHOD}e)s %({server_port}e)s %({HTTP_HOST}e)s %({wsgi.url_scheme}e)s"
)


@pytest.mark.parametrize("text", [EVERYTHING, *PRESETS.values(), "%(D)d %(s)6s|%(B)d %%"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"headers": [], "response_headers": []},
        {"method": "POST", "status": 200, "sent": 0, "seconds": 0.000123},
        {"target": b"/", "http_version": "1.0"},
        {"target": b"/?"},
        {"headers": [(b"authorization", b"Bearer x"), (b"x-request-id", b"caf\xe9")]},
        {"headers": [(b"authorization", b"Basic !!")]},
    ],
)
def test_lines_are_the_same_as_gunicorns(text, changes):
    made = exchange(**changes)
    expected = of_gunicorn(text, made).replace("\xe9", "\\xe9")
    assert without_time(formatted(text)(made)) == without_time(expected)


def without_time(line):
    return re.sub(r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]", "[time]", line)


def test_the_time_has_apaches_form_and_is_current(monkeypatch):
    line = formatted("%(t)s")
    before = line(exchange())
    assert without_time(before) == "[time]"
    now = datetime.datetime.now().timestamp()
    monkeypatch.setattr("esg.server.accesslog.access_log.time.time", lambda: now + 60)
    monkeypatch.setattr("esg.server.accesslog.access_log.time.strftime", lambda text: "later")
    assert line(exchange()) == "later"


def test_the_last_field_of_a_name_is_shown():
    headers = [(b"x-id", b"1"), (b"x-id", b"2")]
    assert formatted("%({x-id}i)s")(exchange(headers=headers)) == "2"


def test_a_client_without_an_address_is_a_dash():
    line = formatted("%(h)s %({remote_port}e)s")
    assert line(exchange(client=None)) == "- -"
    assert line(exchange(client=("", None))) == "- -"


def test_a_variable_of_the_environment_is_shown(monkeypatch):
    monkeypatch.setenv("DEPLOYMENT", "blue")
    monkeypatch.delenv("NO_SUCH", raising=False)
    assert formatted("%({deployment}e)s %({NO_SUCH}e)s")(exchange()) == "blue -"


def test_the_process_id_is_shown():
    assert formatted("%(p)s")(exchange()) == f"<{os.getpid()}>"


CHAOS = st.binary(max_size=40)


@given(CHAOS, CHAOS, CHAOS)
def test_nothing_breaks_out_of_its_place_in_a_line(target, value, other):
    made = exchange(
        target=target,
        headers=[
            (b"user-agent", value),
            (b"referer", other),
            (b"authorization", b"Basic " + value),
        ],
        response_headers=[(b"x", value)],
    )
    line = formatted(PRESETS["combined"] + ' "%({x}o)s" "%(U)s" "%(q)s"')(made)
    assert line.isascii()
    assert line.isprintable()
    assert line.count('"') == 12


@given(st.text(st.characters(exclude_characters=":"), min_size=1))
def test_no_user_name_breaks_out_of_its_place(name):
    import base64

    encoded = base64.b64encode(f"{name}:x".encode("utf-8", "surrogatepass"))
    line = formatted("%(u)s")(exchange(headers=[(b"authorization", b"Basic " + encoded)]))
    assert line.isascii()
    assert line.isprintable()


def test_only_values_in_the_format_are_computed():
    bare = SimpleNamespace(scope={}, status=200)
    assert formatted("%(s)s")(bare) == "200"


# -- JSON --------------------------------------------------------------------------------


def fields_of(made):
    text = json_line(worker_subject(3, 2, 4711), lambda exchange: "what it says")(made)
    assert text.isascii()
    assert text.isprintable()
    return json.loads(text)


def test_a_json_line_has_every_field():
    fields = fields_of(exchange())
    moment = datetime.datetime.fromisoformat(fields.pop("time"))
    age = datetime.datetime.now(datetime.UTC) - moment
    assert abs(age.total_seconds()) < 60
    assert fields == {
        "level": "INFO",
        "logger": "esg.access",
        "message": "what it says",
        "worker": 3,
        "generation": 2,
        "pid": 4711,
        "client": "192.0.2.1",
        "method": "GET",
        "path": "/a/b",
        "query": "c=d&e=f",
        "status": 404,
        "bytes": 29,
        "duration": 2.034567,
        "request_id": "abc-123",
    }


def test_missing_values_are_left_out():
    fields = fields_of(exchange(headers=[], target=b"/"))
    assert not {"query", "request_id"} & fields.keys()


@given(CHAOS, CHAOS)
def test_whatever_a_client_sends_is_one_line_of_json(target, value):
    assume(target.find(b"://") < 1)  # otherwise it is an absolute target, which has its own test
    fields = fields_of(exchange(target=target, headers=[(b"x-request-id", value)]))
    assert fields["request_id"] == value.decode("latin-1")
    assert fields["path"] == target.partition(b"?")[0].decode("latin-1")


# -- parsers that people use -------------------------------------------------------------

QUOTED = r'"((?:\\.|[^"\\])*)"'
"""A quoted string of grok's QS, Apache and many others: \\" doesn't end it."""

COMBINED = re.compile(
    rf"(\S+) (\S+) (\S+) \[([^\]]+)\] {QUOTED} (\d{{3}}) (\d+|-) {QUOTED} {QUOTED}"
)

NGINX = re.compile(r'(\S+) - (\S+) \[([^\]]+)\] "([^"]*)" (\d{3}) (\d+) "([^"]*)" "([^"]*)"')

GOACCESS = re.compile(
    r'(\S+) (\S+) (\S+) \[([^\]]+)\] "(.*?)(?<!\\)" (\d+) (\d+) "(.*?)(?<!\\)" "(.*?)(?<!\\)"'
)
"""goaccess ends a quoted field at the first quote without a backslash before it."""


def by_shlex(line):
    host, dash, user, day, zone, *rest = shlex.split(line)
    return (host, dash, user, f"{day} {zone}".strip("[]"), *rest)


def by_csv(line):
    """Spreadsheets, databases and log shippers may read it without an escape character."""
    ((host, dash, user, day, zone, *rest),) = csv.reader([line], delimiter=" ", doublequote=False)
    return (host, dash, user, f"{day} {zone}".strip("[]"), *rest)


def unescaped(text):
    return re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), text)


ODD = st.one_of(
    st.binary(min_size=1, max_size=30),
    st.lists(
        st.sampled_from(
            [b"\\", b'"', b"'", b" ", b"x22", b"%22", b"\t", b"]", b"#", b"a", b"\xff"]
        ),
        min_size=1,
        max_size=12,
    ).map(b"".join),
)


@given(ODD, ODD, ODD, ODD)
def test_parsers_find_the_fields_of_a_line_whatever_a_client_sends(target, referer, agent, user):
    credentials = b"Basic " + base64.b64encode(user.replace(b":", b"") + b":secret")
    headers = [(b"referer", referer), (b"user-agent", agent), (b"authorization", credentials)]
    made = exchange(target=b"/" + target, headers=headers)
    line = formatted("combined")(made)
    assert line.isascii()
    assert line.isprintable()
    parsed = COMBINED.fullmatch(line).groups()
    assert GOACCESS.fullmatch(line).groups() == parsed
    assert NGINX.fullmatch(line).groups() == (parsed[0], *parsed[2:])
    for split in (by_shlex(line), by_csv(line)):
        assert (*split[:2], *split[3:]) == (*parsed[:2], *parsed[3:])
    host, _, _, _, request, status, size, seen_referer, seen_agent = parsed
    assert (host, status, size) == ("192.0.2.1", "404", "29")
    assert unescaped(request) == f"GET /{target.decode('latin-1')} HTTP/1.1"
    assert unescaped(seen_referer) == referer.decode("latin-1")
    assert unescaped(seen_agent) == agent.decode("latin-1")
    fields = json.loads(json_line(worker_subject(1, 1, 1), formatted("combined"))(made))
    assert fields["message"].partition("] ")[2] == line.partition("] ")[2]
    assert fields["path"] == "/" + target.decode("latin-1").partition("?")[0]


def test_a_backslash_does_not_escape_the_quote_behind_it():
    made = exchange(target=b"/p\\x22q", headers=[(b"referer", b"ref\\"), (b"user-agent", b"agent")])
    line = formatted('"%(r)s" "%(f)s" "%(a)s"')(made)
    assert line == r'"GET /p\x5cx22q HTTP/1.1" "ref\x5c" "agent"'
