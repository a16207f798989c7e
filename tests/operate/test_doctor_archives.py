"""`invoke doctor`: what is wrong inside archives."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from typing import Any

import pytest
from doctor_tools import HANDLER, Quotas, Stack
from local_tools import tar_gz

from mme.operate import archives, processors

GOOD = {"config.json": b"{}", "model.safetensors": b"0", "code/inference.py": HANDLER}


def under(top: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{top}/{name}": data for name, data in files.items()}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (under("bert", GOOD), "in the folder bert/"),
        (under("model", {"config.json": b"{}"}), "in the folder model/"),
        ({"config.json": b"{}", "inference.py": HANDLER}, "inference.py lies at the root"),
        ({"config.json": b"{}", "code/code/inference.py": HANDLER}, "without inference.py"),
        ({"config.json": b"{}", "code/helpers.py": b""}, "without inference.py"),
        ({"weights.bin": b"0"}, "neither config.json"),
    ],
)
def test_an_archive_with_files_at_the_wrong_level(stack: Stack, files: dict[str, bytes], words: str) -> None:
    stack.push()
    stack.corner.publish("bert.tar.gz", tar_gz(files))
    assert words in stack.problems("--endpoint", stack.endpoint())["archive: files", "error"]


def test_an_archive_that_somebody_else_made_right_is_all_right(stack: Stack) -> None:
    stack.push()
    stack.corner.publish("bert.tar.gz", tar_gz(GOOD))
    assert stack.problems("--endpoint", stack.endpoint()) == {}


def test_a_large_archive_is_judged_by_its_beginning(stack: Stack) -> None:
    stack.push()
    stack.corner.publish(
        "bert.tar.gz", tar_gz({"bert/model.safetensors": os.urandom(3 << 20), "bert/config.json": b"{}"})
    )
    assert "as far as its beginning tells" in stack.only("archive: files", "warning", "--endpoint", stack.endpoint())
    stack.corner.publish("bert.tar.gz", tar_gz({"config.json": b"{}", "model.safetensors": os.urandom(3 << 20)}))
    assert stack.problems("--endpoint", stack.endpoint()) == {}


@pytest.mark.parametrize(
    "data",
    [b"", b"no gzip", b"\x1f\x8b" + b"0" * 100, tar_gz(GOOD)[:60]],
    ids=["empty", "text", "magic", "cut"],  # the archive has the time in it, and all workers must name it alike
)
def test_an_archive_that_is_broken(stack: Stack, data: bytes) -> None:
    stack.push()
    stack.corner.publish("bert.tar.gz", data)
    assert "bert.tar.gz" in stack.problems("--endpoint", stack.endpoint())["archive", "error"]


def test_a_bomb_is_not_unpacked() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("bert/zeros")
        info.size = 1 << 28
        tar.addfile(info, io.BytesIO(bytes(info.size)))

    class S3:
        def get_object(self, **_: Any) -> Any:
            return {"Body": io.BytesIO(buffer.getvalue())}

    (seen,) = archives.look(S3(), "b", {"bert.tar.gz": ("k", len(buffer.getvalue()))})  # type: ignore[arg-type]
    assert seen.names == ("bert/zeros",)
    assert not seen.complete


def test_a_handler_that_needs_what_the_image_lacks(stack: Stack) -> None:
    stack.push()
    stack.publish(code=HANDLER.replace(b"import json", b"import catboost, json"))
    endpoint = stack.endpoint()
    assert "catboost" in stack.only("handler: libraries", "error", "--endpoint", endpoint)


def test_a_handler_that_can_do_without_is_all_right(stack: Stack) -> None:
    stack.push()
    stack.publish(code=b"try:\n    import catboost\nexcept ImportError:\n    catboost = None\n" + HANDLER)
    assert stack.problems("--endpoint", stack.endpoint()) == {}


def test_requirements_that_nobody_installs(stack: Stack) -> None:
    stack.push()
    wanted = b"# for people\ntransformers==4.51.3\nnltk>=3\n"
    stack.corner.publish("bert.tar.gz", tar_gz({**GOOD, "code/requirements.txt": wanted}))
    problem = stack.only("handler: libraries", "error", "--endpoint", stack.endpoint())
    assert "nltk>=3" in problem
    assert "transformers" not in problem
    stack.corner.publish("bert.tar.gz", tar_gz({**GOOD, "code/requirements.txt": wanted, "code/nltk/__init__.py": b""}))
    assert stack.problems("--endpoint", stack.endpoint()) == {}


def test_a_version_of_transformers_that_is_too_old_for_a_model(stack: Stack) -> None:
    image = stack.push(tag="2.6.0-transformers4.49.0-cpu")
    stack.publish(facts={"architecture": "Qwen3ForCausalLM"})
    problem = stack.only("transformers", "error", "--endpoint", stack.endpoint(image=image))
    assert "4.51" in problem
    assert "4.49.0" in problem
    later = stack.push(tag="2.6.0-transformers4.51.3-cpu")
    assert stack.problems("--endpoint", stack.endpoint(image=later)) == {}
    unnamed = stack.push(tag="mine")
    assert "does not say" in stack.only("transformers", "unknown", "--endpoint", stack.endpoint(image=unnamed))


def test_an_image_older_than_the_handlers_are_tested_with(stack: Stack) -> None:
    image = stack.push(tag="2.1.0-transformers4.37.0-cpu")
    stack.publish()
    assert "4.37.0" in stack.only("transformers", "warning", "--endpoint", stack.endpoint(image=image))


@pytest.mark.parametrize(
    ("facts", "kind", "words"),
    [
        ({"quantize": "int8"}, "ml.m5.large", "VNNI"),
        ({"dtype": "bfloat16"}, "ml.m6i.large", "bfloat16"),
        ({"dtype": "float16"}, "ml.m7i.large", "float16"),
    ],
)
def test_a_processor_without_what_a_format_needs(stack: Stack, facts: dict[str, Any], kind: str, words: str) -> None:
    stack.push()
    stack.publish(facts=facts)
    stack.quotas = Quotas({kind: 20})
    endpoint = stack.endpoint(InstanceType=kind)
    assert words in stack.only("processor", "warning", "--endpoint", endpoint)
    assert stack.problems("--endpoint", endpoint, "--ignore", "processor") == {}


def test_what_processors_can_do() -> None:
    assert processors.lacks("ml.m6i.xlarge", "float32", "int8") is None
    assert processors.lacks("ml.m7i.xlarge", "bfloat16", None) is None
    assert processors.lacks("ml.c7g.xlarge", "bfloat16", None) is None
    assert processors.lacks("ml.g5.xlarge", "float16", None) is None
    assert processors.lacks("ml.x99.xlarge", "float16", "int8") is None
    assert processors.lacks("ml.m5.xlarge", "float32", None) is None


def test_model_classes_and_versions() -> None:
    assert archives.first_version("Qwen3ForCausalLM") == (4, 51)
    assert archives.first_version("Qwen3NextForCausalLM") == (4, 57)
    assert archives.first_version("GemmaForCausalLM") == (4, 38)
    assert archives.first_version("Gemma3ForCausalLM") == (4, 50)
    assert archives.first_version("BertModel") is None
    assert archives.first_version("Glmx") is None


def test_more_archives_than_are_looked_into_is_said(stack: Stack) -> None:
    stack.push()
    for name in ("a", "b", "c"):
        stack.publish(name)
    problem = stack.only("archives", "unknown", "--endpoint", stack.endpoint(), "--archives", "2")
    assert "2 of 3" in problem
