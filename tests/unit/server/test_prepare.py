"""Checks before any worker starts: the packages that the settings need are installed."""

from __future__ import annotations

import pytest

import esg
from esg.errors import ConfigError
from esg.server import prepare
from esg.server.prepare import PACKAGES
from esg.settings.build import Raw, build


@pytest.fixture
def missing(monkeypatch):
    """Hides packages."""
    hidden = set()
    found = prepare.importlib.util.find_spec
    monkeypatch.setattr(
        prepare.importlib.util,
        "find_spec",
        lambda name, *more: None if name in hidden else found(name, *more),
    )
    return hidden.add


def made(**values):
    given = {"app": "example:app"} | values
    return build({name: Raw(value, f"--{name}") for name, value in given.items()})


@pytest.mark.parametrize(("setting", "needed"), PACKAGES.items(), ids=lambda each: " ".join(each))
def test_a_missing_package_is_named_with_what_to_do(missing, setting, needed):
    (name, value), (package, instead) = setting, needed
    prepare.prepare(made(**{name: value}))
    missing(package)
    told = f"^--{name}: {package} is not installed; try: pip install {package}, or {instead}$"
    with pytest.raises(ConfigError, match=told):
        prepare.prepare(made(**{name: value}))
    prepare.prepare(made(**{name: "auto"}))
    option, _, other = instead.partition(" ")
    prepare.prepare(made(**{option.removeprefix("--"): other}))


def test_a_missing_package_of_a_worker_class_is_named(missing):
    missing("uvloop")
    with pytest.raises(ConfigError, match=r"^--worker_class uvloop: uvloop is not installed"):
        prepare.prepare(made(worker_class="uvloop"))


def test_a_server_is_not_made_without_its_packages(missing):
    missing("uvloop")
    with pytest.raises(ConfigError, match=r"^argument loop: uvloop is not installed"):
        esg.Server(esg.Config("example:app", loop="uvloop"))
