"""Which endpoint Terraform's outputs describe: any output that has it, and which one where there are several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mme.errors import UsageError
from mme.outputs import Place, endpoint, place
from mme.settings import Flags, Settings


def described(name: str) -> dict[str, object]:
    return {"endpoint_name": name, "bucket": f"{name}-bucket", "model_prefix": "models/", "region": "eu-west-1"}


MODULE = {**described("whole"), "toolchain": described("whole"), "role_arn": "arn", "alarm_names": {"a/b": "c"}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("infra", Place(Path("infra"))),
        ("infra#search", Place(Path("infra"), ("search",))),
        ("#search", Place(Path(), ("search",))),
        ('infra#endpoints["team-a"]', Place(Path("infra"), ("endpoints", "team-a"))),
        ("infra#endpoints[team-a]", Place(Path("infra"), ("endpoints", "team-a"))),
        ('infra#all["a"].toolchain', Place(Path("infra"), ("all", "a", "toolchain"))),
        ('infra#all["a.b/c d"]', Place(Path("infra"), ("all", "a.b/c d"))),
    ],
)
def test_a_place_is_a_folder_and_a_way(text: str, expected: Place) -> None:
    assert place(text) == expected


def test_a_folder_with_a_hash_in_its_name_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "infra#2").mkdir()
    assert place(f"{tmp_path}/infra#2") == Place(tmp_path / "infra#2")
    assert place(f"{tmp_path}/infra#2#search") == Place(tmp_path / "infra#2", ("search",))


@pytest.mark.parametrize("text", ["infra#", "infra#[a]", "infra#a b", 'infra#a["b"', "infra#a[]", "infra#1"])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="DIR#OUTPUT"):
        place(text)


@pytest.mark.parametrize(
    ("outputs", "way", "name"),
    [
        ({"toolchain": described("one")}, (), "one"),
        ({"e": described("one"), "other": 5}, (), "one"),
        ({"e": MODULE}, (), "whole"),
        ({"e": MODULE, "toolchain": described("whole")}, (), "whole"),
        ({"all": {"a": described("one")}}, (), "one"),
        ({"all": {"a": MODULE}}, (), "whole"),
        ({"e": described("one"), "off": None}, (), "one"),
        ({"a": described("one"), "b": described("two")}, ("b",), "two"),
        ({"all": {"a": described("one"), "b": described("two")}}, ("all", "b"), "two"),
        ({"all": {"a": MODULE, "b": described("two")}}, ("all", "a", "toolchain"), "whole"),
        ({"endpoint_name": "plain", "bucket": "b"}, (), "plain"),
        ({"endpoint_name": "plain", "bucket": "b", "e": described("one")}, ("e",), "one"),
    ],
)
def test_an_endpoint_is_found_in_any_output(outputs: dict[str, Any], way: tuple[str, ...], name: str) -> None:
    assert endpoint(outputs, Place(Path("infra"), way))["endpoint_name"] == name


def test_several_endpoints_are_named_so_that_one_can_be_copied() -> None:
    outputs = {"a": described("one"), "all": {"x": described("two"), "y z": MODULE}}
    with pytest.raises(UsageError) as caught:
        endpoint(outputs, Place(Path("infra")))
    words = str(caught.value)
    assert "describe 3 endpoints" in words
    for way in ("'infra#a'", "'infra#all[\"x\"]'", "'infra#all[\"y z\"]'"):
        assert way in words
        assert endpoint(outputs, place(way.strip("'")))["endpoint_name"]
    with pytest.raises(UsageError, match="describe 2 endpoints"):
        endpoint(outputs, place("infra#all"))


@pytest.mark.parametrize(
    ("outputs", "way", "words"),
    [
        ({"number": 42}, (), "is applied, but none of its outputs (number) describes an endpoint"),
        ({"e": None}, ("e",), "create = false"),
        ({"e": None}, (), "none of its outputs (e)"),
        ({"e": described("one")}, ("f",), "has no output f"),
        ({"e": described("one")}, ("e", "x", "y"), 'has no output e["x"]'),
        ({"number": 42}, ("number",), "describes no endpoint"),
        ({"number": 42}, ("number", "x"), "is not a map"),
    ],
)
def test_what_is_not_there_is_said_as_it_is(outputs: dict[str, Any], way: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        endpoint(outputs, Place(Path("infra"), way))
    assert words in str(caught.value)


def test_the_settings_read_the_output_that_is_named() -> None:
    outputs = {"a": described("one"), "b": MODULE}
    settings = Settings(Flags(terraform="infra#b"), {}, lambda folder: outputs)
    assert (settings.endpoint, settings.bucket, settings.region) == ("whole", "whole-bucket", "eu-west-1")
    from_environment = Settings(Flags(), {"MME_TERRAFORM": "infra#a"}, lambda folder: outputs)
    assert from_environment.endpoint == "one"
    with pytest.raises(UsageError, match="describe 2 endpoints"):
        _ = Settings(Flags(terraform="infra"), {}, lambda folder: outputs).endpoint
    assert Settings(Flags(terraform="infra", bucket="given"), {}, lambda folder: outputs).bucket == "given"
