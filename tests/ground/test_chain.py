"""`invoke package upload --stream`: which calls become one, and that the archive is on no disk."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
from invoke import Collection, Config
from invoke.executor import Executor as Sequential

import mme.tasks
from mme import chain

NAMESPACE = Collection.from_module(mme.tasks)


def calls(*given: Any) -> list[tuple[str, dict[str, Any]]]:
    made = chain.Executor(NAMESPACE, Config()).normalize(given)
    return [(call.task.name, call.kwargs) for call in made]


def names(*given: Any) -> list[str]:
    return [name for name, _ in calls(*given)]


def test_package_and_upload_become_one_with_the_flags_of_both() -> None:
    one = {"model": ["bert"], "no_verify": True, "compression": "fast", "out": "dist"}
    other = {"stream": True, "notes": "new", "model": [], "out": "dist", "catalog": "models.toml"}
    ((name, flags),) = calls(("package", one), ("upload", other))
    assert name == "upload"
    assert flags == {
        "stream": True,
        "notes": "new",
        "model": ["bert"],
        "no_verify": True,
        "compression": "fast",
        "out": "dist",
        "catalog": "models.toml",
        "json": False,
    }


@pytest.mark.parametrize(
    ("package", "upload"),
    [
        ({}, {}),
        ({"force": True}, {"stream": True}),
        ({"check": True}, {"stream": True}),
        ({"dry_run": True}, {"stream": True}),
        ({"model": ["a"]}, {"stream": True, "model": ["b"]}),
        ({"model": ["a"]}, {"model": ["b"]}),
        ({"catalog": "a.toml"}, {"catalog": "b.toml"}),
        ({"json": True, "notes": "x"}, {}),
        ({"catalog": "a.toml"}, {"stream": True, "catalog": "b.toml"}),
    ],
    ids=str,
)
def test_what_is_not_one_job_stays_two(package: dict[str, Any], upload: dict[str, Any]) -> None:
    assert calls(("package", package), ("upload", upload)) == [("package", package), ("upload", upload)]


@pytest.mark.parametrize("flag", chain.FOR_BOTH)
def test_a_flag_of_one_task_holds_for_the_other(flag: str) -> None:
    value: Any = ["bert"] if flag == "model" else "other"
    unset = chain.SHARED[flag]
    for first, second in (({flag: value}, {flag: unset}), ({flag: unset}, {flag: value}), ({flag: value}, {})):
        assert calls(("package", first), ("upload", second)) == [("package", {flag: value}), ("upload", {flag: value})]
    between = calls("package", "releases", ("upload", {flag: value}))
    assert between == [("package", {flag: value}), ("releases", {}), ("upload", {flag: value})]
    assert calls("package", ("package", {flag: value})) == [("package", {}), ("package", {flag: value})]


def test_only_neighbours_become_one() -> None:
    stream = ("upload", {"stream": True})
    assert names("package", "releases", stream) == ["package", "releases", "upload"]
    assert names(stream, "package") == ["upload", "package"]
    assert names("channels", "package", stream, "releases") == ["channels", "upload", "releases"]


def test_all_other_calls_are_invokes_own() -> None:
    given = ("package", ("upload", {"json": True}), "releases")
    plain = Sequential(NAMESPACE, Config()).normalize(given)
    assert calls(*given) == [(call.task.name, call.kwargs) for call in plain]


def test_the_flags_that_both_tasks_have_are_shared_or_on_the_disk() -> None:
    """A flag added to both tasks needs a decision here."""
    flags = {
        name: {flag: parameter.default for flag, parameter in signature(NAMESPACE[name].body).parameters.items()}
        for name in ("package", "upload")
    }
    assert set.intersection(*map(set, flags.values())) - {"context"} == {*chain.SHARED, *chain.ON_DISK} - {
        "force",
        "check",
    }
    for given in flags.values():
        assert {flag: given[flag] for flag in chain.SHARED} == {**chain.SHARED, "model": None}  # Invoke makes it a list
