"""DeBERTa's options, one beside the other and all at random, against transformers' own forward pass."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from handler_tools import load

load("embedding")
pytest.importorskip("onnxruntime")
import engine  # noqa: E402
import engine_builder  # noqa: E402
import engine_heads  # noqa: E402
import engine_inputs  # noqa: E402

LONGEST = 90
BOTH = ["p2c", "c2p"]
V3: dict[str, Any] = {
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": BOTH,
    "position_buckets": 16,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}
V1: dict[str, Any] = {"relative_attention": True, "position_biased_input": False, "pos_att_type": BOTH}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("DebertaV2", V3),
    ("DebertaV2", V3 | {"pos_att_type": ["c2p"]}),
    ("DebertaV2", V3 | {"pos_att_type": "p2c"}),
    ("DebertaV2", V3 | {"pos_att_type": []}),
    ("DebertaV2", V3 | {"pos_att_type": None, "share_att_key": False}),
    ("DebertaV2", V3 | {"pos_att_type": "c2p|p2c", "share_att_key": False, "norm_rel_ebd": "none"}),
    ("DebertaV2", V3 | {"relative_attention": False}),
    ("DebertaV2", {"position_biased_input": True, "type_vocab_size": 2}),
    ("DebertaV2", V3 | {"position_buckets": -1, "max_relative_positions": 12}),
    ("DebertaV2", V3 | {"position_buckets": 5}),
    ("DebertaV2", V3 | {"position_buckets": 64}),
    ("DebertaV2", V3 | {"embedding_size": 6}),
    ("DebertaV2", V3 | {"conv_kernel_size": 3}),
    ("DebertaV2", V3 | {"conv_kernel_size": 5, "conv_groups": 2, "conv_act": "gelu"}),
    ("DebertaV2", V3 | {"conv_kernel_size": 1, "num_hidden_layers": 1}),
    ("Deberta", V1),
    ("Deberta", V1 | {"pos_att_type": "c2p"}),
    ("Deberta", V1 | {"pos_att_type": ["p2c"], "max_relative_positions": 12}),
    ("Deberta", V1 | {"pos_att_type": None}),
    ("Deberta", V1 | {"position_biased_input": True, "type_vocab_size": 3, "embedding_size": 6}),
    ("Deberta", {"pos_att_type": BOTH}),
]


@pytest.fixture(autouse=True)
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MME_ENGINE", raising=False)


def saved(kind: str, folder: Path, seed: int, head: str = engine_heads.NONE, **options: Any) -> Any:
    """transformers' own model, which is in the folder, too."""
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "max_position_embeddings": LONGEST, "num_labels": 3}
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**sizes | options)
    model = getattr(transformers, f"{kind}ForSequenceClassification" if head else f"{kind}Model")(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    return model


def compare(model: Any, folder: Path, lengths: list[int], seed: int, head: str = engine_heads.NONE) -> None:
    encoding = engine.load(folder, transformers.AutoConfig.from_pretrained(folder), head=head)
    assert engine.differs(encoding, model, LONGEST) is None
    numbers = np.random.default_rng(seed)
    rows = [numbers.integers(0, 50, length).tolist() for length in lengths]
    typed = model.config.type_vocab_size > 1
    types = [[place % 2 for place in range(len(row))] for row in rows] if typed else None
    got = encoding.run(rows, types=types)
    parts = np.split(got, len(rows) if head else np.cumsum(lengths)[:-1])
    for place, (row, states) in enumerate(zip(rows, parts, strict=True)):
        own = {"token_type_ids": torch.tensor([types[place]])} if types else {}
        with torch.inference_mode():
            answer = model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row)), **own)
        want = (answer.logits if head else answer.last_hidden_state[0]).numpy()
        assert np.abs(states - want).max() <= 1e-5 * max(1.0, np.abs(want).max())


@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_every_option_is_transformers_own(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = saved(kind, tmp_path, 0, **options)
    compare(model, tmp_path, [LONGEST, 1, 17, 2, 33, 17], 0)
    compare(model, tmp_path, [1], 1)
    compare(model, tmp_path, [20, 20], 2)


@pytest.mark.parametrize("seed", range(12))
def test_options_at_random_are_transformers_own(seed: int, tmp_path: Path) -> None:
    pick = random.Random(seed)
    kind, options = pick.choice(OPTIONS)
    others = [other for name, more in OPTIONS if name == kind for other in more.items()]
    options = options | dict(pick.choices(others, k=3)) | {"num_attention_heads": pick.choice([1, 4])}
    head = engine_heads.TEXTS if pick.random() < 0.5 else engine_heads.NONE
    model = saved(kind, tmp_path, seed, head, **options)
    compare(model, tmp_path, [pick.randint(1, LONGEST) for _ in range(4)], seed, head)


def test_texts_longer_than_any_distance_that_has_a_row(tmp_path: Path) -> None:
    """Without positions of their own, tokens may stand farther apart than the table of distances goes."""
    model = saved("DebertaV2", tmp_path, 0, **V3 | {"max_position_embeddings": 24})
    compare(model, tmp_path, [80, 3, 61], 0)


def test_a_convolution_over_an_even_number_of_tokens_is_refused(tmp_path: Path) -> None:
    saved("DebertaV2", tmp_path, 0, **V3 | {"conv_kernel_size": 2})
    with pytest.raises(engine.Unsupported, match="convolution is over 2 tokens"):
        engine.load(tmp_path, transformers.AutoConfig.from_pretrained(tmp_path))


def test_rows_of_distances_are_transformers_own() -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    compared = 0
    for buckets in (4, 5, 6, 8, 16, 20, 64, 256, 512):
        for most in (8, 13, 16, 17, 33, 64, 65, 128, 257, 512, 2048):
            if buckets // 2 < most - 1:
                distances = torch.arange(-2 * most, 2 * most + 1)
                bucketed = make_log_bucket_position(distances, buckets, most).long()
                want = (bucketed + buckets).clamp(0, 2 * buckets - 1).numpy()
                relative = engine_builder.Relative(buckets, buckets, most)
                assert (engine_inputs._rows(distances.numpy(), relative) == want).all(), (buckets, most)
                compared += 1
    assert compared > 50


def test_layers_that_use_a_weight_twice_have_two_copies_of_it_when_busy(tmp_path: Path) -> None:
    once, shared = (
        saved("DebertaV2", tmp_path / str(share), 0, **V3 | {"share_att_key": share}) for share in (False, True)
    )
    offers = []
    for model, share in ((once, False), (shared, True)):
        encoding = engine.load(tmp_path / str(share), model.config)
        encoding.begin()
        offers.append(encoding.bytes)
        encoding.end()
    assert offers[0] == offers[1] > 0
