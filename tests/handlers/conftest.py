"""The handlers and a loaded model of each, once for all tests."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from handler_tools import TINY_GPT2, linked, load, minilm


@pytest.fixture(scope="session", autouse=True)
def formats_as_asked() -> Iterator[None]:
    """Whether or not this processor is fast in them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MME_FORMAT", "asked")
        yield


@pytest.fixture(scope="session", autouse=True)
def torch_computes() -> Iterator[None]:
    """What torch answers is tested whether or not onnxruntime is installed; test_handler_engine.py has the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MME_ENGINE", "torch")
        yield


@pytest.fixture(scope="session")
def embedding() -> ModuleType:
    return load("embedding")


@pytest.fixture(scope="session")
def generation() -> ModuleType:
    return load("generation")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real all-MiniLM-L6-v2 as a plain BERT: without what sentence-transformers keeps beside it."""
    folder = tmp_path_factory.mktemp("bert") / "model"
    return linked(minilm(), folder, ("1_Pooling", "modules.json", "sentence_bert_config.json"))


@pytest.fixture(scope="session")
def embedder(embedding: ModuleType, bert: Path) -> Any:
    return embedding.model_fn(str(bert))


@pytest.fixture(scope="session")
def generator(generation: ModuleType) -> Any:
    return generation.model_fn(str(TINY_GPT2))
