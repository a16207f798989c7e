"""Adapters that are kept apart: one base in many archives, byte for byte, and beside it what each adapter adds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_adapters
import tiny_models
import torch
from safetensors.torch import load_file

from mme.archive import untar
from mme.archive.contents import Archive
from mme.catalog import reader
from mme.catalog.spec import ModelSpec, Source
from mme.errors import ArchiveError, CatalogError, SourceError
from mme.packaging import unchanged
from mme.packaging.job import PackagingJob
from mme.snapshot import retrieve
from mme.tasks import inspection

LAYERS = ("query", "value", "output.dense")
QUERY = "base_model.model.encoder.layer.0.attention.self.query"  # 8 in, 8 out
COMMIT = "86b5e0934494bd15c9632b12f734a8a67f723594"


def spec(base: Path, adapter: Source | None = None, name: str = "model", **more: object) -> ModelSpec:
    fields = {"task": "feature-extraction", "adapter_merge": False, **more}
    return ModelSpec(name, Source("folder", base.name, base), adapter=adapter, **fields)  # type: ignore[arg-type]


def digests(made: Archive) -> dict[str, str]:
    return {file.path: file.sha256 for file in made.files}


# --- what is in the archive ----------------------------------------------------------------------------------


def test_the_base_is_the_same_file_in_every_archive(bert: Path, tmp_path: Path) -> None:
    handler = tiny_models.handler(tmp_path / "handler")
    sources = [None, *(tiny_adapters.lora(tmp_path / str(seed), bert, LAYERS, seed=seed) for seed in range(2))]
    made = [
        PackagingJob(spec(bert, source, name, handler=handler, adapter_merge=source is None), tmp_path / "dist")
        .package()
        .archive
        for name, source in zip(("plain", "a", "b"), sources, strict=True)
    ]
    plain, one, two = (digests(archive) for archive in made)
    new = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert one.keys() - plain.keys() == new
    assert {path for path in plain if plain[path] != one[path]} == set()
    assert {path for path in one if one[path] != two[path]} == {"adapter/adapter_model.safetensors"}
    assert len({archive.digest for archive in made}) == 3
    folder = tmp_path / "unpacked"
    assert made[1].path
    untar.extract(made[1].path, folder)
    stored, given = (load_file(at / "adapter_model.safetensors") for at in (folder / "adapter", tmp_path / "0"))
    assert stored.keys() == given.keys()
    assert all(torch.equal(stored[name], given[name]) for name in given)


@pytest.mark.slow
@pytest.mark.usefixtures("warm_accuracy")
def test_in_fewer_bits_too_and_measured_with_the_adapter(bert: Path, tmp_path: Path) -> None:
    source = tiny_adapters.lora(tmp_path / "a", bert, LAYERS, strength=3.0)
    handler = Path(__file__).parents[2] / "model_code" / "embedding"
    plain, apart = (
        retrieve.snapshot(spec(bert, given, handler=handler, dtype="bfloat16"), tmp_path / name)
        for name, given in (("plain", None), ("apart", source))
    )
    files = [(taken.path / "model.safetensors").read_bytes() for taken in (plain, apart)]
    assert files[0] == files[1]
    measured = [taken.facts["accuracy"]["worst"] for taken in (plain, apart)]
    assert 0 < measured[0] < 0.01
    assert 0 < measured[1] < 0.01
    assert measured[0] != measured[1], "it is the answers with the adapter that are compared"


@pytest.mark.slow
@pytest.mark.usefixtures("warm_accuracy")
def test_int8_leaves_the_bases_file_as_it_is(bert: Path, tmp_path: Path) -> None:
    """Nothing is won by storing a base in int8 that others hold in full; the handler makes it so when it loads."""
    source = tiny_adapters.lora(tmp_path / "a", bert, LAYERS)
    handler = Path(__file__).parents[2] / "model_code" / "embedding"
    apart = retrieve.snapshot(
        spec(bert, source, handler=handler, quantize="int8", settings={"quantize": "int8"}, max_error=0.5),
        tmp_path / "apart",
    )
    plain = retrieve.snapshot(spec(bert), tmp_path / "plain")
    assert {file.name for file in apart.path.glob("*.safetensors")} == {"model.safetensors"}
    assert (apart.path / "model.safetensors").read_bytes() == (plain.path / "model.safetensors").read_bytes()
    assert 0 < apart.facts["accuracy"]["worst"] < 0.5


def test_the_same_adapter_gives_the_same_bytes_whoever_saved_it(bert: Path, tmp_path: Path) -> None:
    """The order of PEFT's sets, paths of the training machine, and how it was trained are not part of it."""
    notes = [
        {"target_modules": ["query", "value"], "base_model_name_or_path": "/home/me/a", "lora_dropout": 0.1},
        {"target_modules": ["value", "query"], "revision": None, "peft_version": "0.18.0", "init_lora_weights": True},
    ]
    made = []
    for number, note in enumerate(notes):
        source = tiny_adapters.lora(tmp_path / f"a{number}", bert, ("query", "value"))
        file = tmp_path / f"a{number}" / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **note}))
        made.append(retrieve.snapshot(spec(bert, source), tmp_path / f"out{number}").path / "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (made[0] / name).read_bytes() == (made[1] / name).read_bytes()
    config = json.loads((made[0] / "adapter_config.json").read_text())
    assert config == {
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": 4,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": ["query", "value"],
    }


def test_the_manifest_and_inspect_tell_of_it(bert: Path, tmp_path: Path) -> None:
    source = tiny_adapters.lora(tmp_path / "sentiment", bert, LAYERS, rank=3)
    (tmp_path / "sentiment" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (tmp_path / "sentiment" / "LICENSE").write_text("Take it.")
    handler = tiny_models.handler(tmp_path / "handler")
    made = PackagingJob(spec(bert, source, handler=handler), tmp_path / "dist").package().archive
    parameters = sum(half.numel() for half in load_file(tmp_path / "sentiment" / "adapter_model.safetensors").values())
    assert made.manifest["adapter"] == "folder:sentiment"
    assert made.manifest["adapter_apart"] == {
        "layers": 8,  # of two blocks: query, value and two called output.dense
        "ranks": [3],
        "parameters": parameters,
        "licence": "apache-2.0",
    }
    assert "adapter/LICENSE" in digests(made)
    assert f"folder:sentiment, kept apart: 8 layers, rank 3, {parameters:,} parameters" in inspection.text(
        made.manifest, with_files=False
    )
    merged = PackagingJob(spec(bert, source, handler=handler, adapter_merge=True), tmp_path / "dist").package().archive
    assert "folder:sentiment, merged" in inspection.text(merged.manifest, with_files=False)
    text = inspection.adapter_text({"adapter": "hub:me/it", "adapter_revision": COMMIT})
    assert text == f"hub:me/it at {COMMIT}, merged"


def test_what_has_not_changed_is_known_and_what_has_is_not(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unchanged, "RACY_NS", -(10**12))
    source = tiny_adapters.lora(tmp_path / "a", bert, LAYERS)
    one = spec(bert, source, handler=tiny_models.handler(tmp_path / "handler"))
    first = PackagingJob(one, tmp_path / "dist").package()
    assert PackagingJob(one, tmp_path / "dist").unchanged() == first.archive
    assert not PackagingJob(one, tmp_path / "dist").package().fresh
    assert PackagingJob(one, tmp_path / "dist").check().same_bytes
    merged = spec(bert, source, handler=one.handler, adapter_merge=True)
    assert PackagingJob(merged, tmp_path / "dist").unchanged() is None
    tiny_adapters.lora(tmp_path / "a", bert, LAYERS, seed=1)
    assert PackagingJob(one, tmp_path / "dist").unchanged() is None
    with pytest.raises(ArchiveError, match=r"Different: adapter/adapter_model\.safetensors\."):
        PackagingJob(one, tmp_path / "dist").check()
    second = PackagingJob(one, tmp_path / "dist").package()
    assert second.fresh
    assert second.archive.digest != first.archive.digest


# --- what PEFT writes besides --------------------------------------------------------------------------------


def test_copies_of_the_bases_own_table_stay_out(bert: Path, tmp_path: Path) -> None:
    """PEFT saves the whole table beside an adapter of the embeddings. It is in the base already."""
    name = "embeddings.word_embeddings"
    table = load_file(bert / "model.safetensors")[f"{name}.weight"]
    extra = {f"{tiny_adapters.PREFIX}{name}.base_layer.weight": table}
    source = tiny_adapters.lora(tmp_path / "a", bert, ("word_embeddings",), extra=extra)
    apart = retrieve.snapshot(spec(bert, source), tmp_path / "apart").path
    assert len(load_file(apart / "adapter" / "adapter_model.safetensors")) == 2
    merged = retrieve.snapshot(spec(bert, source, adapter_merge=True), tmp_path / "merged").path
    assert not torch.equal(load_file(merged / "model.safetensors")[f"{name}.weight"], table)
    extra = {f"{tiny_adapters.PREFIX}{name}.base_layer.weight": table + 1}
    source = tiny_adapters.lora(tmp_path / "b", bert, ("word_embeddings",), extra=extra)
    with pytest.raises(SourceError, match="trained whole"):
        retrieve.snapshot(spec(bert, source), tmp_path / "other")


def test_a_weight_that_two_layers_share_is_changed_for_one_only_apart(gpt2: Path, tmp_path: Path) -> None:
    """GPT-2's table of words is also its last layer. Merged, an adapter of the one would change the other."""
    source = tiny_adapters.lora(tmp_path / "a", gpt2, ("wte",))
    with pytest.raises(SourceError, match=r"transformer\.wte, whose weight is another layer's too") as caught:
        retrieve.snapshot(spec(gpt2, source, task="text-generation", adapter_merge=True), tmp_path / "merged")
    assert "adapter_merge = false" in (caught.value.hint or "")
    taken = retrieve.snapshot(spec(gpt2, source, task="text-generation"), tmp_path / "apart")
    assert taken.facts["adapter_apart"]["layers"] == 1


# --- what cannot be kept apart -------------------------------------------------------------------------------


WRONG: dict[str, tuple[dict[str, torch.Tensor], dict[str, object], str, str]] = {
    "a layer trained whole": (
        {"base_model.model.pooler.dense.weight": torch.ones(8, 8)},
        {"modules_to_save": ["pooler"]},
        r"trained whole \(pooler\.dense\.weight\)",
        "leave adapter_merge out",
    ),
    "a base that was changed": ({}, {"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4'", "conversion"),
    "DoRA": ({}, {"use_dora": True}, "use_dora", "merge_and_unload"),
    "one that waits for its words": ({}, {"alora_invocation_tokens": [1]}, "alora_invocation_tokens", "PEFT"),
    "a pattern that is none": (
        {},
        {"alpha_pattern": {"(": 3}},
        r"an alpha or a rank for encoder\S+ that is not a number",
        "again",
    ),
    "an alpha that is none": ({}, {"lora_alpha": "much"}, r"not a number", "again"),
    "a layer of another kind": (
        {
            "base_model.model.encoder.layer.0.output.LayerNorm.lora_A.weight": torch.ones(2, 8),
            "base_model.model.encoder.layer.0.output.LayerNorm.lora_B.weight": torch.ones(8, 2),
        },
        {},
        r"LayerNorm has the shape \(8,\)",
        "no other",
    ),
    "ranks that differ": ({f"{QUERY}.lora_A.weight": torch.ones(3, 8)}, {}, r"has the shape \(8, 8\)", "no other"),
}


@pytest.mark.parametrize(("extra", "config", "message", "hint"), WRONG.values(), ids=WRONG.keys())
def test_adapters_that_are_refused(
    bert: Path,
    tmp_path: Path,
    extra: dict[str, torch.Tensor],
    config: dict[str, object],
    message: str,
    hint: str,
) -> None:
    source = tiny_adapters.lora(tmp_path / "a", bert, LAYERS, extra=extra, **config)
    with pytest.raises(SourceError, match=message) as caught:
        retrieve.snapshot(spec(bert, source), tmp_path / "out")
    assert hint in (caught.value.hint or "")
    assert not (tmp_path / "out").exists()


def test_layers_that_their_model_does_not_call_are_refused(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaModel

    MambaModel(MambaConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, state_size=4)).save_pretrained(
        tmp_path / "mamba"
    )
    tiny_models.wordpiece(tmp_path / "mamba")
    source = tiny_adapters.lora(tmp_path / "a", tmp_path / "mamba", ("in_proj",))
    with pytest.raises(SourceError, match=r"in_proj \(Linear\): nothing can be added") as caught:
        retrieve.snapshot(spec(tmp_path / "mamba", source), tmp_path / "out")
    assert "leave adapter_merge out" in (caught.value.hint or "")


# --- the catalogue -------------------------------------------------------------------------------------------


def load(folder: Path, *lines: str, handler: str | None = "embedding") -> ModelSpec:
    table = ["[models.a]", 'source = "folder:x"', f'handler = "{handler}"' if handler else 'task = "fill-mask"', *lines]
    (folder / "models.toml").write_text("\n".join(table))
    return reader.load(folder / "models.toml").models[0]


def test_the_catalogue_says_which(tmp_path: Path) -> None:
    tiny_models.handler(tmp_path / "mine", "def model_fn(d): return d  # with its adapter\n")
    assert not load(tmp_path, 'adapter = "folder:y"', "adapter_merge = false", handler="./mine").adapter_merge
    assert load(tmp_path, 'adapter = "folder:y"').adapter_merge
    assert not load(tmp_path, 'adapter = "folder:y"', "adapter_merge = false").adapter_merge
    assert load(tmp_path, 'adapter = "folder:y"', handler=None).adapter_merge


MISTAKES = {
    "no adapter": (["adapter_merge = false"], "embedding", 4, "Remove it"),
    "a handler without": (['adapter = "folder:y"', "adapter_merge = false"], "./mine", 3, "docs/handlers.md"),
    "a module that knows": (['adapter = "folder:y"', "adapter_merge = false"], "./theirs", 3, "docs/handlers.md"),
    "no handler": (['adapter = "folder:y"', "adapter_merge = false"], None, 5, 'handler = "embedding"'),
    "no truth": (['adapter = "folder:y"', 'adapter_merge = "no"'], "embedding", 5, "'no'"),
}


@pytest.mark.parametrize(("lines", "handler", "line", "fix"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named_with_line_and_fix(
    tmp_path: Path, lines: list[str], handler: str | None, line: int, fix: str
) -> None:
    tiny_models.handler(tmp_path / "mine")
    tiny_models.handler(tmp_path / "theirs", "import engine\ndef model_fn(d): return d\n")
    with pytest.raises(CatalogError) as caught:
        load(tmp_path, *lines, handler=handler)
    assert caught.value.message.startswith(f"{tmp_path / 'models.toml'}:{line}: ")
    assert fix in (caught.value.hint or "")
