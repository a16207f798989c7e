"""`invoke promote`, `split`, `rollback`, `history` and `channels`."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from task_project import Project, targets

from mme import channels
from mme.errors import ConflictError


def test_promote_and_split_know_the_word_newest(project: Project) -> None:
    (target,) = project.release("bert", b"1")
    assert target in project("promote", "--model", "bert", "--version", "newest").out
    assert target in project("split", "--model", "bert", "--weight", "newest=1").out


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


def test_a_stale_pipeline_gets_an_exit_code_of_its_own(project: Project) -> None:
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
        assert (done.code, list(done.json)) == (8, ["error"])
        assert message in done.err


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
    merged = channels.read(project.s3, project.store, "bert")
    assert sorted(item.author for item in merged.history) == sorted(succeeded)
    assert merged.revision == len(succeeded) >= 8
