"""`invoke local` and `invoke bench`, and a reader of the output that goes away."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from task_project import FAKE, Project


def test_a_reader_that_goes_away_is_no_error(project: Project) -> None:
    project.tasks_file()
    long = "a-model-with-a-long-name" * 2
    for number in range(250):  # more than a pipe holds
        project.s3.put_object(Bucket=project.bucket, Key=f"models/{long}/{long}/{long}-{number:012x}.tar.gz", Body=b"x")
    command = f"{sys.executable} -m invoke releases --limit 1000 --json | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=project.folder, capture_output=True, text=True)
    assert done.stdout == "{\n"
    assert done.stderr == ""
    assert done.returncode == 141


def test_local_becomes_the_server_and_stops_when_interrupted(project: Project) -> None:
    project.tasks_file()
    command = [sys.executable, "-m", "invoke", "local", "--port", "0", "--data-dir", "aws", "--container", FAKE]
    command += ["--max-instances", "3", "--minute", "1.5"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=project.folder
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert all(line.startswith("export AWS_") for line in lines)
    assert "AWS_ENDPOINT_URL=http://127.0.0.1:" in lines[0]
    assert process.returncode in (0, 130)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-instances", "0"),
        ("--max-instances", "two"),
        ("--minute", "soon"),
        ("--minute", "61"),
        ("--minute", "nan"),
    ],
)
def test_local_refuses_what_it_cannot_run_with(project: Project, flag: str, value: str) -> None:
    project.tasks_file()
    done = project.process("local", flag, value)
    assert done.returncode == 2
    assert f"{flag} takes a" in done.stderr
    assert repr(value) in done.stderr


def test_bench_runs_each_script(project: Project) -> None:
    project.tasks_file()
    assert project.process("bench").returncode == 1, "no such task where there is nothing to bench"
    (project.folder / "benchmarks").mkdir()
    (project.folder / "benchmarks" / "one.py").write_text("import sys; print('one ran', *sys.argv[1:])")
    (project.folder / "benchmarks" / "two.py").write_text("raise SystemExit(3)")
    (project.folder / "benchmarks" / "_shared.py").write_text("raise SystemExit(4)")
    good = project.process("bench", "--name", "one")
    assert (good.returncode, good.stdout) == (0, "one ran --json build/benchmarks/one.json\n")
    every = project.process("bench")
    assert every.returncode == 1
    assert "benchmark two failed (exit code 3)" in every.stderr.lower()
    unknown = project.process("bench", "--name", "three")
    assert unknown.returncode == 2
    assert "There are: one, two." in unknown.stderr
