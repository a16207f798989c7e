"""Catalogues that nobody meant: read, or refused with file and line; never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzzing import bounded
from hypothesis import given
from hypothesis import strategies as st

from mme.catalog import reader, spec
from mme.errors import CatalogError

TEXT = '''#:schema x
[models.bert]
source = "hub:google-bert/bert-base-uncased"
revision = "86b5e0934494bd15c9632b12f734a8a67f723594"
handler = "embedding"
files = ["label_map.json"]
max_error = 0.01
notes = """
two
lines"""
[models."team-a/gpt2"]
source = "folder:x"
task = "text-generation"
handler = "generation"
[models."team-a/gpt2".settings]
max_length = 10
deep = {er = [1, 2.5, true]}
'''
VALUES = (
    *('""', '"x"', "'x'", "1", "-1", "1.5", "inf", "nan", "true", "[]", "[1, [2]]", "{}", "{a = 1}", "1979-05-27"),
    *("07:32:00", "1979-05-27T07:32:00Z", '"\\u0000"', '"\\U0001F600"', "0x" + "f" * 300, "9" * 5000, '"""\n"""'),
    *('"folder:~nobody-of-this-name/x"', '"~nobody-of-this-name/x"', '"folder:' + "a" * 5000 + '"', '"folder:\\u0000"'),
    *('"./' + "a" * 5000 + '"', '"../.."', '"/dev"', '"hub:a/b"', '"package:x"', "[" * 3000 + "]" * 3000),
)
KEYS = (
    *(*spec.KEYS, "sorce", '"\\U0001F600"', '"\\u00e9"', "'a\"b'", '"a b"', '"\\u0000"', '""', "a.b", '"\\t".x'),
    *("settings.x", "settings.'\\e'"),
)
lines = st.builds("{} = {}".format, st.sampled_from(KEYS), st.sampled_from(VALUES)) | st.builds(
    "[{}{}]".format, st.sampled_from(["", "models.", "models.bert."]), st.sampled_from(KEYS)
)


def read(folder: Path, text: str | bytes) -> spec.Catalog | None:
    """The catalogue, or None where it is refused as it should be."""
    path = folder / "models.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        return reader.load(path)
    except CatalogError as error:
        refused = error
    assert refused.message.startswith((f"{path}:", f"{path} cannot be read"))
    return None


def test_the_text_that_is_changed_is_right(tmp_path: Path) -> None:
    catalog = read(tmp_path, TEXT)
    assert catalog is not None
    assert [model.name for model in catalog.models] == ["bert", "team-a/gpt2"]


@bounded
@given(st.lists(st.tuples(st.integers(0, 30), lines), min_size=1, max_size=4))
def test_odd_lines_among_right_ones(tmp_path: Path, added: list[tuple[int, str]]) -> None:
    rows = TEXT.splitlines()
    for at, line in added:
        rows[at % len(rows) : at % len(rows) + at % 2] = [line]
    read(tmp_path, "\n".join(rows))


@bounded
@given(st.lists(st.tuples(st.integers(0, 1000), st.binary(max_size=4)), min_size=1, max_size=5))
def test_bytes_changed(tmp_path: Path, changes: list[tuple[int, bytes]]) -> None:
    text = bytearray(TEXT.encode())
    for place, new in changes:
        at = place % len(text)
        text[at : at + len(new)] = new
    read(tmp_path, bytes(text))


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:20])
@pytest.mark.parametrize("key", KEYS)
def test_every_value_for_every_key(tmp_path: Path, key: str, value: str) -> None:
    read(tmp_path, f'[models.bert]\nsource = "folder:x"\nhandler = "embedding"\n{key} = {value}\n')
    read(tmp_path, f"[models.bert]\n{key} = {value}\n")


@pytest.mark.parametrize("name", ['"\\U0001F600"', '"\\e"', "'\\x'", '"a\\"b"', '"\\u0000"'])
def test_names_with_escapes(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, f'[models.{name}]\nsource = "folder:x"\nhandler = "embedding"\n') is None
