"""`invoke releases` and `models`; and what takes away: `delete`, `prune` and `clean`."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from task_project import Project, targets

from mme import channels, errors


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
    rows = [line.split() for line in table.out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["bert", "gpt2"]
    meanings = [row[-1] for row in rows]
    assert meanings == [old.removeprefix("bert-").removesuffix(".tar.gz"), "-"], (
        "a name without a release means nothing"
    )
    assert "stray" in table.err
    assert project("models", "--json").json["models"][0]["channel"] == {old: 100.0}


def test_models_without_a_bucket_show_the_catalogue(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_BUCKET")
    shown = project("models")
    assert shown.code == 0
    assert "bert" in shown.out
    assert "No bucket is known" in shown.err


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


def test_prune_keeps_the_newest_and_what_is_in_use(project: Project) -> None:
    every = project.release("bert", b"1", b"2", b"3", b"4")
    used = project.release("gpt2", b"1")
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
    assert not any(target in shown.out for target in (every[0], every[1], every[3], *used))
    assert "Would remove 1 of 5 versions" in shown.err
    assert f"Stays although it is old: {every[0]}, in use by bert@stable" in shown.err
    assert f"Stays although it is old: {every[1]}, in use by {project.bucket}" in shown.err
    assert every[3] not in shown.err
    kept_as_json = project("prune", "--keep", "1", "--dry-run", "--json").json["kept"]
    assert {item["target"]: item["in_use_by"] for item in kept_as_json} == {
        every[0]: ["bert@stable"],
        every[1]: [project.bucket],
    }
    assert targets(project) == {*every, *used}
    done = project("prune", "--keep", "1", "--yes", "--json")
    assert done.json["removed"] is True
    assert [item["target"] for item in done.json["versions"]] == [every[2]]
    assert targets(project) == {every[0], every[1], every[3], *used}
    assert "nothing to remove" in project("prune", "--keep", "1", "--yes").err


def test_prune_says_what_it_removed_where_a_channel_began_to_use_a_version_meanwhile(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = project.release("bert", b"1", b"2", b"3")

    def promoted_meanwhile(question: str, yes: bool) -> bool:
        assert "Remove 2 of 3 versions" in question
        assert project("promote", "--model", "bert@stable", "--version", every[0]).code == 0
        return True

    monkeypatch.setattr("mme.tasks.cleanup.confirm", promoted_meanwhile)
    done = project("prune", "--keep", "1")
    assert done.code == 0
    assert "Removed 1 of 3 versions" in done.err
    assert targets(project) == {every[0], every[2]}


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


def put(project: Project, name: str, count: int) -> list[str]:
    """Versions of a model, oldest first, that came within a second and so go by their digits."""
    made = [f"{name}-{number:012x}.tar.gz" for number in range(count)]
    for target in made:
        project.s3.put_object(Bucket=project.bucket, Key=project.store.key(target), Body=b"x")
    return made


def test_prune_asks_endpoints_again_after_the_yes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    every = put(project, "bert", 3)
    named: dict[str, list[str]] = {}

    def deployed_meanwhile(question: str, yes: bool) -> bool:
        assert "Remove 2 of 3 versions" in question
        named[project.store.uri(every[0])] = ["single"]
        return True

    monkeypatch.setattr("mme.client.endpoint.archives_in_use", lambda _: named)
    monkeypatch.setattr("mme.tasks.cleanup.confirm", deployed_meanwhile)
    done = project("prune", "--keep", "1", "--json")
    assert [item["target"] for item in done.json["versions"]] == [every[1]]
    assert done.json["kept"] == [{"target": every[0], "in_use_by": ["single"]}]
    assert targets(project) == {every[0], every[2]}


def test_only_the_channels_that_matter_are_read(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all the channels beside the prefix: those of models with old versions, and those of the catalogue's models."""
    put(project, "bert", 2)
    put(project, "gpt2", 1)
    for name in ("bert", "bert@old", "gpt2", "gpt2@old"):
        assert project("promote", "--model", name).code == 0
    read = []

    def noted(s3: Any, store: Any, name: str, real: Any = channels.read) -> Any:
        read.append(name)
        return real(s3, store, name)

    monkeypatch.setattr(channels, "read", noted)
    project.catalogue("gpt2")
    assert [item["name"] for item in project("models", "--json").json["models"]] == ["gpt2"]
    assert read == ["gpt2"]
    read.clear()
    assert project("prune", "--keep", "1", "--yes", "--ignore-endpoints").code == 0
    assert sorted(read) == ["bert", "bert@old"], "once each: the second look finds that they are as they were"
    read.clear()
    assert "Did you mean 'bert@old'?" in project("history", "--model", "bert@odl").err
    assert read == ["bert@odl"]
