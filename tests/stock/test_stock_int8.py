"""An archive of a model in int8, on the real multi-model-server and on our container: the same answers, near the exact.

Needs Java and `make stock`; the test says so where it is skipped.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stock_tools import Server, close

from mme.archive import untar
from mme.catalog import reader
from mme.packaging.job import PackagingJob

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_stock", "forked_module", "warm_accuracy")]
Serve = Callable[[str], Server]

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "The house is quiet.",
    "Rain.",
    "Nobody is at home, and the garden gate stands open in the wind.",
    "Take one tablet twice a day with water, and see your doctor if the pain has not gone after three days.",
    "Der Zug nach Hamburg hat zwanzig Minuten Verspätung.",
]


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's two models in int8, made by our own packaging and unpacked as the platform unpacks them."""
    folder = tmp_path_factory.mktemp("int8")
    text = (ROOT / "demo" / "models.toml").read_text(encoding="utf-8")
    text = text.replace('"folder:tiny-gpt2"', json.dumps(f"folder:{ROOT / 'demo' / 'tiny-gpt2'}"))
    # What it costs a model as small as the demo's GPT-2 is no matter here.
    text = text.replace("\nhandler", '\nquantize = "int8"\nmax_error = 1.0\nhandler')
    (folder / "models.toml").write_text(text, encoding="utf-8")
    for spec in reader.load(folder / "models.toml").models:
        made = PackagingJob(spec, folder / "dist").package().archive
        assert made.path is not None
        untar.extract(made.path, folder / spec.name)
    return folder


@pytest.mark.parametrize("kind", ["stock", "ours"])
def test_int8_answers_are_close_to_the_exact_ones(serve: Serve, models: dict[str, Path], int8: Path, kind: str) -> None:
    assert not list((int8 / "bert").rglob("model.safetensors")), "the weights lie in the archive as int8"
    server = serve(kind)
    assert server.load("exact-bert", models["bert"]).status in (200, 409)
    assert server.load("int8-bert", int8 / "bert").status == 200
    body = json.dumps(TEXTS).encode()
    exact, near = (
        np.array(json.loads(server.invoke(name, body, "application/json").body)["embeddings"])
        for name in ("exact-bert", "int8-bert")
    )
    cosines = (exact * near).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(near, axis=1)
    assert cosines.min() >= 0.99
    assert np.abs(exact - near).max() > 1e-5, "it did compute in int8"


def test_both_servers_answer_the_same_from_int8(serve: Serve, int8: Path) -> None:
    bodies = {
        "bert": json.dumps(TEXTS[3]).encode(),
        "gpt2": json.dumps({"inputs": "It was", "parameters": {"max_new_tokens": 12}}).encode(),
    }
    for name, body in bodies.items():
        answers = []
        for server in (serve("stock"), serve("ours with torch")):
            assert server.load(f"int8-{name}", int8 / name).status in (200, 409)
            reply = server.invoke(f"int8-{name}", body, "application/json")
            assert reply.status == 200, reply.body
            answers.append(json.loads(reply.body))
        assert close(answers[0], answers[1], 1e-3)


def test_the_engines_int8_is_that_of_torch(serve: Serve, int8: Path) -> None:
    """onnxruntime rounds the numbers between layers by itself: as near to torch's int8 as it is asked to be."""
    vectors = []
    for server in (serve("stock"), serve("ours")):
        assert server.load("int8-bert", int8 / "bert").status in (200, 409)
        reply = server.invoke("int8-bert", json.dumps(TEXTS).encode(), "application/json")
        vectors.append(np.array(json.loads(reply.body)["embeddings"]))
    cosines = (vectors[0] * vectors[1]).sum(1) / np.linalg.norm(vectors[0], axis=1) / np.linalg.norm(vectors[1], axis=1)
    assert cosines.min() >= 0.998
