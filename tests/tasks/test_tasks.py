"""The tasks as a user types them: flags in, tables or JSON out, errors as a message and an exit code."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from invoke import Collection
from typed import Result, typed

import mme.tasks
from mme import channels, errors, releases
from mme.archive import write
from mme.archive.contents import Archive
from mme.catalog import reader
from mme.catalog.spec import ModelSpec, Source
from mme.client import endpoint
from mme.client.errors import Throttled
from mme.errors import ConflictError
from mme.local import LocalAws
from mme.multipart import PART, Place, first_part
from mme.packaging import records, unchanged
from mme.releases import Store

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE = f"{sys.executable} {REPOSITORY / 'tests' / 'local' / 'fake_container.py'}"
NAMES = sorted(Collection.from_module(mme.tasks).task_names)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAws]:
    with LocalAws(tmp_path_factory.mktemp("aws"), container=FAKE, iam=False) as aws:
        yield aws


class Project:
    """A folder with a catalogue and archives, a bucket of its own, and ``invoke`` to run there."""

    def __init__(self, folder: Path, aws: LocalAws, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.aws = aws
        self.capsys = capsys
        credentials = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        self.s3: Any = boto3.client("s3", endpoint_url=aws.url, **credentials)
        self.sagemaker: Any = boto3.client("sagemaker", endpoint_url=aws.url, **credentials)
        self.iam: Any = boto3.client("iam", endpoint_url=aws.url, **credentials)
        self.bucket = f"bucket-{os.urandom(6).hex()}"
        self.s3.create_bucket(Bucket=self.bucket)
        self.store = Store(self.bucket)

    def __call__(self, *words: str) -> Result:
        """Run ``invoke WORDS`` in this process."""
        return typed(self.capsys, *words)

    def process(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run ``invoke WORDS`` as a process."""
        given: dict[str, Any] = {"capture_output": True, "text": True, "cwd": self.folder, **more}
        return subprocess.run([sys.executable, "-m", "invoke", *words], **given)

    def tasks_file(self, *, chained: bool = False) -> None:
        """The two lines with which another repository takes the tasks, for ``invoke`` as a process."""
        (self.folder / "tasks.py").write_text(
            "from invoke import Collection\nimport mme.tasks; ns = Collection.from_module(mme.tasks)\n"
        )
        if chained:
            (self.folder / "invoke.yaml").write_text("tasks: {executor_class: mme.chain.Executor}\n")

    def catalogue(self, *names: str) -> None:
        (self.folder / "source").mkdir(exist_ok=True)
        (self.folder / "source" / "config.json").write_text("{}")
        tables = [f'[models."{name}"]\nsource = "folder:source"\nhandler = "embedding"\n' for name in names]
        (self.folder / "models.toml").write_text("\n".join(tables))

    def build(self, name: str, content: bytes = b"weights", model: dict[str, Any] | None = None) -> Archive:
        """An archive in dist, as `invoke package` leaves it."""
        snapshot = self.folder / "snapshot" / name
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / "config.json").write_text("{}")
        (snapshot / "model.json").write_text(json.dumps(model or {}))
        (snapshot / "weights.bin").write_bytes(content)
        spec = ModelSpec(name, Source("folder", "source"))
        made = write.build(spec, snapshot, self.folder / "dist")
        records.note(self.folder / "dist", made)
        return made

    def release(self, name: str, *contents: bytes) -> list[str]:
        """Released versions, oldest first; their targets."""
        targets = []
        for content in contents:
            made = self.build(name, content)
            assert self("upload", "--model", name).code == 0
            targets.append(made.target)
            if content != contents[-1]:
                time.sleep(1.1)  # S3 counts whole seconds
        return targets

    def endpoint(self) -> str:
        """A multi-model endpoint on the model prefix."""
        name = f"endpoint-{os.urandom(4).hex()}"
        role = self.iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")["Role"]["Arn"]
        self.sagemaker.create_model(
            ModelName=name,
            ExecutionRoleArn=role,
            PrimaryContainer={
                "Image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/serving:1",
                "Mode": "MultiModel",
                "ModelDataUrl": self.store.uri(),
            },
        )
        variant = {
            "VariantName": "main",
            "ModelName": name,
            "InstanceType": "ml.m5.large",
            "InitialInstanceCount": 1,
            "InitialVariantWeight": 1.0,
        }
        self.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        patience = {"Delay": 1, "MaxAttempts": 120}
        self.sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=patience)
        return name


@pytest.fixture
def project(
    tmp_path: Path, server: LocalAws, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Project:
    for name in [name for name in os.environ if name.startswith(("AWS_", "MME_"))]:
        monkeypatch.delenv(name)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MME_AUTHOR", "ada")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials that it found first
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path, server, capsys)
    monkeypatch.setenv("MME_BUCKET", made.bucket)
    made.catalogue("bert", "gpt2")
    return made


def targets(project: Project) -> set[str]:
    return {version.target for version in releases.list_versions(project.s3, project.store)}


# ---- the collection -----------------------------------------------------------------------------------------------


def test_every_task_explains_itself_and_each_of_its_flags() -> None:
    """Read in a fresh interpreter: invoke takes the help out of a task when it first parses for it."""
    source = """
import json
from invoke.collection import Collection
import mme.tasks

tasks = Collection.from_module(mme.tasks).tasks
print(json.dumps({n: [t.__doc__, [[a.names, a.help] for a in t.get_arguments()]] for n, t in tasks.items()}))
"""
    said = json.loads(subprocess.run([sys.executable, "-c", source], capture_output=True, check=True).stdout)
    assert set(NAMES) <= said.keys()
    for name, (doc, arguments) in said.items():
        assert doc, name
        assert len(doc.strip().splitlines()[0]) > 30, name
        for names, text in arguments:
            assert text, f"{name} --{names[0]}"
            assert all(len(given) > 1 for given in names), f"{name} has a one-letter flag"


def test_help_is_printed(project: Project) -> None:
    shown = project("--help", "promote")
    assert shown.code == 0
    for flag in ("--model=STRING", "--from=STRING", "--version=STRING", "--terraform=STRING", "--[no-]dry-run"):
        assert flag.replace("[no-]", "") in shown.out.replace("[no-]", "")


def test_the_tasks_are_all_there() -> None:
    assert {"package", "upload", "models", "predict", "delete", "local", "bench", "releases", "prune"} <= set(NAMES)
    assert {"channels", "promote", "split", "rollback", "history"} <= set(NAMES)


def test_another_repository_takes_the_tasks_with_two_lines(project: Project) -> None:
    project.tasks_file()
    project.catalogue("team-a/classifier")
    project.build("team-a/classifier")
    listed = project.process("--list")
    assert listed.returncode == 0
    assert all(f"  {name} " in listed.stdout for name in NAMES if name != "bench")
    assert " bench " not in listed.stdout, "there is nothing to bench"
    done = project.process("upload", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"][0]["status"] == "uploaded"
    assert {target.rpartition("-")[0] for target in targets(project)} == {"team-a/classifier"}


# ---- upload -------------------------------------------------------------------------------------------------------


def test_what_was_built_is_uploaded_once(project: Project) -> None:
    made = [project.build("bert"), project.build("gpt2", b"other")]
    first = project("upload")
    assert first.code == 0
    assert "uploaded" in first.out
    assert targets(project) == {item.target for item in made}
    again = project("upload")
    assert again.code == 0
    assert again.out.count("already there, nothing sent") == 2


def test_upload_can_be_limited_to_some_models(project: Project) -> None:
    project.catalogue("bert", "gpt2", "t5")
    for name in ("bert", "gpt2", "t5"):
        project.build(name)
    done = project("upload", "--model", "bert", "--model", "t5", "--json")
    assert [item["name"] for item in done.json["models"]] == ["bert", "t5"]
    assert {target.rpartition("-")[0] for target in targets(project)} == {"bert", "t5"}


def test_a_dry_run_uploads_nothing(project: Project) -> None:
    made = project.build("bert")
    shown = project("upload", "--model", "bert", "--dry-run")
    assert shown.code == 0
    assert "would upload" in shown.out
    assert made.target in shown.out
    assert targets(project) == set()


def test_upload_takes_the_catalogue_and_the_folder_that_package_had_in_the_same_command(project: Project) -> None:
    project.build("bert")
    project.build("gpt2")
    (project.folder / "models.toml").rename(project.folder / "other.toml")
    (project.folder / "dist").rename(project.folder / "other")
    done = project("package", "--catalog", "other.toml", "--out", "other", "--dry-run", "upload")
    assert done.code == 0, done.err
    assert len(targets(project)) == 2


@pytest.mark.parametrize(("flag", "value"), [("--catalog", "other.toml"), ("--out", "other")])
def test_what_is_given_to_upload_alone_is_refused_where_package_took_something_else(
    project: Project, flag: str, value: str
) -> None:
    project.build("bert")
    project.build("gpt2")
    (project.folder / "other.toml").write_text((project.folder / "models.toml").read_text())
    done = project("package", "--dry-run", "upload", flag, value)
    assert done.code == 2
    assert f"invoke package {flag} {value} upload" in done.err
    assert "mme.chain.Executor" in done.err
    assert targets(project) == set()
    both = project("package", "--dry-run", flag, value, "upload", flag, value, "--dry-run")
    assert both.code == 0


def test_what_is_not_built_is_said(project: Project) -> None:
    project.build("bert")
    named = project("upload", "--model", "gpt2")
    assert named.code == 6
    assert "no archive of gpt2 in dist" in named.err
    assert "invoke package --model gpt2" in named.err
    rest = project("upload", "--json")
    assert {item["name"]: item["status"] for item in rest.json["models"]} == {"bert": "uploaded", "gpt2": "not built"}
    assert rest.code == 6
    assert "no archive of gpt2 in dist" in rest.err
    assert project("upload", "--dry-run").code == 0


def test_tasks_in_a_row_read_the_catalogue_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = reader.load
    monkeypatch.setattr(reader, "load", lambda path: read.append(path) or real(path))
    project.build("bert")
    assert project("package", "--dry-run", "upload", "--dry-run").code == 0
    assert read == [Path("models.toml")]
    assert project("upload", "--dry-run").code == 0
    assert len(read) == 2


def test_the_newest_build_is_uploaded(project: Project) -> None:
    project.build("bert", b"old")
    newest = project.build("bert", b"new")
    project("upload", "--model", "bert")
    assert targets(project) == {newest.target}


def test_an_archive_that_was_damaged_on_the_disk_is_not_published(project: Project) -> None:
    made = project.build("bert", os.urandom(100_000))
    path = project.folder / "dist" / made.target
    content = bytearray(path.read_bytes())
    content[50_000] ^= 1
    path.write_bytes(content)
    done = project("upload", "--model", "bert")
    assert done.code == 8
    assert "changed or damaged since" in done.err
    assert targets(project) == set()


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


def test_promote_and_split_know_the_word_newest(project: Project) -> None:
    (target,) = project.release("bert", b"1")
    assert target in project("promote", "--model", "bert", "--version", "newest").out
    assert target in project("split", "--model", "bert", "--weight", "newest=1").out


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


def test_names_come_from_terraform(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_BUCKET")
    infra = project.folder / "infra"
    infra.mkdir()
    outputs = {"bucket": project.bucket, "model_prefix": "models/", "endpoint_name": "e", "region": "us-east-1"}
    state = {
        "version": 4,
        "terraform_version": "1.9.0",
        "serial": 1,
        "lineage": "0b2c1d2e-0000-0000-0000-000000000000",
        "outputs": {name: {"value": value, "type": "string"} for name, value in outputs.items()},
        "resources": [],
    }
    (infra / "terraform.tfstate").write_text(json.dumps(state))
    project.build("bert")
    done = project("upload", "--model", "bert", "--terraform", "infra")
    assert done.code == 0, done.err
    assert len(targets(project)) == 1


# ---- what there is ------------------------------------------------------------------------------------------------


def test_releases_show_author_and_notes(project: Project) -> None:
    made = project.build("bert")
    project("upload", "--model", "bert", "--notes", "größer", "--author", "grace")
    shown = project("releases", "--model", "bert")
    assert made.target in shown.out
    assert "grace" in shown.out
    assert "größer" in shown.out
    (listed,) = project("releases", "--model", "bert", "--json").json["versions"]
    assert (listed["digest"], listed["author"], listed["notes"]) == (made.digest, "grace", "größer")
    assert listed["size"] == made.size


def test_releases_of_all_models_stop_at_the_limit(project: Project) -> None:
    for number in range(4):
        project.s3.put_object(Bucket=project.bucket, Key=f"models/bert-{number:012x}.tar.gz", Body=b"x")
    shown = project("releases", "--limit", "3")
    assert shown.out.count(".tar.gz") == 3
    assert "1 older ones are not shown" in shown.err


def test_models_show_the_catalogue_beside_what_is_released(project: Project) -> None:
    old, new = project.release("bert", b"1", b"2")
    project.s3.put_object(Bucket=project.bucket, Key="models/stray-0123456789ab.tar.gz", Body=b"x")
    shown = project("models", "--json").json
    bert, gpt2 = shown["models"]
    assert [item["target"] for item in bert["versions"]] == [old, new]
    assert (bert["name"], bert["handler"], bert["built"]) == ("bert", "embedding", new)
    assert (gpt2["name"], gpt2["versions"], gpt2["built"]) == ("gpt2", [], None)
    assert shown["not_in_catalogue"] == ["stray"]
    project("promote", "--model", "bert", "--version", old)
    table = project("models")
    assert [line.split()[0] for line in table.out.splitlines()[2:]] == ["bert", "gpt2"]
    assert "stray" in table.err
    assert project("models", "--json").json["models"][0]["channel"] == {old: 100.0}


def test_models_without_a_bucket_show_the_catalogue(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_BUCKET")
    shown = project("models")
    assert shown.code == 0
    assert "bert" in shown.out
    assert "No bucket is known" in shown.err


# ---- delete -------------------------------------------------------------------------------------------------------


def test_delete_asks_first(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (target,) = project.release("bert", b"1")

    class Person(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Person("no\n"))
    refused = project("delete", "--target", target)
    assert (refused.code, targets(project)) == (0, {target})
    assert f"Delete s3://{project.bucket}/models/{target}" in refused.err
    monkeypatch.setattr(sys, "stdin", Person("y\n"))
    done = project("delete", "--target", target, "--json")
    assert (done.code, done.json["deleted"], done.json["target"]) == (0, True, target)
    assert targets(project) == set()


def test_delete_without_anybody_to_ask_needs_a_yes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (target,) = project.release("bert", b"1")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    done = project("delete", "--model", "bert", "--version", target[5:11])
    assert done.code == 2
    assert "--yes" in done.err
    shown = project("delete", "--target", target, "--dry-run")
    assert f"Would delete s3://{project.bucket}/models/{target}" in shown.out
    assert targets(project) == {target}
    assert project("delete", "--model", "bert", "--version", target[5:11], "--yes").code == 0
    assert targets(project) == set()


def test_delete_refuses_what_a_channel_uses(project: Project) -> None:
    old, new = project.release("bert", b"1", b"2")
    project("promote", "--model", "bert@staging", "--version", old)
    project("promote", "--model", "bert@staging", "--version", new)
    for target in (old, new):  # the older one is what a rollback would need
        done = project("delete", "--target", target, "--yes")
        assert done.code == 8
        assert "in use by channel bert@staging" in done.err
    assert targets(project) == {old, new}


# ---- predict ------------------------------------------------------------------------------------------------------


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


# ---- channels -----------------------------------------------------------------------------------------------------


def test_the_life_of_a_channel(project: Project) -> None:
    old, new = project.release("bert", b"1", b"2")
    assert "no channel yet" in project("history", "--model", "bert").err
    assert "Would set bert to" in project("promote", "--model", "bert", "--dry-run").err
    assert project("channels", "--json").json == {"channels": []}
    assert project("promote", "--model", "bert@staging", "--notes", "try it").out.startswith(
        f"bert@staging now means {new}"
    )
    project("promote", "--model", "bert", "--version", old)
    project("split", "--model", "bert", "--weight", f"{old[5:10]}=90", "--weight", "newest=10")
    project("promote", "--model", "bert", "--from", "bert@staging")
    back = project("rollback", "--model", "bert", "--json", "--expect", "3")
    assert back.json["versions"] == {old: 90.0, new: 10.0}
    first = project("rollback", "--model", "bert", "--to", "1", "--json")
    assert (first.json["revision"], first.json["versions"]) == (5, {old: 100.0})
    again = project("promote", "--model", "bert", "--version", old)
    assert again.out == f"bert already means {old} (revision 5).\n"
    listed_models = project("history", "--model", "bert", "--json").json["history"]
    assert [(item["revision"], item["action"], item["author"]) for item in listed_models] == [
        (5, "rollback to 1", "ada"),
        (4, "rollback to 2", "ada"),
        (3, "promote from bert@staging", "ada"),
        (2, "split", "ada"),
        (1, "promote", "ada"),
    ]
    table = project("channels").out.splitlines()[2:]
    assert [line.split()[:3] for line in table] == [["bert", "5", old], ["bert@staging", "1", new]]
    assert "try it" in project("history", "--model", "bert@staging").out


def test_a_stale_pipeline_is_told_by_its_exit_code(project: Project) -> None:
    old, new = project.release("bert", b"1", b"2")
    project("promote", "--model", "bert", "--version", new)
    done = project("promote", "--model", "bert", "--version", old, "--expect", "0")
    assert done.code == 11
    assert "nothing was changed" in done.err
    assert project("channels", "--json").json["channels"][0]["versions"] == {new: 100.0}


@pytest.mark.parametrize("weight", ["half", "0123", "=5", "0123=much"])
def test_a_weight_that_is_none(project: Project, weight: str) -> None:
    project.release("bert", b"1")
    done = project("split", "--model", "bert", "--weight", weight)
    assert done.code == 2
    assert "VERSION=WEIGHT" in done.err


def test_a_channel_can_be_deleted(project: Project) -> None:
    (target,) = project.release("bert", b"1")
    for name in ("bert", "bert@staging"):
        project("promote", "--model", name)
    assert "Would delete channel bert@staging" in project("delete", "--channel", "bert@staging", "--dry-run").out
    assert len(project("channels", "--json").json["channels"]) == 2
    done = project("delete", "--channel", "bert@staging", "--yes", "--json")
    assert done.json == {"deleted": True, "channel": "bert@staging", "versions": {target: 100.0}, "revision": 1}
    assert "means its newest version" in project("delete", "--channel", "bert", "--yes").out
    assert project("channels", "--json").json["channels"] == []
    again = project("delete", "--channel", "bert", "--yes")
    assert again.code == 8
    assert "no channel bert" in again.err
    assert project("delete", "--channel", "bert", "--model", "bert").code == 2
    assert targets(project) == {target}


def test_releases_as_json_says_what_is_not_shown(project: Project) -> None:
    project.release("bert", b"1")
    project.release("gpt2", b"1")
    shown = project("releases", "--limit", "1", "--json").json
    assert (len(shown["versions"]), shown["not_shown"]) == (1, 1)
    assert project("releases", "--json").json["not_shown"] == 0


def test_the_history_of_a_name_that_is_not_there_is_an_error(project: Project) -> None:
    project.release("bert", b"1")
    assert project("history", "--model", "bert").code == 0
    for name, message in (("gpt2", "no released version"), ("bert@staging", "no channel bert@staging")):
        done = project("history", "--model", name, "--json")
        assert (done.code, done.out) == (8, "")
        assert message in done.err


# ---- clean --------------------------------------------------------------------------------------------------------


def test_clean_removes_old_archives_that_are_published(project: Project) -> None:
    published, newest = project.build("bert", b"1"), None
    project("upload", "--model", "bert")
    never = project.build("bert", b"2")
    newest = project.build("bert", b"3")
    project.catalogue("bert", "team-a/gpt2")
    other = project.build("team-a/gpt2", b"1")
    project("upload")
    dist = project.folder / "dist"
    (dist / "stranger-0123456789ab.tar.gz").write_bytes(b"x")

    def there() -> set[str]:
        return {path.relative_to(dist).as_posix() for path in dist.rglob("*.tar.gz")}

    stay = {newest.target, other.target, "stranger-0123456789ab.tar.gz"}
    assert published.target in project("clean", "--dry-run").out
    assert there() == {published.target, never.target, *stay}
    assert project("clean").code == 2, "nobody is there to ask"
    done = project("clean", "--yes", "--json")
    assert done.json == {"removed": True, "archives": [{"target": published.target, "size": published.size}]}
    assert there() == {never.target, *stay}
    assert "nothing to remove" in project("clean", "--yes").err
    assert project("clean", "--yes", "--unpublished", "--bucket", "no-such-bucket").code == 0
    assert there() == stay
    assert [item["status"] for item in project("upload", "--json").json["models"]] == ["present", "present"]


# ---- prune --------------------------------------------------------------------------------------------------------


def test_prune_keeps_the_newest_and_what_is_in_use(project: Project) -> None:
    every = project.release("bert", b"1", b"2", b"3", b"4")
    kept = project.release("gpt2", b"1")
    project("promote", "--model", "bert@stable", "--version", every[0])
    data = f"s3://{project.bucket}/models/{every[1]}"
    role = project.iam.create_role(RoleName=project.bucket, AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/serving:1"
    project.sagemaker.create_model(
        ModelName=project.bucket, ExecutionRoleArn=role, PrimaryContainer={"Image": image, "ModelDataUrl": data}
    )
    variant = {
        "VariantName": "main",
        "ModelName": project.bucket,
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1,
        "InitialVariantWeight": 1.0,
    }
    project.sagemaker.create_endpoint_config(EndpointConfigName=project.bucket, ProductionVariants=[variant])
    project.sagemaker.create_endpoint(EndpointName=project.bucket, EndpointConfigName=project.bucket)
    shown = project("prune", "--keep", "1", "--dry-run")
    assert shown.code == 0
    assert every[2] in shown.out
    assert not any(target in shown.out for target in (every[0], every[1], every[3], *kept))
    assert "Would remove 1 of 5 versions" in shown.err
    assert f"Stays although it is old: {every[0]}, in use by bert@stable" in shown.err
    assert f"Stays although it is old: {every[1]}, in use by {project.bucket}" in shown.err
    assert every[3] not in shown.err
    kept_as_json = project("prune", "--keep", "1", "--dry-run", "--json").json["kept"]
    assert {item["target"]: item["in_use_by"] for item in kept_as_json} == {
        every[0]: ["bert@stable"],
        every[1]: [project.bucket],
    }
    assert targets(project) == {*every, *kept}
    done = project("prune", "--keep", "1", "--yes", "--json")
    assert done.json["removed"] is True
    assert [item["target"] for item in done.json["versions"]] == [every[2]]
    assert targets(project) == {every[0], every[1], every[3], *kept}
    assert "nothing to remove" in project("prune", "--keep", "1", "--yes").err


def test_prune_can_go_without_asking_sagemaker(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Any) -> Any:
        raise errors.EndpointError("Cannot see what the live endpoints use: no permission.", "Ask for it.")

    monkeypatch.setattr("mme.client.endpoint.archives_in_use", denied)
    project.release("bert", b"1")
    refused = project("prune", "--yes")
    assert refused.code == 9
    assert "--ignore-endpoints" in refused.err
    assert project("prune", "--yes", "--ignore-endpoints").code == 0


def test_prune_without_anybody_to_ask_needs_a_yes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    every = project.release("bert", b"1", b"2")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    done = project("prune", "--keep", "1")
    assert done.code == 2
    assert every[0] in done.out
    assert targets(project) == set(every)


# ---- as a process -------------------------------------------------------------------------------------------------


def test_the_repositorys_own_tasks_file_has_them_all() -> None:
    listed = subprocess.run([sys.executable, "-m", "invoke", "--list"], cwd=REPOSITORY, capture_output=True, text=True)
    assert all(f"  {name} " in listed.stdout for name in NAMES)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_ended_while_uploading_the_next_run_goes_on(project: Project, end: signal.Signals) -> None:
    """kill -9 or Ctrl-C in the middle: nothing is visible, and the next run sends only what is missing."""
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
    assert process.returncode == (-signal.SIGKILL if end == signal.SIGKILL else 130)
    assert targets(project) == set()
    assert list(releases.unfinished_uploads(project.s3, project.store)) == [made.target]
    (done,) = project("upload", "--model", "bert", "--json").json["models"]
    assert done["status"] == "resumed"
    assert done["sent"] <= made.size - 4 * PART
    body = project.s3.get_object(Bucket=project.bucket, Key=f"models/{made.target}")["Body"].read()
    assert body == (project.folder / "dist" / made.target).read_bytes()
    assert releases.unfinished_uploads(project.s3, project.store) == {}


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


# ---- streaming ----------------------------------------------------------------------------------------------------


def tiny_gpt2(project: Project) -> None:
    source = REPOSITORY / "demo" / "tiny-gpt2"
    (project.folder / "models.toml").write_text(f'[models.gpt2]\nsource = "folder:{source}"\nhandler = "generation"\n')


@pytest.mark.slow
def test_a_streamed_archive_is_the_one_that_package_builds(project: Project) -> None:
    tiny_gpt2(project)
    assert "would package and upload" in project("upload", "--stream", "--dry-run").out
    (streamed,) = project("upload", "--stream", "--json").json["models"]
    assert streamed["status"] == "uploaded"
    assert [path.name for path in (project.folder / "dist").iterdir()] == ["gpt2.json"]
    body = project.s3.get_object(Bucket=project.bucket, Key=f"models/{streamed['target']}")["Body"].read()
    (again,) = project("upload", "--stream", "--json").json["models"]
    assert (again["status"], again["target"]) == ("present", streamed["target"])
    (packaged,) = project("package", "--no-verify", "--json").json["models"]
    assert packaged["target"] == streamed["target"]
    assert (project.folder / "dist" / streamed["target"]).read_bytes() == body
    assert project("upload", "--json").json["models"][0]["status"] == "present"


def test_streaming_reads_a_source_once_to_tell_what_it_is(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = unchanged._sha256
    monkeypatch.setattr(unchanged, "_sha256", lambda path: read.append(path.name) or real(path))
    project.catalogue("bert")
    assert "would package and upload" in project("upload", "--stream", "--dry-run").out
    assert read.count("config.json") == 1


@pytest.mark.slow
def test_a_streamed_model_that_does_not_answer_is_not_published(project: Project) -> None:
    handler = project.folder / "model_code" / "broken"
    handler.mkdir(parents=True)
    (handler / "inference.py").write_text("def model_fn(model_dir):\n    raise RuntimeError('no weights for you')\n")
    tiny_gpt2(project)
    text = (project.folder / "models.toml").read_text()
    (project.folder / "models.toml").write_text(text.replace('"generation"', '"broken"\ntask = "text-generation"'))
    done = project("upload", "--stream")
    assert done.code == 7
    assert "no weights for you" in done.err
    assert targets(project) == set()
    assert project("upload", "--stream", "--no-verify").code == 0
    assert len(targets(project)) == 1


@pytest.mark.slow
def test_package_and_streamed_upload_in_a_row_put_no_archive_on_the_disk(project: Project) -> None:
    tiny_gpt2(project)
    project.tasks_file(chained=True)
    words = ("package", "--no-verify", "upload", "--stream", "--notes", "in a row", "--json")
    killed = (
        "import mme.multipart as m, invoke, sys\n"
        "def put(self, *given):\n"
        "    print('about to send', flush=True)\n"
        "    sys.stdin.readline()\n"
        "m.Place.put = put\n"
        f"sys.exit(invoke.Program().run({['invoke', *words]!r}))\n"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", killed], text=True, cwd=project.folder, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "about to send\n"
        assert not list((project.folder / "dist").rglob("*.tar.gz"))
        process.kill()
    assert targets(project) == set()
    done = project.process(*words)
    assert done.returncode == 0, done.stderr
    assert "written to disk" not in done.stderr
    (streamed,) = json.loads(done.stdout)["models"]
    assert streamed["status"] == "uploaded"
    assert [path.name for path in (project.folder / "dist").iterdir()] == ["gpt2.json"]
    (record,) = releases.read_records(project.s3, project.store, releases.list_versions(project.s3, project.store))
    assert record.notes == "in a row"
    body = project.s3.get_object(Bucket=project.bucket, Key=f"models/{streamed['target']}")["Body"].read()

    (project.folder / "invoke.yaml").unlink()
    apart = project.process("package", "--no-verify", "upload", "--stream", "--prefix", "apart/models/")
    assert apart.returncode == 0, apart.stderr
    assert "written to disk" in apart.stderr
    assert "mme.chain.Executor" in apart.stderr
    assert (project.folder / "dist" / streamed["target"]).read_bytes() == body


def test_the_repositorys_own_tasks_stream_in_a_row() -> None:
    assert yaml.safe_load((REPOSITORY / "invoke.yaml").read_text()) == {
        "tasks": {"executor_class": "mme.chain.Executor"}
    }


def test_flags_that_go_with_streaming_alone(project: Project) -> None:
    done = project("upload", "--no-verify")
    assert done.code == 2
    assert "--stream" in done.err
    assert "no compression" in project("upload", "--stream", "--compression", "much").err


# ---- many at once -------------------------------------------------------------------------------------------------


def test_no_change_is_lost_between_pipelines(project: Project) -> None:
    """Many promote at once: each that was listed_models "done" is in the history, and nobody else's is."""
    one, other = project.release("bert", b"1", b"2")

    def pipeline(number: int) -> list[str]:
        done = []
        for turn in range(8):
            channel = channels.read(project.s3, project.store, "bert")
            author = f"{number}-{turn}"
            split = {one: 1000, other: 1 + 10 * number + turn}
            with contextlib.suppress(ConflictError):
                channels.change(project.s3, project.store, channel, split, action="split", author=author)
                done.append(author)
        return done

    with ThreadPoolExecutor(6) as pool:
        succeeded = [author for done in pool.map(pipeline, range(6)) for author in done]
    found = channels.read(project.s3, project.store, "bert")
    assert sorted(item.author for item in found.history) == sorted(succeeded)
    assert found.revision == len(succeeded) >= 8


def test_of_many_who_publish_the_same_one_writes(project: Project) -> None:
    made = project.build("bert", os.urandom(2 * PART))

    def pipeline(_: int) -> str:
        path = project.folder / "dist" / made.target
        given: dict[str, Any] = {"name": "bert", "digest": made.digest, "content": path, "author": "ada"}
        return releases.publish(project.s3, project.store, **given, present=(), unfinished={}).status

    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(pipeline, range(4)))
    assert statuses == ["present", "present", "present", "uploaded"]
    assert releases.unfinished_uploads(project.s3, project.store) == {}


# ---- what it needs ------------------------------------------------------------------------------------------------


def test_publishing_and_predicting_need_neither_torch_nor_numpy(project: Project) -> None:
    made = project.build("bert")
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'numpy', 'safetensors', 'tokenizers', 'moto', 'huggingface_hub'):\n"
        "    sys.modules[name] = None\n"
        "import mme.tasks, invoke\n"
        "program = invoke.Program(namespace=invoke.Collection.from_module(mme.tasks))\n"
        "program.run(['invoke', *sys.argv[1:]])\n"
    )
    name = project.endpoint()
    for words in (["upload", "--model", "bert"], ["predict", "--model", "bert", "--text", "x", "--endpoint", name]):
        command = [sys.executable, "-c", program, *words]
        done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["target"] == made.target


def test_a_task_does_not_wait_for_what_the_others_need() -> None:
    """Each call loads every task to know its flags; what packages, publishes or shows pages is not for that."""
    heavy = ["mme.packaging.job", "mme.packaging.verify", "mme.publishing", "mme.snapshot.retrieve", "mme.page.app"]
    heavy += [
        "mme.operate.watch",
        "mme.capacity.simulate",
        "mme.catalog.schema",
        "torch",
        "numpy",
    ]
    program = f"import sys, mme.tasks; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- documents ----------------------------------------------------------------------------------------------------


def test_the_documented_exit_codes_are_those_of_the_errors() -> None:
    text = (REPOSITORY / "docs" / "releases.md").read_text()
    table = {int(line.split("|")[1]) for line in text.splitlines() if re.match(r"\| \d+ \|", line)}
    codes = {
        value.exit_code for value in vars(errors).values() if isinstance(value, type) and hasattr(value, "exit_code")
    }
    assert table == codes | {0, 130, 141}


def test_the_documented_python_works(project: Project) -> None:
    (target,) = project.release("bert", b"1")
    text = (REPOSITORY / "docs" / "releases.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("my-bucket", project.bucket), names)
    assert names["target"] == target
