"""`invoke predict`."""

from __future__ import annotations

import io
import itertools
import json
import sys
from typing import Any

import pytest
from task_project import Project

from mme.client import endpoint
from mme.client.errors import Throttled


def test_predict_asks_the_version_that_the_name_means(project: Project) -> None:
    old, new = project.release("bert", b"1", b"2")
    name = project.endpoint()
    first = project("predict", "--model", "bert", "--text", "grüße", "--endpoint", name)
    assert first.code == 0, first.err
    assert first.json["target"] == new
    assert json.loads(first.json["body"]) == {"inputs": "grüße"}
    assert first.json["content_type"] == "application/json"
    project("promote", "--model", "bert", "--version", old)
    assert project("predict", "--model", "bert", "--text", "x", "--endpoint", name).json["target"] == old
    exact = project("predict", "--target", new, "--text", "x", "--endpoint", name)
    assert exact.json["target"] == new
    project("split", "--model", "bert", "--weight", f"{old}=50", "--weight", "newest=50")
    asked = [("predict", "--model", "bert", "--text", "x", "--endpoint", name, "--key", f"{n}") for n in range(12)]
    answers = {project(*words).json["target"] for words in asked}
    assert answers == {old, new}
    assert len({project(*asked[0]).json["target"] for _ in range(3)}) == 1


def test_predict_takes_files_and_standard_input(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.release("bert", b"1")
    name = project.endpoint()
    ask = ("predict", "--model", "bert", "--endpoint", name)
    (project.folder / "in.json").write_text('{"inputs": ["a", "b"]}')
    (project.folder / "in.txt").write_text("some words\n")
    (project.folder / "in.npy").write_bytes(b"\x93NUMPY")
    assert project(*ask, "--file", "in.json").json["body"] == '{"inputs": ["a", "b"]}'
    assert json.loads(project(*ask, "--file", "in.txt").json["body"]) == {"inputs": "some words"}
    assert project(*ask, "--file", "in.npy").json["content_type"] == "application/x-npy"
    assert project(*ask, "--file", "in.txt", "--content-type", "text/plain").json["body"] == "some words\n"
    given = project(*ask, "--text", "x", "--parameters", '{"max_new_tokens": 3}', "--accept", "application/json").json
    assert json.loads(given["body"]) == {"inputs": "x", "parameters": {"max_new_tokens": 3}}
    for piped, body in (
        ("hello", {"inputs": "hello"}),
        (' {"inputs": "y"}', {"inputs": "y"}),
        ("[1]", [1]),
        ("[CLS] is a word", {"inputs": "[CLS] is a word"}),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped.encode())))
        assert json.loads(project(*ask).json["body"]) == body


def test_predict_without_any_input_asks_for_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    done = project("predict", "--model", "bert", "--endpoint", "e")
    assert done.code == 2
    assert "Standard input is empty" in done.err


def test_predict_saves_what_came(project: Project) -> None:
    project.release("bert", b"1")
    done = project(
        *(
            "predict",
            "--model",
            "bert",
            "--endpoint",
            project.endpoint(),
            "--text",
            "x",
            "--content-type",
            "text/plain",
        ),
        *("--accept", "application/octet-stream", "--save", "answer.bin"),
    )
    assert (done.code, done.out) == (0, "")
    assert (project.folder / "answer.bin").read_bytes() == b"x"


def test_predict_gives_the_models_own_words(project: Project) -> None:
    made = project.build("bert", model={"status": 400, "message": "inputs is empty"})
    project("upload", "--model", "bert")
    name = project.endpoint()
    done = project("predict", "--model", "bert", "--text", "", "--endpoint", name)
    assert done.code == 9
    assert done.err == f"Error: {made.target} answered 400: inputs is empty\n"
    missing = project("predict", "--target", "bert-0123456789ab.tar.gz", "--text", "x", "--endpoint", name)
    assert missing.code == 9
    assert "invoke releases" in missing.err
    unknown = project("predict", "--model", "bert", "--text", "x", "--endpoint", "nowhere")
    assert unknown.code == 9
    assert "--endpoint" in unknown.err


def test_predict_finds_the_bucket_by_the_endpoint(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (target,) = project.release("bert", b"1")
    name = project.endpoint()
    monkeypatch.delenv("MME_BUCKET")
    assert project("predict", "--model", "bert", "--text", "x", "--endpoint", name).json["target"] == target


def test_predict_as_json_says_who_answered(project: Project) -> None:
    (target,) = project.release("bert", b"1")
    name = project.endpoint()
    ask = ("predict", "--model", "bert", "--text", "x", "--endpoint", name, "--json")
    said = project(*ask).json
    assert (said["target"], said["tries"], said["content_type"]) == (target, 1, "application/json")
    assert said["answer"]["target"] == target
    assert said["ms"] > 0
    saved = project(*ask, "--save", "answer").json
    assert saved["saved"] == "answer"
    assert "answer" not in saved


def test_predict_says_which_targets_are_near(project: Project) -> None:
    (target,) = project.release("bert", b"1")
    name = project.endpoint()
    wrong = f"bert-{'0' * 12}.tar.gz"
    done = project("predict", "--target", wrong, "--text", "x", "--endpoint", name)
    assert done.code == 9
    assert f"s3://{project.bucket}/models/{wrong} is not released" in done.err
    assert f"Did you mean {target!r}?" in done.err
    assert "invoke releases" in done.err


def test_predict_again_and_again_shows_latency_by_version(project: Project) -> None:
    old, new = project.release("bert", b"1", b"2")
    name = project.endpoint()
    ask = ("predict", "--model", "bert", "--text", "x", "--endpoint", name, "--repeat")
    done = project(*ask, "30", "--concurrency", "4")
    assert done.code == 0, done.err
    head, _, row, rate = done.out.splitlines()
    assert head.split() == ["target", "requests", *("p50", "ms", "p95", "ms", "p99", "ms", "cold", "ms")]
    assert row.split()[:2] == [new, "30"]
    assert rate.endswith("answers per second, 4 at a time.")
    (one,) = project(*ask, "1", "--json").json["versions"]
    assert (one["requests"], one["p50_ms"]) == (1, None)
    assert one["cold_ms"] > 0
    project("split", "--model", "bert", "--weight", f"{old}=50", "--weight", "newest=50")
    shown = project(*ask, "40", "--concurrency", "3", "--json").json
    assert {row["target"] for row in shown["versions"]} == {old, new}
    assert sum(row["requests"] for row in shown["versions"]) == 40
    assert shown["failed"] == 0
    for row in shown["versions"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]


def test_predict_again_and_again_ends_in_an_error_where_requests_failed(project: Project) -> None:
    project.build("bert", model={"status": 400, "message": "inputs is empty"})
    project("upload", "--model", "bert")
    name = project.endpoint()
    done = project("predict", "--model", "bert", "--text", "x", "--endpoint", name, "--repeat", "3")
    assert (done.code, done.out) == (9, "")
    assert "inputs is empty" in done.err


def test_predict_counts_the_requests_that_failed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.release("bert", b"1")
    name = project.endpoint()
    real, asked = endpoint.predict, itertools.count(1)

    def every_third_fails(*given: Any, **more: Any) -> Any:
        if next(asked) % 3 == 0:
            raise Throttled("Slow down.", "Wait.")
        return real(*given, **more)

    monkeypatch.setattr("mme.client.model.predict", every_third_fails)
    done = project("predict", "--model", "bert", "--text", "x", "--endpoint", name, "--repeat", "9", "--json")
    assert done.code == 9
    assert done.json["failed"] == 3
    assert done.json["versions"][0]["requests"] == 6
    assert "3 of 9 requests failed. The first: Slow down." in done.err
