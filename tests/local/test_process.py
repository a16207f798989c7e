"""The local AWS as a process: what it prints, how it ends, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from local_tools import FAKE_CONTAINER, Cloud, wait_for

from mme.errors import UsageError
from mme.local import LocalAws
from mme.runner import guard

COMMAND = [sys.executable, "-m", "mme.local"]
GUARD = Path(guard.__file__)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Shell:
    """``python -m mme.local`` as a shell starts it."""

    def __init__(self, *words: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        self.errors: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        self.errors.extend(self.process.stderr or ())

    def exports(self) -> list[str]:
        assert self.process.stdout is not None
        return [self.process.stdout.readline().rstrip("\n") for _ in range(3)]

    def port(self) -> int:
        return int(self.exports()[0].rpartition(":")[2])

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def shells() -> Iterator[list[Shell]]:
    started: list[Shell] = []
    yield started
    for shell in started:
        if shell.process.poll() is None:
            shell.process.kill()
        shell.process.wait()


def test_importing_it_is_cheap() -> None:
    """The package of the API must not pull in moto, nor the AWS libraries."""
    code = "import sys, mme.local; print(any(name.split('.')[0] in ('moto', 'boto3', 'flask') for name in sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_three_lines_for_another_shell(tmp_path: Path, shells: list[Shell]) -> None:
    """The lines are shell: sourcing them gives a shell in which AWS clients work."""
    shell = Shell("--data-dir", str(tmp_path / "d"), "--region", "eu-central-1", "--container", FAKE_CONTAINER)
    shells.append(shell)
    lines = shell.exports()
    assert [line.split("=")[0] for line in lines] == [
        "export AWS_ENDPOINT_URL",
        "export AWS_ACCESS_KEY_ID",
        "export AWS_REGION",
    ]
    asked = "\n".join([*lines, 'echo "$AWS_ENDPOINT_URL|$AWS_SECRET_ACCESS_KEY|$AWS_DEFAULT_REGION"'])
    url, secret, region = subprocess.check_output(["sh", "-c", asked], text=True).strip().split("|")
    assert url.startswith("http://127.0.0.1:")
    assert secret
    assert region == "eu-central-1"
    wait_for(lambda: any("ready at" in line for line in shell.errors))
    assert shell.end(signal.SIGINT) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(tmp_path: Path, shells: list[Shell], number: int) -> None:
    data = tmp_path / "d"
    shell = Shell("--data-dir", str(data), "--container", FAKE_CONTAINER)
    shells.append(shell)
    port = shell.port()
    assert shell.end(number) == 0
    assert not accepts(port)
    assert [path.name for path in data.iterdir()] == ["mme-local"]
    assert "Traceback" not in "".join(shell.errors)


def test_the_port_that_is_asked_for(tmp_path: Path, shells: list[Shell]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shell = Shell("--data-dir", str(tmp_path / "d"), "--port", str(port))
    shells.append(shell)
    assert shell.port() == port
    listening = [
        tuple(c.laddr) for c in psutil.Process(shell.process.pid).net_connections() if c.status == psutil.CONN_LISTEN
    ]
    assert listening == [("127.0.0.1", port)]  # loopback only


def refused(*words: str) -> str:
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == UsageError.exit_code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        words = refused("--data-dir", str(tmp_path / "d"), "--port", str(port))
    assert f"Port {port} on 127.0.0.1 cannot be used" in words
    assert "--port" in words


def test_a_folder_in_use(tmp_path: Path) -> None:
    with LocalAws(tmp_path / "d", container=FAKE_CONTAINER) as first:
        words = refused("--data-dir", str(tmp_path / "d"))
        assert f"is in use by another local AWS (process {first.pid})" in words
        with pytest.raises(UsageError, match="is in use"):
            LocalAws(tmp_path / "d").start()
    with LocalAws(tmp_path / "d", container=FAKE_CONTAINER):
        pass  # free again


def test_a_folder_that_is_somebody_elses(tmp_path: Path) -> None:
    mine = tmp_path / "thesis.txt"
    mine.write_text("three years")
    assert "is not empty and was not made by the local AWS" in refused("--data-dir", str(tmp_path))
    assert mine.read_text() == "three years"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be used" in refused("--data-dir", str(tmp_path / "file" / "d"))


def test_a_container_that_cannot_run(tmp_path: Path) -> None:
    words = refused("--data-dir", str(tmp_path / "d"), "--container", "/no/such/program serve")
    assert "there is no program '/no/such/program'" in words
    assert not (tmp_path / "d").exists()


def test_words_that_make_no_sense(tmp_path: Path) -> None:
    for words in (["--account", "12"], ["--region", "cn-north-1"], ["--port", "99999"], ["--nonsense"], []):
        done = subprocess.run([*COMMAND, *words, "--data-dir", str(tmp_path)][: 3 + len(words)], capture_output=True)
        assert done.returncode == 2
    assert not list(tmp_path.iterdir())


def containers_of(cloud: Cloud) -> list[int]:
    assert cloud.aws.pid is not None
    return [process.pid for process in psutil.Process(cloud.aws.pid).children(recursive=True)]


def test_stopping_it_ends_its_containers_and_empties_its_folder(tmp_path: Path) -> None:
    data = tmp_path / "d"
    with LocalAws(data, container=FAKE_CONTAINER) as aws:
        cloud = Cloud(aws)
        cloud.publish("m.tar.gz", b"x" * 200_000)
        cloud.endpoint()
        pids = [aws.pid, *containers_of(cloud)]
        assert len(pids) >= 3  # the server, a guard, a container
        port = int(aws.url.rpartition(":")[2])
    assert not [pid for pid in pids if pid is not None and alive(pid)]
    assert not accepts(port)
    assert [path.name for path in data.iterdir()] == ["mme-local"]
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_killed_server_takes_its_containers_along(tmp_path: Path) -> None:
    """kill -9 leaves the server no time to end anything: the guards notice by themselves."""
    aws = LocalAws(tmp_path / "d", container=FAKE_CONTAINER)
    aws.start()
    cloud = Cloud(aws)
    cloud.endpoint()
    pids = containers_of(cloud)
    assert aws.pid is not None
    os.kill(aws.pid, signal.SIGKILL)
    wait_for(lambda: not [pid for pid in pids if alive(pid)])
    aws.stop()
    with LocalAws(tmp_path / "d", container=FAKE_CONTAINER) as again:  # what it left in its folder is no hindrance
        assert Cloud(again).s3.list_buckets()["Buckets"]


def test_it_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    """A test run or a demo that is killed leaves no AWS behind."""
    code = (
        "import sys, time; from pathlib import Path; from mme.local import LocalAws\n"
        "aws = LocalAws(Path(sys.argv[1]), container=sys.argv[2]); aws.start(); print(aws.pid, flush=True)\n"
        "time.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "d"), FAKE_CONTAINER], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert alive(pid)
    owner.kill()
    owner.wait()
    wait_for(lambda: not alive(pid))


def test_its_owner_can_stop_it_twice(tmp_path: Path) -> None:
    aws = LocalAws(tmp_path / "d", container=FAKE_CONTAINER)
    aws.stop()
    aws.start()
    aws.stop()
    aws.stop()


def test_its_output_is_at_hand(tmp_path: Path) -> None:
    with LocalAws(tmp_path / "d", container=FAKE_CONTAINER) as aws:
        Cloud(aws).endpoint()
        wait_for(lambda: any("in service" in line for line in aws.output))


# -- the door


def get(aws: LocalAws, **headers: str) -> tuple[int, str]:
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(urllib.request.Request(f"{aws.url}/", headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as problem:
        return problem.code, problem.read().decode()


def test_a_web_page_is_not_answered(local_aws: LocalAws) -> None:
    """A page that is open in the user's browser can send requests to loopback; so can a name that points there."""
    status, words = get(local_aws, Origin="https://example.com")
    assert (status, words) == (403, "The local AWS does not answer web pages.\n")
    status, words = get(local_aws, Host="evil.example.com")
    assert status == 403
    assert "answers on 127.0.0.1 only" in words


def test_an_unsigned_request_is_not_answered(local_aws: LocalAws) -> None:
    status, words = get(local_aws)
    assert status == 403
    assert "AccessDenied" in words


# -- the guard


def guard(*words: str, grace: float = 5.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(GUARD), str(grace), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def read_pids(process: subprocess.Popen[str], count: int) -> list[int]:
    assert process.stdout is not None
    return [int(process.stdout.readline()) for _ in range(count)]


def test_the_guard_passes_output_and_exit_code_on() -> None:
    process = guard(sys.executable, "-c", "print('hello'); raise SystemExit(7)")
    assert process.stdout is not None
    assert process.stdout.read() == "hello\n"
    assert process.wait(20) == 7


def test_the_guard_says_what_cannot_be_started() -> None:
    process = guard("/no/such/program")
    assert process.stdout is not None
    assert "cannot be started: No such file or directory" in process.stdout.read()
    assert process.wait(20) == 127


def test_the_guard_ends_its_command_when_its_input_closes() -> None:
    process = guard("sh", "-c", "echo $$; sleep 600")
    [pid] = read_pids(process, 1)
    assert process.stdin is not None
    process.stdin.close()
    process.wait(20)
    assert not alive(pid)


def test_the_guard_kills_what_does_not_want_to_end() -> None:
    stubborn = (
        "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"
    )
    process = guard(sys.executable, "-c", stubborn, grace=0.2)
    [pid] = read_pids(process, 1)
    assert process.stdin is not None
    process.stdin.close()
    process.wait(20)
    assert not alive(pid)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a process adopt the orphans below it")
def test_the_guard_finds_children_that_left_the_group() -> None:
    """multi-model-server's Python workers, say, once their Java parent is gone."""
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        print(os.getpid(), flush=True); time.sleep(600)\n"
        "    os._exit(0)\n"
        "time.sleep(600)\n"
    )
    process = guard(sys.executable, "-c", code)
    [orphan] = read_pids(process, 1)
    assert process.stdin is not None
    process.stdin.close()
    process.wait(20)
    assert not alive(orphan)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's death signal")
def test_a_killed_guard_takes_its_command_along() -> None:
    process = guard("sh", "-c", "echo $$; exec sleep 600")
    [pid] = read_pids(process, 1)
    process.kill()
    process.wait()
    wait_for(lambda: not alive(pid))


def test_the_environment_for_other_programs(local_aws: LocalAws) -> None:
    environment: dict[str, Any] = local_aws.client_env()
    assert environment["AWS_ENDPOINT_URL"] == local_aws.url
    assert "AWS_PROFILE" not in environment
