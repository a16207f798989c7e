"""What goes to standard output and standard error, whatever those are, and whatever other people wrote."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import boto3
import pytest
from botocore.httpsession import URLLib3Session
from task_project import Project

from mme import aws, releases

HOSTILE = "\x1b[2J\x1b]0;mine\x07 \x9b31m \u202eback\r\nnext \u4e2d"
"""Clears a screen, names a window, colours, turns the direction of text, and begins a line."""


def test_what_others_wrote_is_shown_and_not_obeyed(project: Project) -> None:
    made = project.build("bert")
    assert project("upload", "--model", "bert", "--notes", HOSTILE, "--author", HOSTILE).code == 0
    assert project("promote", "--model", "bert", "--notes", HOSTILE, "--author", HOSTILE).code == 0
    for words in (["channels"], ["history", "--model", "bert"], ["releases", "--model", "bert"]):
        done = project(*words)
        assert not set("\x1b\x07\x9b\u202e\r") & set(done.out)
        (row,) = [line for line in done.out.splitlines() if made.target in line]
        assert "2J" in row
        assert "next \u4e2d" in row
    (channel,) = project("channels", "--json").json["channels"]
    assert (channel["notes"], channel["author"]) == (HOSTILE, HOSTILE)
    project.s3.put_object(Bucket=project.bucket, Key="channels/gpt2.json", Body=json.dumps({"format": HOSTILE}))
    broken = project("history", "--model", "gpt2")
    assert "2J" in broken.err
    assert not set("\x1b\x07\x9b\u202e\r") & set(broken.err)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_locale_without_all_characters(project: Project, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    project.release("bert", b"1")
    assert project("promote", "--model", "bert", "--notes", "\u4e2d\u00e9", "--author", "Zo\u00eb").code == 0
    for words in (["history", "--model", "bert"], ["history", "--model", "bert", "--json"]):
        written = io.BytesIO()
        stream = io.TextIOWrapper(written, encoding=encoding)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert project(*words).code == 0
        stream.flush()
        text = written.getvalue().decode(encoding)
        if "--json" in words:
            assert json.loads(text)["history"][0]["notes"] == "\u4e2d\u00e9"
        else:
            assert "\\u4e2d" in text
            assert "Zo" in text


def test_what_is_no_text_is_refused_and_nothing_is_written(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes from the command line that are not of the locale's encoding."""
    project.release("bert", b"1")
    for flag in ("--notes", "--author"):
        for words in (["promote", "--model", "bert"], ["upload", "--model", "bert"]):
            refused = project(*words, flag, "caf\udce9", "--json")
            assert refused.code == 2
            assert "UTF-8" in refused.json["error"]["hint"]
    monkeypatch.setenv("MME_AUTHOR", "caf\udce9")
    assert "MME_AUTHOR is not text" in project("promote", "--model", "bert").err
    assert project("channels", "--json").json == {"channels": []}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("prune --keep 1 --ignore-endpoints <&- >&-", 2),
        ("promote --model nobody --json >/dev/full 2>/dev/full", 8),
    ],
)
def test_streams_that_are_closed_or_full(project: Project, line: str, code: int) -> None:
    """As a service or a cron job starts a task, and with a disk that has no room left for what it prints."""
    for number in range(2):
        key = project.store.key(f"bert-{number:012x}.tar.gz")
        project.s3.put_object(Bucket=project.bucket, Key=key, Body=b"x")
    words = ["bash", "-c", f"{sys.executable} -m mme {line}"]
    done = subprocess.run(words, cwd=project.folder, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_an_interrupt_is_a_document_for_scripts_too(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(releases, "list_versions", interrupted)
    done = project("releases", "--json")
    assert done.code == 130
    assert done.json["error"] == {
        "kind": "Interrupted",
        "message": "Interrupted.",
        "hint": "Nothing half-done is visible; run the same command again.",
        "exit_code": 130,
    }


def test_an_answer_that_breaks_off(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise aws.BROKEN_OFF("Connection broken: IncompleteRead(162 bytes read, 163 more expected)")

    monkeypatch.setattr(releases, "list_versions", broken)
    done = project("releases", "--json")
    assert done.code == 1
    assert "broke off in the middle of an answer" in done.json["error"]["message"]
    assert "Run the same command again." in done.err


@pytest.mark.parametrize(
    "words",
    [
        ["releases"],
        ["channels"],
        ["promote", "--model", "bert"],
        ["prune", "--yes"],
        ["status", "--endpoint", "main"],
        ["predict", "--endpoint", "main", "--target", "a.tar.gz", "--text", "x"],
        ["logs", "--endpoint", "main"],
        ["doctor", "--endpoint", "main"],
    ],
    ids=" ".join,
)
def test_a_page_of_a_proxy_is_no_answer(project: Project, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """A network that wants a sign-in answers everything with a page, and with success."""
    from botocore.awsrequest import AWSResponse
    from urllib3.response import HTTPResponse

    def page(_: Any, request: Any) -> AWSResponse:
        raw = HTTPResponse(io.BytesIO(b"<html>Sign in"), {"Content-Type": "text/html"}, 200, preload_content=False)
        return AWSResponse(request.url, 200, raw.headers, raw)  # type: ignore[arg-type]

    monkeypatch.setattr(URLLib3Session, "send", page)
    done = project(*words, "--json")
    assert done.code == (1 if words[0] == "doctor" else done.json["error"]["exit_code"])
    assert "a web page came in place of AWS's answer" in done.out
    assert "such as a proxy" in done.out


def test_a_region_that_is_set_and_empty(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a pipeline sets a variable that it does not have."""
    monkeypatch.setenv("AWS_REGION", "")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "")
    done = project("releases")
    assert done.code == 8
    assert "no AWS region is set" in done.err
    monkeypatch.setenv("AWS_REGION", "us_east_1")
    assert "looks like us-east-1" in project("releases").err


@pytest.mark.parametrize("process", ["/no/such/program", "echo nonsense"])
def test_a_credential_process_that_does_not_work(
    project: Project, monkeypatch: pytest.MonkeyPatch, process: str
) -> None:
    (project.folder / "config").write_text(f"[profile x]\nregion = us-east-1\ncredential_process = {process}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "config")
    monkeypatch.setenv("AWS_PROFILE", "x")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    done = project("releases", "--json")
    assert done.code == 2
    assert "credential_process" in done.json["error"]["message"]
