"""Many adapters over one base in one container: the base is in memory once, and each answers as itself."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import tiny_adapters
import tiny_models
import torch
from container_process import Container, InBackground, background, processes, wait_until
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from mme.archive import untar
from mme.catalog.spec import ModelSpec, Source
from mme.packaging.job import PackagingJob
from mme.snapshot import adapters

ROOT = Path(__file__).resolve().parents[2]
BERTS, GPTS = (tuple(f"{kind}-{number}" for number in range(5)) for kind in ("bert", "gpt"))  # 0: the base alone
TEXTS = ["the house", "nobody is at home", "quiet and quiet and the house is quiet . nobody at home", "home"]
MORE = {"parameters": {"max_new_tokens": 16}}


def unpacked(names: tuple[str, ...], base: Path, root: Path, layers: tuple[str, ...]) -> dict[str, Path]:
    """The base and four adapters of it, each a model of its own, packaged and unpacked as the platform does it."""
    handler, task = ("embedding", "feature-extraction") if names == BERTS else ("generation", "text-generation")
    folders = {}
    for number, name in enumerate(names):
        adapter = None
        if number:  # one of another rank is of the family all the same
            adapter = tiny_adapters.lora(root / f"adapter-{name}", base, layers, seed=number, rank=2 + number % 2)
        spec = ModelSpec(
            name,
            Source("folder", base.name, base),
            handler=ROOT / "model_code" / handler,
            task=task,
            adapter=adapter,
            adapter_merge=False,
        )
        made = PackagingJob(spec, root / "dist").package().archive
        assert made.path
        folders[name] = root / "models" / name
        untar.extract(made.path, folders[name])
    return folders


def plain(name: str, root: Path, base: Path, kind: Any) -> Any:
    """The same model by transformers alone, with the adapter in its weights."""
    model = kind.from_pretrained(base).eval()
    if not name.endswith("-0"):
        adapters.merge(model, root / f"adapter-{name}", name)
    return model


def load_all(container: Container, folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        assert container.load(name, folder).status == 200, container.log()
    wait_until(lambda: folders.keys() <= {row["model"] for row in container.events("load")})
    rows = {row["model"]: set(row["shared"]) - {"code", "config", "handler"} for row in container.events("load")}
    assert [rows[name] for name in folders][2:] == [{"model", "tokenizer"}] * 3, (
        "made once for the family, whatever the adapters"
    )


def mappings(container: Container, folder: Path) -> dict[int, Counter[str]]:
    """What each process that has the folder's weights in memory has of them: the kernel's figures in kB, by process."""
    file = (folder / "model.safetensors").stat()
    totals: dict[int, Counter[str]] = {}
    for pid in processes(container.process.pid):
        for area in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text()):
            if area.partition("\n")[0].split()[4:5] == [str(file.st_ino)]:
                figures = re.findall(r"^(\w+): +(\d+) kB", area, re.M)
                totals.setdefault(pid, Counter()).update({key: int(number) for key, number in figures})
    return totals


def test_embeddings_of_many_adapters_over_one_base(container: Container, tmp_path: Path) -> None:
    base = tiny_models.bert(tmp_path / "base", hidden_size=128, num_hidden_layers=4, intermediate_size=512)
    folders = unpacked(BERTS, base, tmp_path, ("query", "value", "output.dense", "word_embeddings"))
    before = container.metric("mme_shared_bytes_total")
    load_all(container, folders)
    files = {name: (folder / "model.safetensors").stat() for name, folder in folders.items()}
    assert len({file.st_ino for file in files.values()}) == 1, "one file, of which each has a link"
    assert container.metric("mme_shared_bytes_total") - before == 4 * files["bert-0"].st_size
    tokenizer = AutoTokenizer.from_pretrained(base)
    expected = {}
    for name in BERTS:
        model = plain(name, tmp_path, base, AutoModel)
        for text in TEXTS:
            with torch.no_grad():
                expected[name, text] = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
    calls: list[tuple[tuple[str, str], InBackground]] = [
        ((name, text), background(container.invoke, name, json.dumps(text)))
        for _ in range(6)
        for name in BERTS
        for text in TEXTS
    ]
    for key, call in calls:
        reply = call.result()
        assert reply.status == 200, reply.body
        assert torch.allclose(torch.tensor(reply.json()["embeddings"][0]), expected[key], atol=1e-5), key
    wait_until(lambda: any(row["batch"] > 1 for row in container.events("invoke") if row["model"] == "bert-4"))
    for text in TEXTS:
        answers = torch.stack([expected[name, text] for name in BERTS])
        assert torch.cdist(answers, answers).fill_diagonal_(9).min() > 0.1, "whose answer it is can be told"
    areas = mappings(container, folders["bert-0"])
    assert len(areas) == len(BERTS)
    assert all(held["Rss"] > 0 and held["Private_Dirty"] == 0 == held["Private_Clean"] for held in areas.values())
    # Whichever folder goes, the others keep the weights.
    assert container.unload("bert-0").status == 200
    (folders["bert-0"] / "model.safetensors").unlink()
    again = container.invoke("bert-2", json.dumps(TEXTS[0])).json()["embeddings"][0]
    assert torch.allclose(torch.tensor(again), expected["bert-2", TEXTS[0]], atol=1e-5)


def test_texts_of_many_adapters_over_one_base(container: Container, tmp_path: Path) -> None:
    base = tiny_models.gpt2(tmp_path / "base")
    GPT2LMHeadModel(GPT2Config.from_pretrained(base, n_embd=128, n_layer=3)).save_pretrained(base)
    folders = unpacked(GPTS, base, tmp_path, ("c_attn", "c_proj"))
    load_all(container, folders)
    assert len({(folder / "model.safetensors").stat().st_ino for folder in folders.values()}) == 1
    tokenizer = AutoTokenizer.from_pretrained(base)
    expected = {}
    for name in GPTS:
        model = plain(name, tmp_path, base, AutoModelForCausalLM)
        for text in TEXTS:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            new = model.generate(ids, max_new_tokens=16, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
            expected[name, text] = tokenizer.decode(new, skip_special_tokens=True)
    assert len({tuple(expected[name, text] for text in TEXTS) for name in GPTS}) == len(GPTS)
    calls = [
        ((name, text), background(container.invoke, name, json.dumps({"inputs": text, **MORE})))
        for _ in range(3)
        for name in GPTS
        for text in TEXTS
    ]
    for key, call in calls:
        assert call.result().json()[0]["generated_text"] == expected[key], key
