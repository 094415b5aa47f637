"""The number of usable CPUs: affinity, and the quotas of both versions of cgroups."""

from __future__ import annotations

import os

import pytest

from esg.settings.cpus import usable


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def machine(root, cgroup, **quotas):
    """A root folder with /proc/self/cgroup, and files of these names under /sys/fs/cgroup."""
    files = {"proc/self/cgroup": cgroup}
    files |= {f"sys/fs/cgroup/{name}": text for name, text in quotas.items()}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_cgroups_the_affinity_counts(tmp_path):
    assert usable(tmp_path) == 8


def test_this_machine_has_at_least_one_cpu():
    assert 1 <= usable() <= 8


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("1000 100000\n", 1),
        ("10000000 100000\n", 8),
        ("", 8),
        ("100000", 8),
        ("100000 0", 8),
        ("many 100000", 8),
    ],
)
def test_quotas_of_cgroups_version_2_limit_the_number(tmp_path, text, count):
    assert usable(machine(tmp_path, "0::/a\n", **{"a/cpu.max": text})) == count


def test_an_ancestor_of_the_cgroup_bounds_it_too(tmp_path):
    quotas = {"cpu.max": "300000 100000", "a/b/cpu.max": "500000 100000"}
    assert usable(machine(tmp_path, "0::/a/b\n", **quotas)) == 3


def test_a_containers_quota_is_found_without_the_path_of_its_cgroup(tmp_path):
    assert usable(machine(tmp_path, "0::/docker/f00\n", **{"cpu.max": "200000 100000"})) == 2


@pytest.mark.parametrize(("quota", "count"), [("-1", 8), ("250000", 3), ("50000", 1)])
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_quotas_of_cgroups_version_1_limit_the_number(tmp_path, mount, quota, count):
    quotas = {f"{mount}/a/cpu.cfs_quota_us": quota, f"{mount}/a/cpu.cfs_period_us": "100000"}
    lines = "5:memory:/a\n4:cpu,cpuacct:/a\n1:name=systemd:/a\n"
    assert usable(machine(tmp_path, lines, **quotas)) == count


def test_quotas_of_other_controllers_are_ignored(tmp_path):
    quotas = {"cpuset/cpu.cfs_quota_us": "100000", "cpuset/cpu.cfs_period_us": "100000"}
    assert usable(machine(tmp_path, "4:cpuset:/\n", **quotas)) == 8
