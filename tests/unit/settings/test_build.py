"""Settings: valid values, valid combinations, and the changes that a reload may make."""

from __future__ import annotations

import configparser
import dataclasses
import datetime
import io
import logging
import math
import pickle
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.errors import ConfigError
from esg.settings import build as build_module
from esg.settings import cpus
from esg.settings.build import Raw, build, check_reload
from esg.settings.kinds import (
    APP,
    FALSE_WORDS,
    HEADERS,
    SWITCH,
    TEXT,
    TEXTS,
    TRUE_WORDS,
    WORKER_CLASS,
    WORKERS,
    LogDefinition,
    choice,
    seconds,
    size,
    whole_number,
)
from esg.settings.objects import Objects, StandIn
from esg.settings.schema import SETTINGS, Config, nearest, setting_named


def made(**values):
    """A Config as from the command line."""
    given = {"app": "example:app"} | values
    return build({name: Raw(value, f"--{name}") for name, value in given.items()})


# -- kinds of values -------------------------------------------------------------------


@given(st.integers(-(10**30), 10**30))
def test_whole_numbers_are_read_back(number):
    assert whole_number(-(10**30)).parse(str(number)) == number
    assert whole_number(-(10**30)).parse(number) == number


@pytest.mark.parametrize(
    "raw",
    ["", " ", "x", "1.0", "1e3", "0x10", "1_000", "--1", "+-1", "\u0661", True, None, 1.5, []],
)
def test_invalid_whole_numbers_are_refused(raw):
    with pytest.raises(ValueError, match="whole number"):
        whole_number(0).parse(raw)


@pytest.mark.parametrize(("raw", "ok"), [("0", False), ("1", True), ("512", True), ("513", False)])
def test_both_bounds_of_a_whole_number_are_included(raw, ok):
    kind = whole_number(1, 512)
    if ok:
        assert kind.parse(raw) == int(raw)
    else:
        with pytest.raises(ValueError, match="from 1 to 512"):
            kind.parse(raw)


@given(st.floats(0, 1e12))
def test_seconds_are_read_back(number):
    assert seconds().parse(str(number)) == number
    assert seconds().parse(number) == number


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        (" 30 s ", 30),
        ("1.5m", 90),
        ("5m", 300),
        ("1h", 3600),
        ("1d", 86400),
        ("1h30m", 5400),
        ("1m 30s", 90),
        ("0s", 0),
        (datetime.timedelta(minutes=2), 120),
    ],
)
def test_times_may_have_units(raw, value):
    assert seconds().parse(raw) == value


@pytest.mark.parametrize(
    "raw",
    ["1" * 40 + "!", "1 " * 40 + "!", "17" + "0" * 307 + "s29" + "0" * 305 + "m"],
    ids=["digits", "numbers", "a sum that no float can hold"],
)
def test_a_time_of_absurd_length_is_refused_at_once(raw):
    with pytest.raises(ValueError, match="expected a number of seconds"):
        seconds().parse(raw)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (65536, 65536),
        ("65536", 65536),
        ("64k", 65536),
        ("64K", 65536),
        ("64kB", 65536),
        ("64KiB", 65536),
        ("16MiB", 2**24),
        ("16 mb", 2**24),
        ("1g", 2**30),
        ("0.5g", 2**29),
        ("0k", 0),
    ],
)
def test_sizes_may_have_units(raw, value):
    assert size(0).parse(raw) == value


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "k",
        "-1",
        "-1k",
        "1.5",
        "0.0001k",
        "1t",
        "1kib2",
        "1k 1k",
        "1e3",
        "\u0661",
        1.5,
        True,
        None,
        [],
    ],
)
def test_invalid_sizes_are_refused(raw):
    with pytest.raises(ValueError, match="of bytes, or a size such as 64k or 16MiB"):
        size(0).parse(raw)


def test_sizes_below_the_minimum_are_refused():
    assert size(1024).parse("1k") == 1024
    with pytest.raises(ValueError, match="1025"):
        size(1025).parse("1k")


def test_every_time_and_size_takes_units():
    for declared in SETTINGS.values():
        metavar = declared.kind.metavar
        if isinstance(declared.default, float):
            assert metavar == "DURATION", declared.name
            assert made(**{declared.name: "1m"}) == made(**{declared.name: 60})
        elif ", in bytes" in declared.help:
            assert metavar == "SIZE", declared.name
            assert made(**{declared.name: "64k"}) == made(**{declared.name: 65536})
        else:
            assert metavar not in ("DURATION", "SIZE"), declared.name


@pytest.mark.parametrize(
    "raw",
    [
        *("", "x", "nan", "inf", "-inf", "-1", "-1s", "5w", "5S", "s", "1h30", "h1", "5 s m"),
        *("1_0", "\uff11\uff10", "1h1h", "1e", "--1"),
        *(True, None, math.nan, datetime.timedelta(seconds=-1)),
    ],
)
def test_invalid_seconds_are_refused(raw):
    with pytest.raises(ValueError, match="number of seconds >= 0, or a time such as 500ms, 30s"):
        seconds().parse(raw)


def test_seconds_below_the_minimum_are_refused():
    assert seconds(0.1).parse("0.1") == 0.1
    with pytest.raises(ValueError, match=r"0\.1"):
        seconds(0.1).parse("0.09")


def test_a_choice_is_case_insensitive_and_stripped():
    assert choice("auto", "uvloop").parse(" UVLoop ") == "uvloop"


def test_the_error_about_a_wrong_choice_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"auto, uvloop.*did you mean 'uvloop'"):
        choice("auto", "uvloop").parse("uvlop")


@pytest.mark.parametrize("word", sorted(TRUE_WORDS | {"TRUE", " yes ", "On"}))
def test_words_for_on_are_accepted(word):
    assert SWITCH.parse(word) is True


@pytest.mark.parametrize("word", sorted(FALSE_WORDS | {"FALSE", " no ", "Off"}))
def test_words_for_off_are_accepted(word):
    assert SWITCH.parse(word) is False


@pytest.mark.parametrize("raw", ["", "2", "maybe", None, 2, []])
def test_invalid_switches_are_refused(raw):
    with pytest.raises(ValueError, match="true or false"):
        SWITCH.parse(raw)


@pytest.mark.parametrize("raw", [1, None, b"x", ["x"]])
def test_text_is_a_string(raw):
    with pytest.raises(ValueError, match="string"):
        TEXT.parse(raw)


@pytest.mark.parametrize("raw", ["a\nb", "a\0b"])
def test_text_is_one_line(raw):
    with pytest.raises(ValueError, match="one line"):
        TEXT.parse(raw)


@pytest.mark.parametrize(
    ("raw", "texts"),
    [
        ("a", ("a",)),
        ("a,b", ("a", "b")),
        (" a , b ,", ("a", "b")),
        ("", ()),
        (["a", "b"], ("a", "b")),
        (("a",), ("a",)),
        ([], ()),
    ],
)
def test_texts_may_be_a_list_or_separated_by_commas(raw, texts):
    assert TEXTS.parse(raw) == texts


@pytest.mark.parametrize("raw", [1, None, [1], ["a\n"], {"a": 1}])
def test_invalid_texts_are_refused(raw):
    with pytest.raises(ValueError, match="expected"):
        TEXTS.parse(raw)


@pytest.mark.parametrize(
    "app",
    [
        "example",
        "example:app",
        "pkg.mod:app",
        "pkg.mod:make.inner",
        "_x1:_y2",
        "caf\u00e9:app",
        "my-app:app",
        "2fa.wsgi:app",
    ],
)
def test_names_of_applications_are_accepted(app):
    assert APP.parse(f" {app} ") == app


@pytest.mark.parametrize(
    "app", ["", ":app", ".:app", ".a:b", "a.:b", "a:b-c", "a:b..c", "a..b:c", "a:b:c", "a:1"]
)
def test_invalid_names_of_applications_are_refused(app):
    with pytest.raises(ValueError, match="MODULE:ATTRIBUTE"):
        APP.parse(app)


@pytest.mark.parametrize(
    ("app", "better"),
    [
        ("example.py", "example:app"),
        ("./example.py:main", "example:main"),
        ("pkg/mod.py:app", "pkg.mod:app"),
        ("pkg/mod", "pkg.mod:app"),
        ("./my-app.py", "my-app:app"),
    ],
)
def test_the_error_about_a_file_name_suggests_the_module_name(app, better):
    with pytest.raises(ValueError, match=re.escape(f"write {better},")):
        APP.parse(app)


def test_the_name_of_an_object_is_only_a_label():
    label = "my module.<locals>:1 2"
    assert build({"app": Raw(label, "argument app")}, objects=Objects(app=object())).app == label


def test_a_name_with_a_call_is_that_of_a_factory():
    config = build({"app": Raw("example:make()", "APP")})
    assert (config.app, config.factory) == ("example:make", True)
    assert config.origin("factory") == "APP example:make()"


def test_the_name_of_an_object_that_looks_like_a_call_is_only_a_label():
    config = build({"app": Raw("example:make()", "argument app")}, objects=Objects(app=object()))
    assert (config.app, config.factory) == ("example:make()", False)


@pytest.mark.parametrize("raw", ["auto", " AUTO "])
def test_auto_means_as_many_workers_as_cpus(monkeypatch, raw):
    monkeypatch.setattr(cpus, "usable", lambda: 6)
    assert WORKERS.parse(raw) == 6
    monkeypatch.setattr(cpus, "usable", lambda: 4096)
    assert WORKERS.parse(raw) == 512


@pytest.mark.parametrize("raw", ["1", 1, "512"])
def test_a_number_of_workers_is_accepted(raw):
    assert WORKERS.parse(raw) == int(raw)


@pytest.mark.parametrize("raw", ["0", "513", "many", "", True, None, ["auto"]])
def test_invalid_numbers_of_workers_are_refused(raw):
    with pytest.raises(ValueError, match="from 1 to 512, or auto"):
        WORKERS.parse(raw)


@pytest.mark.parametrize(
    ("raw", "fields"),
    [
        ("X-A:b", ("X-A: b",)),
        ("X-A: b, c:d ", ("X-A: b, c:d",)),
        ("X-A:", ("X-A: ",)),
        ("X-A: 1\nX-B: 2\n", ("X-A: 1", "X-B: 2")),
        (["X-A: 1", "X-A: 2"], ("X-A: 1", "X-A: 2")),
        ([("X-A", "1"), ["X-B", "2"]], ("X-A: 1", "X-B: 2")),
        ("X-A: caf\xe9\tau lait", ("X-A: caf\xe9\tau lait",)),
        ("", ()),
        ([], ()),
    ],
)
def test_fields_for_every_response_are_parsed(raw, fields):
    assert HEADERS.parse(raw) == fields
    assert HEADERS.parse(fields) == fields


@pytest.mark.parametrize(
    "raw",
    [
        *("x", ":x", "a b: c", "a\x00: b", "X: \x00", "X: \x7f", "X: \u20ac"),
        *(5, None, {"X": "1"}, [5], ["X"], [("X",)], [("X", 5)]),
        *(["X: a\nY: b"], [("X", "a\r\nY: b")]),
        *("Content-Length: 5", "transfer-encoding: chunked", "Connection: close"),
    ],
)
def test_invalid_fields_are_refused(raw):
    with pytest.raises(ValueError, match=r"expected|field|server"):
        HEADERS.parse(raw)


@pytest.mark.parametrize("name", ["sync", "uvicorn.workers.UvicornWorker", ""])
def test_known_worker_classes_are_accepted(name):
    assert WORKER_CLASS.parse(f" {name} ") == name


@pytest.mark.parametrize("raw", ["gevent", "SYNC", "my.Worker", 5])
def test_unknown_worker_classes_are_refused(raw):
    with pytest.raises(ValueError, match=r"use one of asgi, .*gthread|expected a string"):
        WORKER_CLASS.parse(raw)


# -- declarations ----------------------------------------------------------------------


@pytest.mark.parametrize("declared", SETTINGS.values(), ids=SETTINGS)
def test_every_declaration_is_complete(declared):
    assert declared.help.endswith(".")
    assert declared.group
    assert all(flag.startswith("-") for flag in declared.flags)
    assert declared.flags[-1].startswith("--")
    assert declared.variables[0] == f"ESG_{declared.name.upper()}"


@pytest.mark.parametrize("declared", SETTINGS.values(), ids=SETTINGS)
def test_every_default_is_a_value_of_its_kind(declared):
    if declared.name == "app" or declared.default is None:
        return
    raw = list(declared.default) if declared.many else declared.default
    assert declared.kind.parse(raw) == declared.default


def test_no_flag_and_no_variable_has_two_meanings():
    flags = [flag for declared in SETTINGS.values() for flag in declared.flags]
    variables = [name for declared in SETTINGS.values() for name in declared.variables]
    assert len(flags) == len(set(flags))
    assert len(variables) == len(set(variables))


def test_no_name_has_two_meanings():
    names = [name for declared in SETTINGS.values() for name in declared.names]
    assert len(names) == len(set(names))


def test_a_setting_has_the_names_of_its_options():
    declared = setting_named("limit-max-requests", "esg.toml")
    assert declared is SETTINGS["max_requests"] is setting_named("max_requests", "")
    assert declared.option == "--max-requests"
    assert declared.variables == ("ESG_MAX_REQUESTS", "ESG_LIMIT_MAX_REQUESTS")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("wrokers", "workers"), ("keepalive", "timeout_keep_alive"), ("headers", "header")],
)
def test_an_unknown_name_gets_a_hint(name, hint):
    with pytest.raises(ConfigError, match=f"^esg.toml: unknown key '{name}'; did you mean {hint}"):
        setting_named(name, "esg.toml")


def test_every_field_of_a_config_is_declared_or_derived():
    names = {field.name for field in dataclasses.fields(Config)}
    assert names - set(SETTINGS) == {
        "app_is_object",
        "app_link",
        "files",
        "folder",
        "gaps",
        "has_ssl_context_factory",
        "origins",
        "real_folder",
        "strays",
        "variables",
    }


def test_defaults_are_as_documented():
    config = Config(app="example:app")
    assert (config.host, config.port, config.workers, config.backlog) == (
        "127.0.0.1",
        8000,
        1,
        2048,
    )
    assert (config.timeout, config.graceful_timeout, config.timeout_keep_alive) == (30, 30, 5)
    assert (config.limit_request_line, config.limit_request_fields) == (8190, 100)
    assert (config.limit_request_header_size, config.limit_request_body) == (65536, 0)
    assert (config.timeout_request_header, config.timeout_request_body) == (10, 60)


def another(declared):
    """A value of this setting that isn't its default."""
    special = {
        "log_config": LogDefinition({"version": 1, "handlers": {"h": {"args": ("a", [1.5])}}}),
        "app": "shop:app",
    }
    if declared.name in special:
        return special[declared.name]
    match declared.default:
        case bool():
            return not declared.default
        case int() | float():
            return declared.default + 1
        case tuple():
            return (*declared.default, "one more")
        case str() | None:
            return f"{declared.name} of the operator"
    raise AssertionError(declared)


def with_everything_set():
    values = {name: another(declared) for name, declared in SETTINGS.items()}
    others = {
        "origins": {"app": "APP"},
        "variables": {"COLOR": "red"},
        "strays": ("a stray",),
        "files": ("/srv/esg.toml",),
        "gaps": {"/srv/esg.toml": ""},
        "folder": "/srv/current",
        "real_folder": "/srv/1",
        "app_link": "/srv/current/app",
        "app_is_object": True,
        "has_ssl_context_factory": True,
    }
    return Config(**values, **others)


def test_a_config_with_everything_set_survives_pickling():
    config, default = with_everything_set(), Config(app="")
    assert [name for name, value in vars(config).items() if value == getattr(default, name)] == []
    again = pickle.loads(pickle.dumps(config))
    assert again == config
    assert vars(again) == vars(config)


def test_configs_that_differ_in_any_setting_are_not_equal():
    config = Config(app="example:app")
    for name, declared in SETTINGS.items():
        assert dataclasses.replace(config, **{name: another(declared)}) != config, name


def test_a_config_holds_no_object_that_was_given_in_python():
    objects = Objects(app=object(), ssl_context_factory=lambda: None)
    definition = {"version": 1, "handlers": {"h": {"stream": sys.stderr}}}
    given = {"app": Raw("a label", "app"), "log_config": Raw(definition, "log_config")}
    config = build(given, objects=objects)
    assert pickle.loads(pickle.dumps(config)) == config
    assert (config.app_is_object, config.has_ssl_context_factory) == (True, True)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config(app="example:app").port = 1


# -- building --------------------------------------------------------------------------


def test_values_are_parsed_and_the_rest_takes_its_default():
    config = made(port="9000", access_log="off", bind=())
    assert (config.app, config.port, config.access_log) == ("example:app", 9000, False)
    assert config.workers == 1


def test_origins_are_remembered_but_not_compared():
    first, second = made(port="1"), build({"app": Raw("example:app", "x"), "port": Raw(1, "y")})
    assert first == second
    assert (first.origin("port"), second.origin("port")) == ("--port", "y")
    assert "default" in first.origin("workers")


@pytest.mark.parametrize("name", sorted(set(SETTINGS) - {"app"}))
def test_a_bad_value_is_blamed_on_its_origin(name):
    with pytest.raises(ConfigError) as caught:
        made(**{name: object()})
    assert f"--{name}: " in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_bad_value_is_quoted():
    with pytest.raises(ConfigError, match=r"'80a'.*whole number"):
        made(port="80a")


def test_a_bad_password_is_not_quoted():
    with pytest.raises(ConfigError) as caught:
        made(ssl_keyfile_password="sesame\n")
    assert "sesame" not in str(caught.value)


# -- what isn't built yet --------------------------------------------------------------

PENDING = [declared for declared in SETTINGS.values() if declared.pending]


@pytest.mark.parametrize("declared", PENDING, ids=lambda declared: declared.name)
def test_a_default_that_is_spelt_out_is_accepted(declared):
    raw = list(declared.default) if declared.many else declared.default
    if raw is not None:
        assert getattr(made(**{declared.name: raw}), declared.name) == declared.default


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("daemon", "on", "service manager"),
        ("preload", "on", "leave it out"),
    ],
)
def test_a_value_that_is_not_implemented_is_refused(name, value, advice):
    with pytest.raises(ConfigError, match=f"^--{name}: this version of ESG can't.*{advice}"):
        made(**{name: value})


def test_websockets_can_be_turned_off():
    assert made(ws="none").ws == "none"


# -- settings that stand for others ----------------------------------------------------


@pytest.mark.parametrize(
    ("name", "interface", "http"),
    [
        ("sync", "wsgi", "auto"),
        ("gthread", "wsgi", "auto"),
        ("asgi", "auto", "auto"),
        ("uvicorn.workers.UvicornWorker", "auto", "auto"),
        ("uvicorn_worker.UvicornWorker", "auto", "auto"),
        ("esg.workers.ESGWorker", "auto", "auto"),
        ("uvicorn.workers.UvicornH11Worker", "auto", "h11"),
    ],
)
def test_a_worker_class_stands_for_settings(name, interface, http):
    config = made(worker_class=name)
    assert (config.interface, config.http) == (interface, http)
    ((level, text),) = config.notices()
    assert level == "info"
    assert text.startswith(f"--worker_class: {name} means ")
    assert ("--interface wsgi" in text) == (interface == "wsgi")
    assert ("--http h11" in text) == (http == "h11")


def test_an_explicit_setting_overrides_a_worker_class():
    assert made(worker_class="sync", interface="asgi3").interface == "asgi3"


def test_an_error_in_an_implied_setting_names_the_worker_class(monkeypatch):
    interface = dataclasses.replace(SETTINGS["interface"], kind=choice("auto"))
    monkeypatch.setattr(build_module, "SETTINGS", SETTINGS | {"interface": interface})
    with pytest.raises(ConfigError, match=r"^--worker_class sync: invalid value 'wsgi'"):
        made(worker_class="sync")


@pytest.mark.parametrize("name", [name for name in SETTINGS if "password" in name])
def test_a_secret_is_not_in_a_repr(name):
    config = made(**{name: "hunter2"})
    assert getattr(config, name) == "hunter2"
    assert "hunter2" not in repr(config)
    assert SETTINGS[name].secret


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        (
            "header",
            ("Set-Cookie: a=1", "X-\u00dc: x"),
            "invalid value 'X-\u00dc: x': 'X-\u00dc' isn't",
        ),
        ("header", "X-A: 1\nX-B", "invalid value 'X-B': expected NAME:VALUE"),
        ("bind", ("a:1", "b:\0"), "invalid value 'b:\\x00': expected one line"),
        ("forwarded_allow_ips", ("::1", "a\n"), "invalid value 'a\\n': expected one line"),
    ],
)
def test_the_bad_one_of_several_values_is_named(name, values, told):
    with pytest.raises(ConfigError, match=rf"^--{name}: {re.escape(told)}"):
        made(**{name: values})


def test_debug_causes_a_warning():
    ((level, text),) = made(debug=True).notices()
    assert level == "warning"
    assert "internet" in text
    assert list(made().notices()) == []


def test_an_application_is_needed():
    with pytest.raises(ConfigError, match="no application"):
        build({})


@pytest.mark.parametrize("other", ["host", "port"])
def test_bind_and_host_or_port_exclude_each_other(other):
    with pytest.raises(ConfigError) as caught:
        made(bind="0.0.0.0:80", **{other: "1"})
    assert "--bind" in str(caught.value)
    assert f"--{other}" in str(caught.value)


@pytest.mark.parametrize("path", ["api", "http://x", "../x"])
def test_a_root_path_without_a_leading_slash_is_refused(path):
    with pytest.raises(ConfigError, match="--root_path"):
        made(root_path=path)


@pytest.mark.parametrize("path", ["", "/", "/api", "/a/b"])
def test_valid_root_paths_are_accepted(path):
    assert made(root_path=path).root_path == path


@pytest.mark.parametrize(
    ("values", "interface"),
    [
        ({}, "auto"),
        ({"interface": "asgi2"}, "asgi2"),
        ({"wsgi": True}, "wsgi"),
        ({"wsgi": True, "interface": "wsgi"}, "wsgi"),
        ({"wsgi": True, "interface": "auto"}, "wsgi"),
        ({"wsgi": False, "interface": "asgi3"}, "asgi3"),
    ],
)
def test_the_option_wsgi_selects_an_interface(values, interface):
    config = made(**values)
    assert config.interface == interface
    assert "wsgi" not in values or config.origin("interface") in ("--wsgi", "--interface")


@pytest.mark.parametrize("interface", ["asgi3", "asgi2"])
def test_wsgi_and_another_interface_exclude_each_other(interface):
    with pytest.raises(ConfigError, match=f"--wsgi and --interface {interface} say different"):
        made(wsgi=True, interface=interface)


@pytest.mark.parametrize(
    ("values", "origin"),
    [({"wsgi": True}, "--wsgi"), ({"interface": "wsgi"}, "--interface")],
)
def test_wsgi_with_a_lifespan_is_refused(values, origin):
    with pytest.raises(ConfigError, match=rf"--lifespan: .*no lifespan \({origin}\)"):
        made(lifespan="on", **values)


@pytest.mark.parametrize(
    ("values", "binds"),
    [
        ({}, ("127.0.0.1:8000",)),
        ({"host": "0.0.0.0", "port": "80"}, ("0.0.0.0:80",)),
        ({"host": "::1"}, ("[::1]:8000",)),
        ({"host": "::", "port": "0"}, ("[::]:0",)),
        ({"bind": ["a:1", "b:2"]}, ("a:1", "b:2")),
    ],
)
def test_binds_come_from_bind_or_from_host_and_port(values, binds):
    assert made(**values).binds == binds


def test_the_title_is_the_name_or_the_application():
    assert made().title == "example:app"
    assert made(name="shop").title == "shop"


@pytest.mark.parametrize("way", [{"uds": "/x"}, {"fd": "3"}])
@pytest.mark.parametrize(
    "overruled", [{"port": 80}, {"host": "::1"}, {"host": "127.0.0.1", "port": 8000}]
)
def test_uds_and_fd_override_host_and_port(way, overruled):
    config = made(**way, **overruled)
    assert config.binds == made(**way).binds
    (origin,) = [f"--{name}" for name in way]
    assert config.binds_origin == origin
    assert list(config.notices()) == [
        ("info", f"--{name} has no effect: {origin} says where to listen") for name in overruled
    ]


# -- the access log ----------------------------------------------------------------------


@pytest.mark.parametrize("level", ["warning", "error", "critical", 30, "warn"])
def test_a_level_above_info_turns_the_access_log_off(level):
    config = made(log_level=level)
    assert not config.access_log
    assert config.origin("access_log") == f"--log_level {config.log_level}"


@pytest.mark.parametrize("level", ["info", "debug", "trace"])
def test_other_levels_leave_the_access_log_on(level):
    assert made(log_level=level).access_log


@pytest.mark.parametrize("asked", [{"access_log": True}, {"access_logfile": "-"}])
def test_an_explicit_access_log_does_not_depend_on_the_level(asked):
    assert made(log_level="warning", **asked).access_log


def test_an_access_log_that_is_turned_off_stays_off():
    assert not made(log_level="warning", access_log=False, access_logfile="a.log").access_log


# -- the level of the log, and its configuration -------------------------------------------


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (logging.INFO, "info"),
        ("20", "info"),
        (25, "warning"),
        ("21", "warning"),
        (1, "trace"),
        (41, "critical"),
        (50, "critical"),
        (5, "trace"),
        ("TRACE", "trace"),
        (" Warning ", "warning"),
        ("warn", "warning"),
        (logging.FATAL, "critical"),
        ("fatal", "critical"),
    ],
)
def test_a_level_may_be_a_name_or_a_number(raw, name):
    assert made(log_level=raw).log_level == name


@pytest.mark.parametrize("raw", [51, 0, -1, 25.5, "\u0661", True, "loud", "", None, ["info"]])
def test_invalid_levels_are_refused(raw):
    with pytest.raises(
        ConfigError, match=r"one of critical, .* or a number from 1 to 50 \(50 crit"
    ):
        made(log_level=raw)


def test_a_log_configuration_may_be_given_in_python():
    parser = configparser.RawConfigParser()
    parser.read_string("[loggers]\nkeys=root")
    given = {"version": 1, "handlers": {"h": {"stream": io.StringIO(), "args": ["a"]}}}
    config = made(log_config=given).log_config
    stand_in = {"h": {"stream": StandIn(0, "_io:StringIO"), "args": ["a"]}}
    assert config == LogDefinition({"version": 1, "handlers": stand_in})
    assert config.content["handlers"]["h"] is not given["handlers"]["h"]
    assert made(log_config=parser).log_config == LogDefinition("[loggers]\nkeys = root\n\n")
    assert made(log_config=io.StringIO("[x]")).log_config == LogDefinition("[x]")
    assert made(log_config="log.ini").log_config == "log.ini"


@pytest.mark.parametrize("raw", [5, [1], b"x", None, True])
def test_invalid_log_configurations_are_refused(raw):
    with pytest.raises(ConfigError, match="a file, or a dictionary as for"):
        made(log_config=raw)


@pytest.mark.parametrize("name", ["access_logfile", "error_logfile", "log_format"])
def test_a_log_configuration_excludes_other_settings_of_the_log(name):
    value = "json" if name == "log_format" else "file"
    with pytest.raises(ConfigError, match=f"--{name}: --log_config decides this"):
        made(log_config={"version": 1}, **{name: value})
    assert getattr(made(log_config=LogDefinition(None), **{name: value}), name) == value


# -- what hypercorn writes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("app", "name", "interface", "factory"),
    [
        ("wsgi:shop:app", "shop:app", "wsgi", False),
        ("asgi:shop:app", "shop:app", "asgi3", False),
        ("wsgi:shop:make()", "shop:make", "wsgi", True),
        ("asgi:app", "asgi:app", "auto", False),
        ("wsgi:application", "wsgi:application", "auto", False),
        ("wsgi", "wsgi", "auto", False),
    ],
)
def test_a_prefix_of_the_application_selects_its_interface(app, name, interface, factory):
    config = made(app=app)
    assert (config.app, config.interface, config.factory) == (name, interface, factory)
    assert build({"app": Raw(app, "argument app")}, objects=Objects(app=object())).app == app


@pytest.mark.parametrize(
    ("app", "said"),
    [("wsgi:a:b", {"interface": "asgi3"}), ("asgi:a:b", {"wsgi": True})],
)
def test_a_prefix_that_contradicts_another_setting_is_refused(app, said):
    with pytest.raises(ConfigError, match="say different things; use one"):
        made(app=app, **said)


@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_a_worker_class_may_be_an_event_loop(name):
    assert made(worker_class=name).loop == name
    assert made(worker_class=name, loop="auto").loop == "auto"


def test_trio_is_refused():
    with pytest.raises(ConfigError, match="run asyncio; leave it out"):
        made(worker_class="trio")


# -- reloading -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("workers", "4"), ("timeout", "5"), ("app", "other:app"), ("loop", "asyncio")],
)
def test_a_reload_may_change_this_setting(name, value):
    check_reload(made(), made(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("uds_mode", "600"),
        ("uds_owner", "root"),
        ("backlog", "9"),
        ("chdir", "/tmp"),
    ],
)
def test_a_reload_must_not_change_this_setting(name, value):
    with pytest.raises(ConfigError, match=f"--{name}: .*restart"):
        check_reload(made(), made(**{name: value}))


def test_a_reload_that_changes_nothing_is_accepted():
    check_reload(made(port="80"), made(port=80))


# -- hints -----------------------------------------------------------------------------


def test_the_nearest_name_is_suggested():
    assert nearest("worker", ["workers", "port"]).endswith("did you mean workers?")
    assert nearest("zzz", ["workers", "port"]) == ""


# -- where to listen -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "binds"),
    [
        ({}, ("127.0.0.1:8000",)),
        ({"host": "::1"}, ("[::1]:8000",)),
        ({"uds": "/run/x"}, ("unix:/run/x",)),
        ({"fd": "0"}, ("fd://0",)),
        ({"bind": ["a:1", "unix:/x"]}, ("a:1", "unix:/x")),
    ],
)
def test_each_way_to_say_where_to_listen_sets_the_binds(given, binds):
    config = made(**given)
    assert config.binds == binds
    assert config.has_explicit_address == bool(given)
    origins = [f"--{name}" for name in given]
    assert config.binds_origin == (" and ".join(origins) or "the default")


def test_the_platforms_port_alone_does_not_say_where_to_listen():
    config = build({"app": Raw("example:app", "APP"), "port": Raw("80", "environment PORT")})
    assert config.binds == ("127.0.0.1:80",)
    assert not config.has_explicit_address


@pytest.mark.parametrize(
    "given",
    [{"bind": ["a:1"], "uds": "/x"}, {"uds": "/x", "fd": "3"}, {"bind": ["a:1"], "port": "80"}],
)
def test_two_ways_to_say_where_to_listen_are_refused(given):
    first, second = given
    with pytest.raises(ConfigError, match=f"--{first} and --{second} both say where to listen"):
        made(**given)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reload_dir", "src"),
        ("reload_include", "src"),
        ("reload_exclude", "src"),
        ("reload_engine", "poll"),
    ],
)
def test_settings_of_the_watcher_without_reload_cause_a_warning(name, value):
    ((level, text),) = made(**{name: value}).notices()
    assert (level, text) == ("warning", f"--{name} has no effect without --reload")
    assert list(made(reload="on", **{name: value}).notices()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("worker_tmp_dir", "/dev/shm"),
        ("timeout_notify", 5),
        ("reuse_port", True),
        ("initgroups", True),
        ("enable_stdio_inheritance", True),
    ],
)
def test_a_setting_without_effect_here_is_reported(name, value):
    ((level, text),) = made(**{name: value}).notices()
    assert level == "info"
    assert text.startswith(f"--{name} has no effect: ")
