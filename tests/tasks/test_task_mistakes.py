"""Mistakes in what is typed end in a message that says what to do, and an exit code."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from task_project import Project, targets


def test_a_folder_that_cannot_be_written_is_no_traceback(project: Project) -> None:
    (project.folder / "benchmarks").mkdir()
    (project.folder / "benchmarks" / "one.py").touch()
    done = project("bench", "--results", "models.toml/x")
    assert done.code == 1
    assert done.err.startswith("Error: models.toml")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["upload", "--bucket", "no-such-bucket"], 8, "there is no bucket no-such-bucket"),
        (["upload", "--bucket", "s3://x"], 2, "is not a bucket name"),
        (["upload", "--prefix", "models"], 2, "is not a model prefix"),
        (["upload", "--model", "nobody"], 3, "nobody"),
        (["upload", "--catalog", "nowhere.toml"], 3, "nowhere.toml"),
        (["upload", "--notes", "n" * 2000], 2, "too long"),
        (["upload", "--terraform", "nowhere", "--bucket", ""], 10, "nowhere is not a folder"),
        (["upload", "--region", "eu-west-1"], 8, "is in us-east-1, not in eu-west-1"),
        (["releases", "--limit", "many"], 2, "whole number"),
        (["releases", "--model", "bert"], 8, "bert has no released version"),
        (["predict", "--model", "bert", "--text", "x"], 2, "No endpoint is known"),
        (["predict", "--text", "x"], 2, "either --model or --target"),
        (["predict", "--model", "bert", "--file", "nowhere"], 2, "Cannot read nowhere"),
        (["predict", "--model", "bert", "--text", "x", "--repeat", "0"], 2, "--repeat takes a whole number, 1 or more"),
        (["predict", "--model", "bert", "--text", "x", "--repeat", "x"], 2, "--repeat takes a whole number"),
        (["predict", "--model", "bert", "--text", "x", "--concurrency", "2"], 2, "--concurrency goes with --repeat"),
        (["predict", "--model", "bert", "--text", "x", "--repeat", "9", "--concurrency", "65"], 2, "64 at most"),
        (["predict", "--model", "bert", "--text", "x", "--repeat", "9", "--save", "f"], 2, "--save is for one answer"),
        (["predict", "--model", "bert", "--text", "x", "--parameters", "[1]"], 2, "not a JSON object"),
        (["delete"], 2, "Which version?"),
        (["delete", "--target", "x"], 2, "not a target model"),
        (["promote"], 2, "Which model?"),
        (["promote", "--model", "Bert"], 2, "not the name"),
        (["split", "--model", "bert"], 2, "--weight"),
        (["rollback", "--model", "bert"], 8, "no earlier state"),
        (["bench"], 2, "no benchmarks"),
        (["upload", "--no-such-flag"], 1, "--no-such-flag"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_mistakes_end_in_a_message_and_an_exit_code(
    project: Project, monkeypatch: pytest.MonkeyPatch, words: Sequence[str], code: int, message: str
) -> None:
    project.build("bert")
    if "--terraform" in words:
        monkeypatch.delenv("MME_BUCKET")
    done = project(*words)
    assert (done.code, done.out) == (code, "")
    assert message in done.err


@pytest.mark.parametrize(
    "words",
    [
        ["package", "--dry-run"],
        ["upload"],
        ["releases"],
        ["delete", "--version", "0123"],
        ["prune", "--ignore-endpoints", "--yes"],
        ["promote"],
        ["promote", "--version", "0123"],
        ["split", "--weight", "newest=1"],
        ["history"],
        ["rollback"],
        ["predict", "--text", "x", "--endpoint", "none"],
    ],
    ids=" ".join,
)
def test_a_model_that_is_not_there_gets_the_nearest_name_everywhere(project: Project, words: list[str]) -> None:
    project.catalogue("distilbert", "gpt2")
    project.build("distilbert")
    assert project("upload", "--model", "distilbert").code == 0
    if words[0] == "rollback":
        assert project("promote", "--model", "distilbert").code == 0
    done = project(*words, "--model", "distilbrt")
    assert done.code in (3, 8)
    assert "Did you mean 'distilbert'?" in done.err
    assert targets(project)


def test_a_channel_that_is_not_there_gets_the_nearest_name(project: Project) -> None:
    project.release("bert", b"1")
    assert project("promote", "--model", "bert@staging").code == 0
    for words in (["history"], ["rollback"], ["predict", "--text", "x", "--endpoint", "none"]):
        done = project(*words, "--model", "bert@stagin")
        assert done.code == 8
        assert "Did you mean 'bert@staging'?" in done.err


def test_a_version_that_is_not_there_is_answered_with_those_that_are(project: Project) -> None:
    (target,) = project.release("bert", b"1")
    for words in (["promote", "--version", "0000"], ["split", "--weight", "0000=1"], ["delete", "--version", "0000"]):
        done = project(*words, "--model", "bert")
        assert done.code == 8
        assert "no version 0000" in done.err
        assert target.split("-")[1][:12] in done.err


def test_no_bucket_names_all_three_ways(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_BUCKET")
    project.build("bert")
    done = project("upload")
    assert done.code == 2
    assert all(way in done.err for way in ("--bucket", "MME_BUCKET", "--terraform", "MME_TERRAFORM"))


def test_a_server_that_is_not_there(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    project.build("bert")
    done = project("upload")
    assert done.code == 8
    assert "AWS_ENDPOINT_URL" in done.err


@pytest.mark.parametrize("address", ["somewhere", "http://[::1", "127.0.0.1:4566"])
def test_an_address_that_is_none(project: Project, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    for words in (
        ["releases"],
        ["status", "--endpoint", "main"],
        ["predict", "--endpoint", "e", "--target", "a.tar.gz", "--text", "x"],
    ):
        done = project(*words, "--json")
        assert done.code == 2, done.err
        assert "Traceback" not in done.err
        assert "AWS_ENDPOINT_URL" in done.json["error"]["hint"]


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"])
def test_a_credential_with_a_line_break_is_said_and_not_shown(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "OnceSecretNowInTheLog\n")
    for words in (["releases"], ["status", "--endpoint", "main"]):
        done = project(*words)
        assert done.code in (8, 9)
        assert "line break" in done.err
        assert "OnceSecret" not in done.err + done.out


def test_no_credentials(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(project.folder / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(project.folder / "none"))
    project.build("bert")
    done = project("upload")
    assert done.code == 8
    assert "no AWS credentials were found" in done.err
