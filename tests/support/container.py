"""Builds and runs a Dockerfile without a container engine, in namespaces over this machine's root.

Each stage is an overlay over this machine's root, in which the Dockerfile's instructions are
executed. A container's command is PID 1 of a PID namespace, with its own network, a read-only root
and an empty /tmp. The overlays are on a tmpfs that disappears with its mount namespace.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from .runner import kill_session
from .waiting import DEADLINE, eventually

PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"

PIP = ("PIP_CONFIG_FILE=/dev/null", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/mnt")
"""The environment of RUN: packages come from the folder of `Builder`."""

_START = """
import fcntl, os, socket, struct, subprocess, sys
root, folder, user, *command = sys.argv[1:]
with socket.socket() as sock:
    fcntl.ioctl(sock, 0x8914, struct.pack("16sH", b"lo", 0x41))  # SIOCSIFFLAGS: up and running
for words in (
    ["-t", "proc", "proc", f"{root}/proc"],
    ["-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{root}/tmp"],
    ["-o", "remount,bind,ro", root],
):
    subprocess.run(["mount", *words], check=True)
os.chroot(root)
os.chdir(folder)
uid, gid = map(int, user.split(":"))
os.setgroups([])
os.setgid(gid)
os.setuid(uid)
os.execvp(command[0], command)
"""


class Unavailable(Exception):
    """Containers can't run here; the message says why."""


@dataclasses.dataclass
class Image:
    """An image made from a Dockerfile, with the settings for its containers."""

    root: Path
    env: dict[str, str] = dataclasses.field(default_factory=lambda: {"PATH": PATH})
    folder: str = "/"
    user: str = "0:0"
    port: int = 0
    stop_signal: str = "SIGTERM"
    entrypoint: list[str] = dataclasses.field(default_factory=list)
    command: list[str] = dataclasses.field(default_factory=list)
    healthcheck: list[str] = dataclasses.field(default_factory=list)

    def words(self, *command: str) -> list[str]:
        """A command with only the image's environment."""
        return ["env", "-i", *(f"{name}={value}" for name, value in self.env.items()), *command]


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile, each with its arguments."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", "").splitlines():
        name, _, rest = line.partition(" ")
        if name:
            yield name, rest.strip()


class Builder:
    """The mount namespace in which images are built and run; it must be closed."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        """`folder` is empty; `wheels` has every package that pip may install."""
        if os.geteuid() != 0:
            raise Unavailable("only root can make namespaces and overlays")
        self._folder, self._wheels = folder, wheels
        self._stages: list[tuple[str, Image]] = []
        script = 'mount -t tmpfs tmpfs "$0" && echo mounted && exec cat'
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._holder.stdout is not None
        said = self._holder.stdout.readline().decode()
        if said != "mounted\n":
            self.close()
            raise Unavailable(f"no namespace can be made here: {said}")

    def close(self) -> None:
        """End the namespace, and remove everything in it."""
        self._holder.communicate()
        kill_session(self._holder)

    def inside(self, *command: str) -> list[str]:
        """The command prefix that runs a command in the namespace."""
        return ["nsenter", f"--target={self._holder.pid}", "--mount", "--", *command]

    def build(self, context: Path) -> Image:
        """Execute the Dockerfile of a folder; returns the image of its last stage."""
        arguments = set()
        for name, rest in instructions((context / "Dockerfile").read_text()):
            if name == "ARG":
                arguments.add(rest.partition("=")[0])
            elif name == "FROM":
                base, _, stage = rest.partition(" AS ")
                assert base.strip("${}") in arguments
                image = self._base()
                self._stages.append((stage, image))
            elif name == "RUN":
                script = f"cd {image.folder} && {rest}"
                self._run("chroot", str(image.root), *image.words(*PIP, "/bin/sh", "-c", script))
            elif name == "COPY":
                self._copy(image, context, *shlex.split(rest))
            else:
                self._configure(image, name, rest)
        return image

    def _run(self, *command: str) -> None:
        """Run a command in the namespace; it must succeed."""
        done = subprocess.run(self.inside(*command), capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, (command, done.stdout, done.stderr)

    def _base(self) -> Image:
        """This machine as an image that has Python, and pip with our wheels, for every user."""
        stage = self._folder / str(len(self._stages))
        root = stage / "root"
        self._run("mkdir", "-p", str(root), f"{stage}/upper", f"{stage}/work")
        layers = f"lowerdir=/,upperdir={stage}/upper,workdir={stage}/work"
        python = Path(sys.base_prefix)
        try:
            self._run("mount", "-t", "overlay", "overlay", "-o", layers, str(root))
            if python == Path("/usr"):
                self._run(
                    "ln", "-sf", os.path.realpath(sys.executable), f"{root}/usr/local/bin/python"
                )
            else:
                self._run("mount", "--bind", "-o", "ro", str(python), f"{root}/usr/local")
            self._run("chroot", str(root), "/usr/local/bin/python", "--version")
        except AssertionError as error:
            raise Unavailable(f"this machine is no base image: {error}") from None
        self._run("mount", "--rbind", "/dev", f"{root}/dev")
        self._run("mount", "--bind", str(self._wheels), f"{root}/mnt")
        self._run("chmod", "a+rx", *(f"{root}{folder}" for folder in python.parents))
        return Image(root)

    def _copy(self, image: Image, context: Path, *words: str) -> None:
        """COPY, in the forms that these Dockerfiles use: files, the context, a folder of a stage.

        Files get another modification time, as with some engines.
        """
        copy = ("cp", "-r", "--no-dereference", "--preserve=mode,ownership")
        if words[0].startswith("--from="):
            origin = dict(self._stages)[words[0].removeprefix("--from=")].root
            assert words[1] == words[2]
            self._run(*copy, f"{origin}{words[1]}", str(Path(f"{image.root}{words[2]}").parent))
            return
        *sources, target = words
        assert target == "./"
        folder = f"{image.root}{image.folder}/"
        everything = sources == ["."]
        found = [path for source in sources for path in glob.glob(f"{context}/{source}")]
        self._run(*copy, *found, folder)
        if everything:
            for pattern in (context / ".dockerignore").read_text().split():
                for path in context.glob(pattern):
                    self._run("rm", "-r", f"{folder}{path.relative_to(context)}")

    def _configure(self, image: Image, name: str, rest: str) -> None:
        """The instructions that only set options of the containers."""
        match name:
            case "ENV":
                for word in shlex.split(rest):
                    key, _, value = word.partition("=")
                    image.env[key] = value.replace("$PATH", image.env["PATH"])
            case "WORKDIR":
                image.folder = rest
                self._run("mkdir", "-p", f"{image.root}{rest}")
            case "USER":
                image.user = rest
            case "EXPOSE":
                image.port = int(rest)
            case "STOPSIGNAL":
                image.stop_signal = rest
            case "HEALTHCHECK":
                assert re.match(r"--interval=\d+s --timeout=\d+s .*CMD \[", rest)
                image.healthcheck = json.loads(rest[rest.index("[") :])
            case "ENTRYPOINT":
                image.entrypoint = json.loads(rest)
            case "CMD":
                image.command = json.loads(rest)
            case _:
                raise AssertionError(f"not an instruction that is known here: {name}")


class Container:
    """A running container; it must be killed."""

    def __init__(self, builder: Builder, image: Image, command: Sequence[str], log: Path) -> None:
        self._image, self._log = image, log
        spaces = ("--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child")
        start = [sys.executable, "-c", _START, str(image.root), image.folder, image.user]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                builder.inside("unshare", *spaces, *start, *image.words(*command)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def init(self) -> psutil.Process:
        """The process that is PID 1 inside."""
        (process,) = psutil.Process(self._process.pid).children()
        return process

    def wait_for_log(self, text: str) -> None:
        def found() -> bool:
            assert self._process.poll() is None or text in self.log, self.log
            return text in self.log

        eventually(found, f"{text!r} in the log")

    def begin(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in the container, as its user, as `docker exec` does."""
        uid, gid = self._image.user.split(":")
        target = (f"--target={self.init.pid}", "--mount", "--pid", "--net", "--root", "--wd")
        who = (f"--setuid={uid}", f"--setgid={gid}")
        return subprocess.Popen(
            ["nsenter", *target, *who, "--", *self._image.words(*command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command in the container; returns its exit code and its output."""
        process = self.begin(*command)
        output, _ = process.communicate(timeout=DEADLINE)
        return process.returncode, output

    def wait(self) -> int:
        """Wait for the end; returns the exit code of PID 1."""
        return self._process.wait(DEADLINE)

    def kill(self) -> None:
        """Kill all processes that are left."""
        kill_session(self._process)


def repacked(folder: Path, *names: str) -> None:
    """Build wheels of installed packages, for a pip that can't reach an index."""
    for name in names:
        package: Any = importlib.metadata.distribution(name)
        tags = re.findall(r"^Tag: (.+)$", package.read_text("WHEEL"), re.MULTILINE)
        columns = zip(*(tag.split("-") for tag in tags), strict=True)
        tag = "-".join(".".join(sorted(set(column))) for column in columns)
        with zipfile.ZipFile(folder / f"{name}-{package.version}-{tag}.whl", "w") as wheel:
            for file in package.files:
                if not {"..", "__pycache__"} & set(file.parts):
                    wheel.write(file.locate(), str(file))
