"""Checks that a request takes no more instructions than it did: `python bench/guard.py`.

`hotpath.py` runs under valgrind, which counts the instructions of a request in each scenario; the
count varies by less than 1 % between runs and hardly depends on the machine. It does depend on the
interpreter, and on the packages that serve requests, so `guard.json` has counts for each
combination of them. For any other combination there is nothing to compare with, and it says so.

A count of more than LIMIT times the stored one is a failure. `--store` replaces the counts of this
interpreter; RESULTS.md then needs them, too, with a line that says why.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
STORED = HERE / "guard.json"
LIMIT = 1.05
"""A count may be this many times as large as the stored one."""

PACKAGES = ("uvloop", "httptools", "websockets")
"""The packages that a request runs through."""

PLAIN_COPIES = "glibc.cpu.hwcaps=-AVX2,-AVX2_Usable,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM"
"""Makes glibc copy memory in the same way on each machine; it ignores names it doesn't know."""

TIMEOUT = 300.0  # seconds

_TRIGGER = re.compile(r"^desc: Trigger: Client Request: (.+)$", re.MULTILINE)
_TOTALS = re.compile(r"^totals: (\d+)$", re.MULTILINE)

Counts = dict[str, int]


def main(words: list[str] | None = None) -> int:
    options = _parse_options(words)
    if platform.machine() != "x86_64":
        print(f"guard: compares nothing on {platform.machine()}: hotpath.py can't tell valgrind")
        return 0
    if shutil.which("valgrind") is None:
        sys.exit("guard: valgrind is not installed: apt-get install valgrind")
    stored: dict[str, Counts] = json.loads(STORED.read_text())
    key = combination()
    if key not in stored and not options.store:
        print(f"guard: compares nothing: guard.json has no counts for {key}")
        return 0
    counted = count()
    if options.store:
        stored[key] = counted
        STORED.write_text(json.dumps(dict(sorted(stored.items())), indent=2) + "\n")
    lines, failed = verdict(stored[key], counted)
    print(f"guard: instructions a request, {key}", *lines, sep="\n  ")
    return 1 if failed else 0


def verdict(expected: Counts, counted: Counts) -> tuple[list[str], bool]:
    """A line for each scenario, and whether one of the counts has grown too much."""
    lines, failed = [], False
    for name in expected | counted:
        if name not in expected or name not in counted:
            lines.append(f"{name}: {'not stored' if name in counted else 'not counted'}: FAILED")
            failed = True
            continue
        ratio = counted[name] / expected[name]
        line = f"{name}: {counted[name]:,}, stored {expected[name]:,} ({ratio:.3f})"
        if ratio > LIMIT:
            line += f": FAILED, at most {LIMIT} is allowed"
            failed = True
        elif ratio < 2 - LIMIT:
            line += ": fewer; store it with --store, so that it stays"
        lines.append(line)
    return lines, failed


def combination() -> str:
    """The interpreter with its build, and the packages, as a key of `guard.json`."""
    build = f"{sysconfig.get_config_var('CONFIG_ARGS')} {sysconfig.get_config_var('CFLAGS')}"
    words = [
        f"{platform.python_implementation()} {platform.python_version()}",
        platform.python_compiler(),
        f"build {hashlib.sha256(build.encode()).hexdigest()[:8]}",
        *(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES),
    ]
    return ", ".join(words)


def count() -> Counts:
    """The instructions of one request in each scenario."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "ESG_", "GLIBC_TUNABLES"))
    }
    environment |= {"PYTHONHASHSEED": "0", "GLIBC_TUNABLES": PLAIN_COPIES}
    with tempfile.TemporaryDirectory(prefix="esg-guard-") as directory:
        out = Path(directory, "count")
        run = subprocess.run(
            [
                *("valgrind", "--tool=callgrind", "--instr-atstart=no"),
                *(f"--callgrind-out-file={out}", sys.executable, str(HERE / "hotpath.py")),
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        if run.returncode:
            sys.exit(f"guard: no result:\n{run.stderr}")
        requests = int(run.stdout)
        return dict(_read(file.read_text("latin-1"), requests) for file in _dumps(out))


def _dumps(out: Path) -> list[Path]:
    """The dumps in order, without the one made at the end of the program, which has no number."""
    return sorted(out.parent.glob(f"{out.name}.*"), key=lambda file: int(file.suffix[1:]))


def _read(dump: str, requests: int) -> tuple[str, int]:
    trigger, totals = _TRIGGER.search(dump), _TOTALS.search(dump)
    assert trigger is not None, dump[:1000]
    assert totals is not None, dump[:1000]
    return trigger[1], round(int(totals[1]) / requests)


def _parse_options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Count the instructions of a request.")
    parser.add_argument("--store", action="store_true", help="replace the stored counts")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
