"""The `esgctl` command line, where no arbiter is needed."""

from __future__ import annotations

from esg import ctl


def test_without_a_command_it_prints_its_help(capsys):
    assert ctl.main([]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Usage: esgctl [OPTIONS] ")
    assert "\n  reload " in out
    assert err == ""
    assert ctl.main(["--help"]) == 0
    assert capsys.readouterr().out == out


def test_an_unknown_command_is_one_line(capsys):
    assert ctl.main(["stop"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("esgctl: error: No such command 'stop'")
