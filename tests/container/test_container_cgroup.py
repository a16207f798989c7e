"""What control groups allow, read from made-up ones of both versions, and from a real one where one can be made."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mme.container import cgroup, config, memory
from mme.container.config import MiB

NONE_V1 = str(0x7FFFFFFFFFFFF000)


def machine(root: Path, own: str, **files: str) -> Path:
    """``own`` is /proc/self/cgroup; files are named by their path below /sys/fs/cgroup, with __ for a slash."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_container_of_version_2(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "0::/\n",
        memory_DOT_max="2147483648\n",
        memory_DOT_high="max\n",
        memory_DOT_stat="anon 1000\nfile 500\nkernel 100\nshmem 10\nfile_mapped 400\n",
        memory_DOT_events="low 0\nhigh 0\nmax 7\noom 1\noom_kill 3\noom_group_kill 0\n",
        cpu_DOT_max="50000 100000\n",
    )
    assert cgroup.memory(root) == [cgroup.Limit(2 << 30, 1110)]
    assert cgroup.cpus(root) == 0.5
    assert cgroup.oom_kills(root) == 3


def test_the_lowest_limit_above_a_service_holds_in_version_2(tmp_path: Path) -> None:
    """Outside a container, the process's group is not the root, and the root has no limits at all."""
    root = machine(
        tmp_path,
        "0::/system.slice/mme.service\n",
        system_DOT_slice__mme_DOT_service__memory_DOT_max="max\n",
        system_DOT_slice__mme_DOT_service__memory_DOT_high="4000000\n",
        system_DOT_slice__mme_DOT_service__memory_DOT_stat="anon 7\n",
        system_DOT_slice__mme_DOT_service__memory_DOT_events="oom_kill 1\n",
        system_DOT_slice__mme_DOT_service__cpu_DOT_max="max 100000\n",
        system_DOT_slice__memory_DOT_max="3000000\n",
        system_DOT_slice__memory_DOT_stat="anon 2000000\n",
        system_DOT_slice__memory_DOT_events="oom_kill 9\n",
        system_DOT_slice__cpu_DOT_max="150000 100000\n",
        cgroup_DOT_procs="",
    )
    assert cgroup.memory(root) == [cgroup.Limit(4_000_000, 7), cgroup.Limit(3_000_000, 2_000_000)]
    assert cgroup.cpus(root) == 1.5
    assert cgroup.oom_kills(root) == 1


@pytest.mark.parametrize("path", ["/docker/0123", "/", "/../.."])
def test_a_container_of_version_1(tmp_path: Path, path: str) -> None:
    """Its own group is mounted as the root, and /proc/self/cgroup has the path that it has outside."""
    root = machine(
        tmp_path,
        f"9:name=systemd:{path}\n4:memory:{path}\n2:cpu,cpuacct:{path}\n0::/\n",
        memory__memory_DOT_limit_in_bytes="1073741824\n",
        memory__memory_DOT_stat="rss 1\ntotal_rss 200\ntotal_shmem 20\ntotal_cache 999\n",
        memory__memory_DOT_oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        cpu__cpu_DOT_cfs_quota_us="200000\n",
        cpu__cpu_DOT_cfs_period_us="100000\n",
    )
    assert cgroup.memory(root) == [cgroup.Limit(1 << 30, 220)]
    assert cgroup.cpus(root) == 2.0
    assert cgroup.oom_kills(root) == 2


def test_groups_above_hold_in_version_1(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "4:memory:/a/b\n2:cpu,cpuacct:/a/b\n",
        memory__memory_DOT_limit_in_bytes=NONE_V1,
        memory__a__memory_DOT_limit_in_bytes="1000000",
        memory__a__memory_DOT_stat="total_rss 600000\n",
        memory__a__b__memory_DOT_limit_in_bytes=NONE_V1,
        **{
            "cpu,cpuacct__cpu_DOT_cfs_quota_us": "-1",
            "cpu,cpuacct__cpu_DOT_cfs_period_us": "100000",
            "cpu,cpuacct__a__cpu_DOT_cfs_quota_us": "25000",
            "cpu,cpuacct__a__cpu_DOT_cfs_period_us": "50000",
        },
    )
    assert cgroup.memory(root) == [cgroup.Limit(1_000_000, 600_000)]
    assert cgroup.cpus(root) == 0.5


@pytest.mark.parametrize("text", ["", "max 100000", "0 100000", "-1 100000", "100000", "x y", "100000 0", "\x00"])
def test_a_quota_that_is_none(tmp_path: Path, text: str) -> None:
    root = machine(tmp_path, "0::/\n", cpu_DOT_max=text, memory_DOT_max=text)
    assert cgroup.cpus(root) is None
    assert cgroup.memory(root) in ([], [cgroup.Limit(100000, 0)])


def test_a_system_without_groups(tmp_path: Path) -> None:
    assert (cgroup.memory(tmp_path), cgroup.cpus(tmp_path), cgroup.oom_kills(tmp_path)) == ([], None, None)


@pytest.mark.parametrize(("quota", "cores"), [(None, 4), (0.1, 1), (0.5, 1), (1.4, 1), (1.5, 2), (3.0, 3), (64.0, 4)])
def test_cores_follow_the_quota_and_never_exceed_the_affinity(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(cgroup, "cpus", lambda: quota)
    settings = config.read({})
    assert (settings.cpus, settings.max_loads) == (cores, cores)


def test_memory_is_the_least_of_all_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = memory.host()
    limits = [cgroup.Limit(100 * MiB, 90 * MiB), cgroup.Limit(80 * MiB, 20 * MiB)]
    monkeypatch.setattr(cgroup, "memory", lambda: limits)
    assert memory.host() == memory.Host(80 * MiB, 10 * MiB)
    assert memory.host(5 * MiB) == memory.Host(5 * MiB, 5 * MiB)
    limits[:] = [cgroup.Limit(80 * MiB, 90 * MiB)]
    assert memory.host().available == 0
    limits[:] = []
    assert memory.host().total == whole.total


@pytest.fixture
def group() -> Iterator[Path]:
    """A real group of half a core and 700 MiB, of whichever version is there."""
    name = f"mme-test-{os.getpid()}"
    made: list[Path] = []
    try:
        with contextlib.suppress(OSError):
            for controller, files in (
                ("memory", {"memory.limit_in_bytes": str(700 * MiB)}),
                ("cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}),
            ):
                folder = Path("/sys/fs/cgroup", controller, name)
                if folder.parent.is_dir():
                    folder.mkdir()
                    made.append(folder)
                    for file, text in files.items():
                        (folder / file).write_text(text)
        if len(made) != 2:
            pytest.skip("no control groups of version 1 can be made here")
        yield Path(name)
    finally:
        for folder in made:
            folder.rmdir()


def test_a_real_group_is_seen(group: Path) -> None:
    code = (
        "import os, sys\n"
        f"for controller in ('memory', 'cpu'):\n"
        f"    open(f'/sys/fs/cgroup/{{controller}}/{group}/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "from mme.container import config, memory\n"
        "print(config.usable_cpus(), memory.host().total, memory.oom_kills())\n"
    )
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert words == ["1", str(700 * MiB), "0"]
