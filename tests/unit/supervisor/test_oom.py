"""Kills by the out-of-memory killer, as both versions of cgroups count them."""

from __future__ import annotations

import pytest

from esg.supervisor.oom import RECENT, OOMKills

LAYOUTS = {
    "v2": ("0::/system.slice/esg.service", "system.slice/esg.service/memory.events"),
    "v2, no controller of its own": ("0::/a/b", "a/memory.events"),
    "v2, a container": ("0::/", "memory.events"),
    "v2, the path outside the container": ("0::/docker/1234", "memory.events"),
    "v1": ("4:cpu:/x\n3:memory:/esg\n0::/", "memory/esg/memory.oom_control"),
    "v1, a container": ("3:memory:/docker/1234", "memory/memory.oom_control"),
}
TEXTS = {
    "memory.events": "low 0\nhigh 0\nmax 8\noom 3\noom_kill {}\noom_group_kill 0\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n",
}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def cgroup(tmp_path, request):
    """Sets the count, and returns the file that contains it."""
    groups, name = request.param
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
    file = tmp_path / "sys/fs/cgroup" / name
    file.parent.mkdir(parents=True)

    def write(count):
        file.write_text(TEXTS[file.name].format(count))
        return file

    write(2)
    return write


def test_kills_before_the_start_are_ignored(cgroup, tmp_path):
    assert OOMKills(tmp_path).take(0.0) is None


def test_each_kill_explains_one_worker(cgroup, tmp_path):
    kills = OOMKills(tmp_path)
    file = cgroup(4)
    assert [kills.take(1.0), kills.take(1.0), kills.take(1.0)] == [file, file, None]


def test_a_kill_that_was_seen_before_the_worker_is_reaped_counts(cgroup, tmp_path):
    kills = OOMKills(tmp_path)
    file = cgroup(3)
    kills.look(1.0)
    assert kills.take(1.0 + RECENT) == file


def test_an_old_kill_explains_no_worker(cgroup, tmp_path):
    kills = OOMKills(tmp_path)
    cgroup(3)
    kills.look(1.0)
    assert kills.take(1.1 + RECENT) is None


def test_a_count_that_shrinks_or_disappears_is_not_a_kill(cgroup, tmp_path):
    kills = OOMKills(tmp_path)
    cgroup(0).unlink()
    assert kills.take(1.0) is None


def test_without_cgroups_nothing_is_known(tmp_path):
    assert OOMKills(tmp_path).take(0.0) is None
