"""The handlers on the oldest and the newest transformers that they are for, beside the one that is installed here.

The other versions are installed into .cache (a few MB each; torch stays the installed one), once.
"""

import base64
import functools
import io
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pipelines
import pytest
from between_workers import installed
from handler_tools import ROOT, TINY_GPT2, linked, load, request, stored_int8
from sentences import SENTENCES
from warm_python import TRANSFORMERS, WarmPython

VERSIONS = {
    "4.49.0": ("transformers==4.49.0", "tokenizers==0.21.4", "huggingface_hub==0.36.2"),
    "5.24.0": ("transformers==5.24.0", "tokenizers==0.23.1", "huggingface_hub==1.33.0"),
}
EMBEDDING = [
    ["The house is quiet.", "text/plain", "application/json"],
    ['["The house is quiet.", "Rain.", ""]', "application/json", "application/json"],
    ['{"inputs": "word word word", "parameters": {"pooling": "cls", "max_length": 4}}', "application/json", "*/*"],
    ['["The house is quiet.", "Rain."]', "application/json; charset=utf-8", "application/x-npy"],
    ['{"inputs": 3}', "application/json", "application/json"],
]
GENERATION = [
    ["It was", "text/plain", "application/json"],
    ['{"inputs": ["It was", "She", ""], "parameters": {"seed": 3, "top_p": 0.9}}', "application/json", "*/*"],
    ['{"inputs": "He", "parameters": {"num_beams": 3, "num_return_sequences": 2}}', "application/json", "*/*"],
    ['{"inputs": "He", "parameters": {"stop": [".", ","], "repetition_penalty": 1.2}}', "application/json", "*/*"],
    ['{"inputs": "He", "parameters": {"max_new_tokens": -1}}', "application/json", "*/*"],
]


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """A transformers version, installed in .cache/transformers-VERSION."""
    name: str = request.param
    overlay(name)
    return name


def overlay(version: str) -> Path:
    return installed(f"transformers-{version}", VERSIONS[version])


def environment(version: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(overlay(version)), "HF_HUB_OFFLINE": "1"}


@functools.cache
def warm(version: str) -> WarmPython:
    """An interpreter with that version in it, for all tests of this run."""
    return WarmPython(sys.executable, TRANSFORMERS, environment(version))


def on(
    version: str, kind: str, model: Path, requests: list[list[str]], by_engine: bool = False
) -> list[dict[str, str]]:
    words = [str(Path(__file__).with_name("answers.py")), str(ROOT / "model_code" / kind), str(model)]
    surroundings = environment(version) | ({"MME_ENGINE": ""} if by_engine else {})
    done = warm(version).run(words, surroundings, json.dumps(requests))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["version"] == version, "it ran on the version that it should run on"
    assert result["by_engine"] == by_engine
    assert result["together"] in (None, True), "prompts share a pass on every version"
    answers: list[dict[str, str]] = result["answers"]
    if result["joined"] is not None:
        assert result["joined"] == [answer.get("body") for answer in answers], "whoever joins changes no text"
    return answers


def here(handler: ModuleType, model: Any, request: list[str]) -> bytes | str:
    body, content_type, accept = request
    try:
        answer: bytes = handler.output_fn(handler.predict_fn(handler.input_fn(body, content_type), model), accept)
    except ValueError as error:
        return str(error)
    return answer


@pytest.mark.slow
def test_embeddings_are_the_same_on_every_version(
    version: str, embedding: ModuleType, embedder: Any, bert: Path
) -> None:
    for asked, got in zip(EMBEDDING, on(version, "embedding", bert, EMBEDDING), strict=True):
        expected = here(embedding, embedder, asked)
        if isinstance(expected, str):
            assert got == {"error": expected}
            continue
        body = base64.b64decode(got["body"])
        if asked[2] == "application/x-npy":
            assert np.abs(np.load(io.BytesIO(body)) - np.load(io.BytesIO(expected))).max() < 1e-5
        else:
            theirs, ours = json.loads(body), json.loads(expected)
            assert np.abs(np.array(theirs.pop("embeddings")) - np.array(ours.pop("embeddings"))).max() < 1e-5
            assert theirs == ours


@pytest.mark.slow
def test_int8_vectors_are_near_on_every_version(version: str, embedder: Any, bert: Path, tmp_path: Path) -> None:
    folder = linked(bert, tmp_path / "m", quantize="int8")
    [answer] = on(version, "embedding", folder, [[json.dumps(SENTENCES), "application/json", "application/x-npy"]])
    int8 = np.load(io.BytesIO(base64.b64decode(answer["body"])))
    exact = embedder_vectors(embedder)
    cosine = (int8 * exact).sum(1) / np.linalg.norm(int8, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() >= 0.99


@pytest.mark.slow
def test_weights_stored_as_int8_are_read_on_every_version(
    version: str, embedding: ModuleType, generation: ModuleType, bert: Path, tmp_path: Path
) -> None:
    folder = stored_int8(bert, tmp_path / "bert", "AutoModel")
    asked = [json.dumps(SENTENCES), "application/json", "application/x-npy"]
    theirs, ours = (
        np.load(io.BytesIO(body))
        for body in (
            base64.b64decode(on(version, "embedding", folder, [asked])[0]["body"]),
            here(embedding, embedding.model_fn(str(folder)), asked),
        )
        if isinstance(body, bytes)
    )
    assert np.abs(theirs - ours).max() < 1e-3
    folder = stored_int8(TINY_GPT2, tmp_path / "gpt2", "AutoModelForCausalLM")
    asked = ["It was", "text/plain", "application/json"]
    [answer] = on(version, "generation", folder, [asked])
    assert base64.b64decode(answer["body"]) == here(generation, generation.model_fn(str(folder)), asked)


def embedder_vectors(embedder: Any) -> np.ndarray:
    handler = load("embedding")
    vectors: np.ndarray = handler.predict_fn(request(handler, SENTENCES), embedder)["embeddings"]
    return vectors


@pytest.mark.slow
def test_texts_are_the_same_on_every_version(version: str, generation: ModuleType, generator: Any) -> None:
    for asked, got in zip(GENERATION, on(version, "generation", TINY_GPT2, GENERATION), strict=True):
        expected = here(generation, generator, asked)
        if isinstance(expected, str):
            assert got == {"error": expected}
        else:
            assert json.loads(base64.b64decode(got["body"])) == json.loads(expected)


@pytest.mark.slow
@pytest.mark.parametrize("task", pipelines.AUTO)
def test_pipelines_by_the_engine_answer_as_those_by_torch_on_every_version(
    version: str, task: str, bert: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    folder = pipelines.saved(task, "Bert", bert, tmp_path / "model")
    asked = [
        [json.dumps({"inputs": inputs, "parameters": parameters}), "application/json", "application/json"]
        for inputs, parameters in pipelines.ASKED[task]
    ]
    got, want = (
        [json.loads(base64.b64decode(answer["body"])) for answer in on(version, "pipeline", folder, asked, by_engine)]
        for by_engine in (True, False)
    )
    assert pipelines.near(got, want)
