"""The JSON schema of models.toml says what the reader accepts, and is shipped as it is made."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_catalog import WRONG

from mme.catalog import reader, schema, spec
from mme.errors import CatalogError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).parents[2]
CHECKER = jsonschema.Draft7Validator(schema.schema())
COMMIT = "86b5e0934494bd15c9632b12f734a8a67f723594"
HUB = {"source": "hub:google-bert/bert-base-uncased", "revision": COMMIT, "handler": "embedding"}
FOLDER = {"source": "folder:x", "handler": "embedding"}


def read(document: dict[str, Any]) -> bool:
    """Whether the reader accepts the document (its files lie in no folder)."""
    try:
        reader._Reader(Path("models.toml"), "").catalog(document)
    except CatalogError:
        return False
    return True


def test_the_shipped_file_is_what_is_made_now() -> None:
    assert schema.FILE.read_text() == schema.text(), "make it again: invoke schema --out src/mme/catalog"


def test_the_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(schema.schema())


def test_every_key_has_a_description_and_a_value_of_its_type() -> None:
    (model,) = [schema.schema()["properties"]["models"]["additionalProperties"]]
    assert list(model["properties"]) == list(spec.KEYS)
    assert set(schema.DESCRIPTIONS) == set(spec.KEYS)


def test_the_repositorys_own_catalogue_names_the_schema_and_keeps_it() -> None:
    text = (REPOSITORY / "models.toml").read_text()
    named = text.splitlines()[0].removeprefix("#:schema ")
    assert (REPOSITORY / named).samefile(schema.FILE)
    assert CHECKER.is_valid(tomllib.loads(text))


@pytest.mark.parametrize(
    "table",
    [
        FOLDER,
        HUB,
        {"source": "package:some_package/folder", "handler": "generation", "notes": "n", "compression": "small"},
        {"source": "folder:~/x", "task": "fill-mask"},
        {**FOLDER, "settings": {"pooling": "cls", "deep": {"er": [1, 2]}}, "dtype": "bfloat16", "max_error": 1},
        {**FOLDER, "quantize": "int8", "max_error": 0.01, "python": "3.10", "platform": "manylinux_2_28_aarch64"},
        {**FOLDER, "adapter": "hub:a/b", "adapter_revision": COMMIT, "adapter_merge": True},
        {**FOLDER, "adapter": "folder:a", "allow_pickle": True, "trust_remote_code": True},
        {**FOLDER, "files": ["label_map.json", "extra/**", "a/..b/c..."]},
        {**FOLDER, "handler": "reranking"},
        {"source": "folder:a", "task": "text-ranking"},
        *({**FOLDER, "task": task} for task in spec.TASKS),
    ],
    ids=lambda table: json.dumps(table)[:60],
)
def test_what_the_reader_accepts_the_schema_accepts(table: dict[str, Any]) -> None:
    document = {"models": {"team-a/bert": table}}
    assert read(document)
    assert [error.message for error in CHECKER.iter_errors(document)] == []


NEEDS_FILES_OR_MORE = {
    "an unknown handler, with a guess",
    "a handler path without inference.py",
    "a task that needs a handler",  # the stock container's own list
    "quantize among the settings",
    "quantize and a setting against it",
    "settings that are not JSON",  # a date of TOML is a string of JSON to an editor
    "settings with no number",
}
# A folder may bring a handler of its own, which no schema sees: of another source they are refused.
NEEDS_THE_FOLDER = {
    "neither handler nor task",
    "quantize without a handler",
    "settings without a handler",
}
NOT_TOML = {"not TOML", "an unquoted name with a slash"}


@pytest.mark.parametrize("case", sorted(NEEDS_THE_FOLDER))
def test_what_a_handler_is_needed_for_the_schema_refuses_of_a_package(case: str) -> None:
    assert '"folder:x"' in WRONG[case][0]
    document = tomllib.loads(WRONG[case][0].replace('"folder:x"', '"package:x"'))
    assert not read(document)
    assert not CHECKER.is_valid(document)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"task": "fill-mask"},
        {"settings": {"deep": 1}},
        {"adapter": "folder:a", "adapter_merge": False},
        {"quantize": "int8"},
    ],
)
def test_a_folder_that_brings_its_own_handler_needs_neither_handler_nor_task(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    code = tmp_path / "own" / "code"
    code.mkdir(parents=True)
    (code / "handler_int8.py").write_text("")
    (code / "inference.py").write_text("import handler_int8\n\n\ndef model_fn(folder):\n    return 'adapter'\n")
    document = {"models": {"bert": {"source": f"folder:{tmp_path}/own", **more}}}
    assert read(document)
    assert [error.message for error in CHECKER.iter_errors(document)] == []


@pytest.mark.parametrize("task", ["text-ranking", "sentence-similarity"])
@pytest.mark.parametrize("source", ["folder:x", "package:x"])
def test_a_task_that_names_its_handler_may_have_settings(task: str, source: str) -> None:
    document = {"models": {"bert": {"source": source, "task": task, "settings": {"max_inputs": 3}}}}
    assert read(document)
    assert CHECKER.is_valid(document)


@pytest.mark.parametrize("case", sorted(set(WRONG) - NEEDS_FILES_OR_MORE - NEEDS_THE_FOLDER - NOT_TOML))
def test_what_the_reader_refuses_the_schema_refuses(case: str) -> None:
    document = tomllib.loads(WRONG[case][0])
    assert not read(document)
    assert not CHECKER.is_valid(document)


VALUES = st.sampled_from(
    [
        *("hub:a/b", "hub:a", "a/b", "folder:x", "folder:", "package:a", "package:a/../b", "package:1", "", "x"),
        *(COMMIT, "main", "3.12", "312", "int8", "float16", "float8", "fast", "fill-mask", "embedding"),
        *(True, False, 0, 1, 0.5, 2.5, -1.0, {}, []),
    ]
)


@given(
    table=st.dictionaries(st.sampled_from([*spec.KEYS, "sorce"]), VALUES, max_size=4),
    base=st.sampled_from([FOLDER, HUB, {}]),
)
@settings(max_examples=500, deadline=None)
def test_the_two_agree_on_any_table(table: dict[str, Any], base: dict[str, Any]) -> None:
    merged = {**base, **table}
    if merged.get("handler") not in (None, "embedding") and isinstance(merged.get("handler"), str):
        return  # whether a handler is there, its folder says
    if merged.get("settings") == {} or merged.get("adapter_merge") is False:
        return  # whether a handler applies an adapter, its code says
    if merged.get("handler") is None and merged.get("task") is not None:
        return  # which tasks need a handler, the containers say
    if merged.get("handler") is None and str(merged.get("source")).startswith("folder:"):
        return  # whether a folder brings a handler, its files say
    document = {"models": {"bert": merged}}
    assert read(document) == CHECKER.is_valid(document)
