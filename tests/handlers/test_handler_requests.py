"""What a request may look like. Both handlers read requests in the same way, and each has its own copy of how."""

import json
import re
from types import ModuleType
from typing import Any

import pytest
from handler_tools import ROOT, load
from hypothesis import example, given
from hypothesis import strategies as st

KINDS = ("embedding", "generation")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(params=KINDS)
def handler(request: pytest.FixtureRequest) -> ModuleType:
    return load(request.param)


@pytest.mark.parametrize("folder", [*KINDS, "common"])
def test_a_handler_imports_nothing_of_this_project(folder: str) -> None:
    for script in (ROOT / "model_code" / folder).glob("*.py"):
        assert not re.search(r"^\s*(import|from) mme\b", script.read_text(), re.MULTILINE), script


@pytest.mark.parametrize(
    ("body", "content_type", "texts", "single"),
    [
        ('"a"', "application/json", ["a"], True),
        ('["a", "b"]', "application/json", ["a", "b"], False),
        ('{"inputs": "a"}', "application/json", ["a"], True),
        ('{"inputs": ["a"]}', "application/json", ["a"], False),
        ('{"inputs": "a", "parameters": null}', "application/json", ["a"], True),
        ('"a"', None, ["a"], True),
        ('"a"', "", ["a"], True),
        ("a {not json", "text/plain", ["a {not json"], True),
        (b'"\xc3\xa9"', "application/json; charset=utf-8", ["é"], True),
        (b'"\xc3\xa9"', 'Application/JSON;charset="UTF-8"', ["é"], True),
        (bytearray(b"\xc3\xa9"), "text/plain", ["é"], True),
        (b"\xe9", "text/plain; charset=iso-8859-1", ["é"], True),
        (b'\xef\xbb\xbf"a"', "application/json", ["a"], True),
        ('\ufeff"a"', "application/json", ["a"], True),
        (b'"\\ud83d\\ude00"', "application/json", ["😀"], True),
        (b"", "text/plain", [""], True),
    ],
)
def test_what_is_taken(
    handler: ModuleType, body: Any, content_type: str | None, texts: list[str], single: bool
) -> None:
    request = handler.input_fn(body, content_type)
    assert (request.texts, request.single, request.parameters) == (texts, single, {})


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"", "application/json", "not valid JSON"),
        (b"{", "application/json", "not valid JSON"),
        (b"NaN", "application/json", "NaN is not a JSON number"),
        (b"[" * 100_000, "application/json", "nested too deeply"),
        (b'"\xe9"', "application/json", "not valid utf-8: .* at byte 1"),
        (b"hi", "text/plain; charset=utf-7", "charset 'utf-7' is not supported"),
        (b"a,b", "text/csv", "'text/csv' is not supported. Send application/json or text/plain"),
        (b"3", "application/json", "must be a text or a list of texts, not a number"),
        (b"true", "application/json", "not a boolean"),
        (b"null", "application/json", "not null"),
        (b"[]", "application/json", "empty list"),
        (b'["a", 3]', "application/json", r"inputs\[1\] is a number"),
        (b'[["a"]]', "application/json", r"inputs\[0\] is a list"),
        (b"{}", "application/json", 'no "inputs"'),
        (b'{"input": "a"}', "application/json", "Unknown field 'input'"),
        (b'{"inputs": "a", "parameters": []}', "application/json", '"parameters" must be a JSON object'),
        (
            b'{"inputs": "a", "parameters": {"poling": "cls"}}',
            "application/json",
            "Unknown parameter 'poling'. Known: ",
        ),
        (b'["a", "\\ud800"]', "application/json", r"inputs\[1\] holds half of a surrogate pair"),
    ],
)
def test_what_is_refused_and_why(handler: ModuleType, body: bytes, content_type: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        handler.input_fn(body, content_type)


@pytest.mark.parametrize("kind", KINDS)
@given(body=st.binary() | VALUES.map(lambda value: json.dumps(value).encode()), content_type=st.none() | st.text())
@example(body=b'{"inputs": "a"}', content_type="text/plain;;charset")
@example(body=b"9" * 5000, content_type="application/json")
def test_any_body_is_a_request_or_a_reason(kind: str, body: bytes, content_type: str | None) -> None:
    """Whatever comes in, a ValueError is all that comes out: anything else would be an error of ours, a 500."""
    handler = load(kind)
    for kind_of_body in (content_type, "application/json", "text/plain"):
        try:
            request = handler.input_fn(body, kind_of_body)
        except ValueError:
            continue
        assert request.texts
        assert "".join(request.texts).encode() is not None, "it can be written, so it can be tokenised"


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXTS, min_size=1))
def test_texts_come_through_as_they_were_sent(kind: str, texts: list[str]) -> None:
    handler = load(kind)
    for body in (json.dumps(texts), json.dumps({"inputs": texts}, ensure_ascii=False).encode()):
        assert handler.input_fn(body, "application/json").texts == texts
    for text in texts:
        assert handler.input_fn(json.dumps(text), "application/json").texts == [text]
        assert handler.input_fn(text.encode(), "text/plain").texts == [text.removeprefix("\ufeff")]


@pytest.mark.parametrize(
    ("accept", "answered"),
    [
        (None, True),
        ("", True),
        ("*/*", True),
        ("application/json", True),
        ("application/json; q=0.9", True),
        ("text/html, application/*;q=0.5", True),
        ("text/html", False),
        ("application/jsonp", False),
    ],
)
def test_accept(generation: ModuleType, accept: str | None, answered: bool) -> None:
    if answered:
        assert json.loads(generation.output_fn([{"generated_text": "é"}], accept)) == [{"generated_text": "é"}]
    else:
        with pytest.raises(ValueError, match=r"cannot be answered\. Ask for application/json"):
            generation.output_fn([], accept)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "application/json"),
        ("", "application/json"),
        (" , ", "application/json"),
        ("*/*", "application/json"),
        ("application/x-npy", "application/x-npy"),
        ("application/x-npy;q=0.1, application/json", "application/json"),
        ("application/json;q=0.1, application/x-npy;q=0.2", "application/x-npy"),
        ("application/x-npy, application/json", "application/x-npy"),
        ("*/*, application/json;q=0.5", "application/x-npy"),
        ("application/json;q=0, */*;q=0.1", "application/x-npy"),
        ("text/html, application/xml;q=0.9, */*;q=0.8", "application/json"),
        ("APPLICATION/X-NPY; Q=0.5, image/png", "application/x-npy"),
        ("application/*;q=0, */*", None),
        ("application/json;q=0", None),
        ("text/*", None),
    ],
)
def test_the_most_wanted_type_is_answered(handler: ModuleType, accept: str | None, kind: str | None) -> None:
    offered = ("application/json", "application/x-npy")
    if kind is None:
        with pytest.raises(ValueError, match="cannot be answered"):
            handler.negotiate(accept, offered)
    else:
        assert handler.negotiate(accept, offered) == kind
