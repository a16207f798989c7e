"""Uploads that are interrupted, that fail among others, and their progress on a terminal."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from task_project import Project, targets

from mme import releases
from mme.multipart import PART, Place, first_part


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_ended_while_uploading_the_next_run_goes_on(project: Project, end: signal.Signals) -> None:
    """kill -9, Ctrl-C or a SIGTERM in the middle: nothing is visible, and the next run sends only what is missing."""
    project.tasks_file()
    made = project.build("bert", os.urandom(12 * PART))
    slow = (
        "import time, mme.multipart as m, invoke, sys\n"
        "m.SENDERS = 1\n"
        "real = m.Place.send\n"
        "def send(self, upload, number, body, crc):\n"
        "    etag = real(self, upload, number, body, crc)\n"
        "    print('part', number, flush=True)\n"
        "    time.sleep(0.3)\n"
        "    return etag\n"
        "m.Place.send = send\n"
        "sys.exit(invoke.Program().run(['invoke', 'upload', '--model', 'bert']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", slow], stdout=subprocess.PIPE, text=True, cwd=project.folder
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "part 4\n":
                process.send_signal(end)
                break
    assert process.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}[end]
    assert targets(project) == set()
    assert list(releases.unfinished_uploads(project.s3, project.store)) == [made.target]
    (done,) = project("upload", "--model", "bert", "--json").json["models"]
    assert done["status"] == "resumed"
    assert done["sent"] <= made.size - 4 * PART
    body = project.s3.get_object(Bucket=project.bucket, Key=f"models/{made.target}")["Body"].read()
    assert body == (project.folder / "dist" / made.target).read_bytes()
    assert releases.unfinished_uploads(project.s3, project.store) == {}


@pytest.mark.parametrize(("end", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_whatever_ends_a_task_its_folders_go(tmp_path: Path, end: signal.Signals, code: int) -> None:
    script = (
        "import time\n"
        "from pathlib import Path\n"
        "from invoke import Context, Exit\n"
        "from mme.packaging.workspace import workspace\n"
        "from mme.tasks.command import command\n"
        "@command({})\n"
        "def build(context):\n"
        "    with workspace(Path('dist')) as folder:\n"
        "        (folder / 'half').write_text('x')\n"
        "        print('at work', flush=True)\n"
        "        time.sleep(60)\n"
        "try:\n"
        "    build(Context())\n"
        "except Exit as ended:\n"
        "    raise SystemExit(ended.code)\n"
    )
    words = [sys.executable, "-c", script]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(end)
        _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Nothing half-done is visible" in said
    assert "Traceback" not in said
    assert list((tmp_path / "dist").iterdir()) == []


def test_the_notes_of_the_later_run_are_kept_although_an_earlier_one_began(project: Project) -> None:
    made = project.build("bert", os.urandom(3 * PART))
    place = {"Bucket": project.bucket, "Key": f"models/{made.target}"}

    def killed_run() -> None:
        """What kill -9 leaves: an upload without notes whose first part is there."""
        metadata = {"mme-digest": made.digest, "mme-author": "ada"}
        upload = project.s3.create_multipart_upload(
            **place, Metadata=metadata, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT"
        )["UploadId"]
        body = (project.folder / "dist" / made.target).read_bytes()[: first_part(PART, metadata)]
        project.s3.upload_part(**place, UploadId=upload, PartNumber=1, Body=body, ChecksumAlgorithm="CRC32")

    for words, status, notes in [([], "resumed", ""), (["--notes", "better"], "uploaded", "better")]:
        killed_run()
        (done,) = project("upload", "--model", "bert", *words, "--json").json["models"]
        assert done["status"] == status
        (record,) = releases.read_records(project.s3, project.store, releases.list_versions(project.s3, project.store))
        assert (record.author, record.notes) == ("ada", notes)
        assert releases.unfinished_uploads(project.s3, project.store) == {}
        releases.delete(project.s3, project.store, made.target)


def test_one_model_that_fails_does_not_keep_the_others_back(project: Project) -> None:
    names = [f"model-{number}" for number in range(12)]
    project.catalogue(*names)
    made = {name: project.build(name, os.urandom(100_000)) for name in names}
    for name in ("model-3", "model-7"):
        path = project.folder / "dist" / made[name].target
        content = bytearray(path.read_bytes())
        content[50_000] ^= 1
        path.write_bytes(content)
    done = project("upload")
    assert done.code == 8
    assert done.err.count("changed or damaged since") == 2
    assert "model-3: " in done.err
    assert "2 of 12 models failed" in done.err
    assert [line.split()[0] for line in done.out.splitlines()[2:]] == names
    assert targets(project) == {item.target for name, item in made.items() if name not in ("model-3", "model-7")}
    again = project("upload", "--json")
    assert again.code == 8
    listed_models = {item["name"]: item for item in again.json["models"]}
    assert listed_models["model-0"]["status"] == "present"
    assert listed_models["model-3"]["status"] == "failed"
    assert "damaged" in listed_models["model-3"]["error"]
    assert "invoke package --force" in listed_models["model-3"]["hint"]


def test_after_credentials_expire_the_rest_is_not_tried(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"model-{number}" for number in range(30)]
    project.catalogue(*names)
    for name in names:
        project.build(name)

    def expired(*_: Any) -> None:
        answer: Any = {"Error": {"Code": "ExpiredToken"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
        raise ClientError(answer, "PutObject")

    monkeypatch.setattr(Place, "put", expired)
    done = project("upload", "--json")
    assert done.code == 8
    assert "expired" in done.err
    statuses = [item["status"] for item in done.json["models"]]
    assert 1 <= statuses.count("failed") < 20
    assert statuses.count("failed") + statuses.count("not tried") == 30
    monkeypatch.undo()


def test_interrupted_among_many_the_next_run_sends_the_rest(project: Project) -> None:
    names = [f"model-{number}" for number in range(20)]
    project.catalogue(*names)
    made = [project.build(name, os.urandom(50_000)) for name in names]
    slow = (
        "import os, threading, mme.multipart as m, invoke, sys\n"
        "real = m.Place.put\n"
        "first = threading.Semaphore(3)\n"
        "def put(self, *given):\n"
        "    if not first.acquire(blocking=False):\n"
        "        os.write(1, b'waiting\\n')\n"  # from several threads: a line is one write
        "        sys.stdin.readline()\n"
        "    real(self, *given)\n"
        "m.Place.put = put\n"
        "sys.exit(invoke.Program().run(['invoke', 'upload']))\n"
    )
    project.tasks_file()
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", slow], text=True, cwd=project.folder, **pipes) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "waiting\n"
        while len(targets(project)) < 3:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.stdin.close()
        assert "Interrupted" in process.stderr.read()
    assert process.returncode == 130
    there = targets(project)
    assert 3 <= len(there) < 20
    done = project("upload", "--json")
    assert done.code == 0
    assert [item["status"] == "present" for item in done.json["models"]] == [item.target in there for item in made]
    assert targets(project) == {item.target for item in made}
    for item in made:
        body = project.s3.get_object(Bucket=project.bucket, Key=f"models/{item.target}")["Body"].read()
        assert body == (project.folder / "dist" / item.target).read_bytes()


def test_progress_is_for_a_terminal_only(project: Project) -> None:
    project.tasks_file()
    project.build("bert", os.urandom(6 * PART))
    piped = project.process("upload", "--model", "bert", "--prefix", "a/models/")
    assert (piped.returncode, piped.stderr) == (0, "")
    ours, theirs = pty.openpty()
    seen = project.process("upload", "--model", "bert", "--prefix", "b/models/", capture_output=False, stderr=theirs)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert seen.returncode == 0
    assert "bert: uploading" in shown
    assert "/s" in shown
