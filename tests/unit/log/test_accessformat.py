"""The grammar of access log formats."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esg.errors import ConfigError
from esg.log import accessformat
from esg.log.accessformat import ATOMS, PRESETS, Atom, parse
from esg.settings.build import Raw, build


def test_a_format_is_a_template_and_its_atoms():
    assert parse('%(h)s "%(r)s" 100%% %({X-Id}i)s.') == (
        '%s "%s" 100%% %s.',
        (Atom("h"), Atom("r"), Atom("i", "x-id")),
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_format_it_names(name):
    assert parse(name) == parse(PRESETS[name])


@pytest.mark.parametrize("name", ATOMS)
def test_every_atom_is_known(name):
    assert parse(f"%({name})s") == ("%s", (Atom(name),))


@pytest.mark.parametrize("where", ["i", "o", "e"])
def test_an_atom_may_have_a_parameter(where):
    assert parse(f"%({{a-b_C.d}}{where})s") == ("%s", (Atom(where, "a-b_c.d"),))


def test_flags_and_widths_work_as_in_printf():
    template, _ = parse("%(h)-15s|%(D)08d|%(r).10s")
    assert template % ("::1", 42, "GET / HTTP/1.1") == "::1            |00000042|GET / HTTP"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("combind", "common, combined or uvicorn"),
        ("", "such as %(h)s"),
        ("%(status)s", "did you mean %(s)s?"),
        ("%(staus)s", "did you mean %(s)s?"),
        ("%(R)s", "did you mean %(r)s?"),
        ("%(h)s %(Z)s", "unknown atom '%(Z)s'"),
        ("%(h)s %(Z)s", "h l u t r m U q H s B b f a T M D L p"),
        ("%({x}y)s", "i, o or e"),
        ("%(h)d", "must end in s"),
        ("%(D)f", "must end in s or d"),
        ("%({x}i)d", "must end in s"),
        ("%h %l", "at '%h %l'"),
        ("%(h)s %", "at '%'"),
        ("%(h", "at '%(h'"),
    ],
)
def test_an_error_says_what_is_wrong(text, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        parse(text)


@given(st.text(st.sampled_from("%(){}shTxi0-9. z"), max_size=30))
def test_a_format_that_is_accepted_can_be_filled_in(text):
    try:
        template, atoms = parse(text)
    except ValueError:
        return
    values = tuple(7 if atom.name in accessformat.NUMBERS else "x" for atom in atoms)
    assert isinstance(template % values, str)


def test_the_setting_is_refused_with_its_origin():
    raw = {"app": Raw("a:b", "APP"), "access_logformat": Raw("%(x)s", "ESG_ACCESS_LOGFORMAT")}
    with pytest.raises(ConfigError, match=r"^ESG_ACCESS_LOGFORMAT: .*unknown atom '%\(x\)s'"):
        build(raw)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("access_logfile", "a"),
        ("error_logfile", "a"),
        ("log_format", "json"),
    ],
)
def test_a_log_config_excludes_other_settings_of_the_log(name, value):
    raw = {"app": Raw("a:b", "APP"), "log_config": Raw("l.json", "--log-config")}
    with pytest.raises(ConfigError, match=r"^here: the file of --log-config"):
        build(raw | {name: Raw(value, "here")})
