"""The warm interpreter of the tests runs a program as python itself would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import warm_python
from warm_python import WarmPython


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmPython]:
    with WarmPython(sys.executable, ["decimal"], os.environ) as running:
        yield running


@pytest.mark.parametrize(
    "source",
    [
        "import sys; print(sys.argv, sys.stdin.read(), __name__)",
        "import os; print(os.getcwd(), os.environ['WORD'])",
        "import sys; print('oh', file=sys.stderr); sys.exit(7)",
        "import sys; sys.exit('a message')",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import there; print(there.WORD)",
        "import os; print(os.getppid())",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    ],
)
def test_a_program_runs_as_it_would_in_a_new_interpreter(
    warm: WarmPython, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "there.py").write_text("WORD = 'found'")
    environment = {**os.environ, "WORD": "said", "PYTHONPATH": str(tmp_path / "library")}
    script = tmp_path / "script.py"
    script.write_text(source)
    python = str(warm.executable(tmp_path / "python"))
    for words in (["-c", source, "one", "two"], [str(script), "one", "two"]):
        cold, ran = (
            subprocess.run([program, *words], input="text", capture_output=True, text=True, env=environment)
            for program in (sys.executable, python)
        )
        assert (ran.stdout, ran.stderr) == (cold.stdout, cold.stderr)
        # A shell says 128 and the signal's number where subprocess says its negative.
        assert ran.returncode == (cold.returncode if cold.returncode >= 0 else 128 - cold.returncode)


def test_what_is_imported_is_there_already(warm: WarmPython) -> None:
    done = warm.run(["-c", "import sys; print('decimal' in sys.modules, 'there' in sys.modules)"], os.environ)
    assert done.stdout == "True False\n"


def test_a_program_ends_with_whoever_asked_for_it(warm: WarmPython, tmp_path: Path) -> None:
    read, write = os.pipe()
    source = "import os, time; os.write(1, b'begun'); time.sleep(3600)"
    asking = subprocess.Popen([warm.executable(tmp_path / "python"), "-c", source], stdout=write)
    os.close(write)
    with open(read, "rb", closefd=True) as output:  # noqa: PTH123 (a pipe)
        assert output.read(5) == b"begun"
        asking.send_signal(signal.SIGKILL)
        asking.wait()
        assert output.read() == b"", "its end of the pipe is closed when it is gone"


def test_a_signal_reaches_the_program_and_its_end_is_waited_for(warm: WarmPython, tmp_path: Path) -> None:
    source = """
import os, signal, time
def end(number, frame):
    os.write(1, b"ended in order\\n")
    raise SystemExit(3)
signal.signal(signal.SIGTERM, end)
os.write(1, b"begun\\n")
time.sleep(3600)
"""
    words = [warm.executable(tmp_path / "python"), "-c", source]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        assert asking.stdout.readline() == "begun\n"
        asking.terminate()
        assert asking.stdout.read() == "ended in order\n"
        assert asking.wait() == 3


def test_open_files_are_passed_on_under_their_numbers(warm: WarmPython, tmp_path: Path) -> None:
    pipes = [os.pipe() for _ in range(3)]
    written = [write for _, write in pipes]
    source = f"import os\nfor n in {written}: os.write(n, str(n).encode())"
    subprocess.run([warm.executable(tmp_path / "python"), "-c", source], pass_fds=written, check=True)
    for read, write in pipes:
        os.close(write)
        assert os.read(read, 100) == str(write).encode()
        os.close(read)


def test_options_are_for_the_interpreter_itself(warm: WarmPython, tmp_path: Path) -> None:
    words = [warm.executable(tmp_path / "python"), "-I", "-c", "import sys; print(sys.flags.isolated, *sys.modules)"]
    done = subprocess.run(words, capture_output=True, text=True)
    flag, *modules = done.stdout.split()
    assert (flag, "decimal" in modules) == ("1", False)


def test_what_a_program_starts_with_it_is_forked_too_where_it_is_everywhere(warm: WarmPython, tmp_path: Path) -> None:
    inner = "import sys; print(sys.executable, 'decimal' in sys.modules)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    python = tmp_path / "python"
    for everywhere, said in ((True, f"{python} True"), (False, f"{sys.executable} False")):
        words = [warm.executable(python, everywhere=everywhere), "-c", outer]
        assert subprocess.run(words, capture_output=True, text=True).stdout.strip() == said


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_nothing_is_left_where_the_warm_interpreter_is_killed(tmp_path: Path) -> None:
    with WarmPython(sys.executable, [], os.environ) as warm:
        source = "import os, time; os.write(1, str(os.getpid()).encode() + b'\\n'); time.sleep(3600)"
        words = [warm.executable(tmp_path / "python"), "-c", source]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as asking:
            assert asking.stdout is not None
            program = int(asking.stdout.readline())
            server = int(Path(f"/proc/{program}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(server, signal.SIGKILL)
            assert asking.stdout.read() == b"", "the program has ended, which holds the other end"
            assert asking.wait() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_shared_one_is_that_of_all_processes_of_a_run_and_ends_with_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = warm_python.Run()
    source = "print(open('/proc/self/stat').read().rpartition(')')[2].split()[1])"
    servers = []
    for run in (first, warm_python.Run(str(first.folder))):
        monkeypatch.setattr(warm_python, "run", run)
        with warm_python.shared("one", sys.executable, ["decimal"], os.environ) as warm:
            servers.append(int(warm.run(["-c", source], os.environ).stdout))
    assert servers[0] == servers[1]
    run.end()
    assert first.folder.is_dir(), "it is the first one's"
    server = psutil.Process(servers[0])
    first.end()
    server.wait(60)
    assert not first.folder.exists()
