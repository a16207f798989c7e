"""Models of one family share what they have in common, and still each answers with its own weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from container_process import Container, wait_until
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

Make = Callable[..., Path]

WORDS = ["[PAD]", "[UNK]", "one", "two", "three", "four", "five"]

EMBED = """
    import torch
    from transformers import AutoModel, AutoTokenizer
    def model_fn(d):
        return AutoTokenizer.from_pretrained(d), AutoModel.from_pretrained(d, DTYPE).eval()
    def predict_fn(data, model):
        tokenizer, net = model
        with torch.no_grad():
            hidden = net(**tokenizer(data, return_tensors="pt")).last_hidden_state
        return [hidden.float().mean(1)[0], net.name_or_path, tokenizer.name_or_path]
"""


def save_bert(folder: Path, seed: int, words: list[str] = WORDS, **config: Any) -> None:
    torch.manual_seed(seed)
    small = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(**small, intermediate_size=64, **config)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)


def expected(folder: Path, text: str, **options: Any) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    net = AutoModel.from_pretrained(str(folder), **options).eval()
    with torch.no_grad():
        return net(**tokenizer(text, return_tensors="pt")).last_hidden_state.float().mean(1)[0].tolist()


def load_family(container: Container, folders: dict[str, Path]) -> list[int]:
    """Load one after the other; how many of its two parts each found finished."""
    shared = []
    for name, folder in folders.items():
        assert container.load(name, folder).status == 200, container.log()
        wait_until(lambda name=name: [row for row in container.events("load") if row["model"] == name])
        kinds = [row for row in container.events("load") if row["model"] == name][-1]["shared"]
        shared.append(len([kind for kind in kinds if kind != "code"]))
    return shared


@pytest.mark.usefixtures("forked")
def test_a_family_is_made_once_and_each_keeps_its_weights(start: Callable[..., Container], handler: Make) -> None:
    container = start(MME_PRELOAD="torch,transformers")
    folders = {}
    for number in range(4):
        folders[f"m{number}"] = handler(f"m{number}", EMBED.replace("DTYPE", "dtype=torch.float32"))
        save_bert(folders[f"m{number}"], seed=number)
    assert load_family(container, folders) == [0, 2, 2, 2]
    for name, folder in folders.items():
        vector, model_path, tokenizer_path = container.invoke(name, '"three one two"').json()
        assert vector == pytest.approx(expected(folder, "three one two"), abs=1e-6)
        assert (model_path, tokenizer_path) == (str(folder), str(folder))
    thin, fat = (container.metric(f'mme_model_private_bytes{{model="{name}"}}') for name in ("m1", "m0"))
    assert thin < fat
    # What nobody has any more is let go of, and a new family begins anew.
    for name in folders:
        container.unload(name)
    assert load_family(container, folders) == [0, 2, 2, 2]


@pytest.mark.usefixtures("forked")
def test_a_second_that_does_otherwise_than_its_files_let_expect(start: Callable[..., Container], handler: Make) -> None:
    """Its handler takes the structure for itself with other options, or nothing at all, or does not even load."""
    container = start(MME_PRELOAD="torch,transformers")
    plain = EMBED.replace("DTYPE", "dtype=torch.float32")
    half = EMBED.replace("DTYPE", "dtype=torch.bfloat16")
    sources = {"first": plain, "half": half, "fails": "raise RuntimeError('no')", "plain": plain}
    folders = {name: handler(name, source) for name, source in sources.items()}
    for number, folder in enumerate(folders.values()):
        save_bert(folder, seed=number)
    assert container.load("fails", folders.pop("fails")).status == 500
    assert load_family(container, folders) == [0, 1, 2]
    for name, folder in folders.items():
        options = {"dtype": torch.bfloat16} if name == "half" else {}
        vector = container.invoke(name, '"one five"').json()[0]
        assert vector == pytest.approx(expected(folder, "one five", **options), abs=1e-6), name
    for name in folders:
        assert container.unload(name).status == 200
    assert container.load("plain", folders["plain"]).status == 200
    container.wait_for_log('"event": "load", "model": "plain".*"shared": \\[\\]')


@pytest.mark.usefixtures("forked")
def test_what_differs_is_not_shared(start: Callable[..., Container], handler: Make) -> None:
    """Other configuration, other words, other type of numbers: each makes another result, and gets it."""
    container = start(MME_PRELOAD="torch,transformers")
    plain = EMBED.replace("DTYPE", "dtype=torch.float32")
    folders = {name: handler(name, plain) for name in ("a", "b", "layers", "words", "labels")}
    folders["half"] = handler("half", EMBED.replace("DTYPE", "dtype=torch.bfloat16"))
    save_bert(folders["a"], 1)
    save_bert(folders["b"], 2)
    save_bert(folders["layers"], 3, layer_norm_eps=0.5)
    save_bert(folders["words"], 4, words=[*reversed(WORDS)])
    save_bert(folders["labels"], 5, id2label={0: "good", 1: "bad"})
    save_bert(folders["half"], 6)
    # Another configuration shares nothing; other words share the structure; other labels and another type of numbers
    # share the tokenizer.
    assert load_family(container, folders) == [0, 2, 0, 1, 1, 1]
    for name, folder in folders.items():
        options = {"dtype": torch.bfloat16} if name == "half" else {}
        vector = container.invoke(name, '"one five"').json()[0]
        assert vector == pytest.approx(expected(folder, "one five", **options), abs=1e-6), name


@pytest.mark.usefixtures("forked")
def test_converted_weights_are_never_shared(start: Callable[..., Container], handler: Make) -> None:
    """In bfloat16 from a float32 file no parameter lies in the file as it is; every model converts its own."""
    container = start(MME_PRELOAD="torch,transformers")
    folders = {}
    for number in range(3):
        folders[f"m{number}"] = handler(f"m{number}", EMBED.replace("DTYPE", "dtype=torch.bfloat16"))
        save_bert(folders[f"m{number}"], seed=number)
    assert load_family(container, folders) == [0, 1, 1]
    assert "not a piece of the weights" in container.wait_for_log('"event": "not shared".*')[0]
    for name, folder in folders.items():
        vector = container.invoke(name, '"two"').json()[0]
        assert vector == pytest.approx(expected(folder, "two", dtype=torch.bfloat16), abs=1e-6)


@pytest.mark.usefixtures("forked")
def test_tied_weights_stay_tied(start: Callable[..., Container], handler: Make) -> None:
    source = """
        import torch
        from transformers import AutoModelForCausalLM
        def model_fn(d):
            return AutoModelForCausalLM.from_pretrained(d).eval()
        def predict_fn(data, model):
            tied = model.lm_head.weight is model.transformer.wte.weight
            with torch.no_grad():
                return [tied, model.generate(torch.tensor([data]), max_new_tokens=8, do_sample=False)[0]]
    """
    container = start(MME_PRELOAD="torch,transformers")
    folders = {}
    for number in range(3):
        folder = folders[f"m{number}"] = handler(f"m{number}", source)
        torch.manual_seed(number)
        small = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 50}
        GPT2LMHeadModel(GPT2Config(**small, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    assert load_family(container, folders) == [0, 1, 1]
    answers = [container.invoke(name, "[5, 6, 7]").json() for name in folders]
    assert [tied for tied, _ in answers] == [True] * 3
    for folder, (_, tokens) in zip(folders.values(), answers, strict=True):
        net = GPT2LMHeadModel.from_pretrained(str(folder)).eval()
        assert net.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8, do_sample=False)[0].tolist() == tokens


@pytest.mark.usefixtures("forked")
def test_a_handler_that_loads_the_same_twice_gets_two(start: Callable[..., Container], handler: Make) -> None:
    source = """
        from transformers import AutoModel
        def model_fn(d):
            return AutoModel.from_pretrained(d), AutoModel.from_pretrained(d)
        def predict_fn(data, model):
            one, two = (next(net.parameters()) for net in model)
            one.data = one.data + 1
            return [one is two, float((one - two).min())]
    """
    container = start(MME_PRELOAD="torch,transformers")
    folders = {}
    for number in range(3):
        folders[f"m{number}"] = handler(f"m{number}", source)
        save_bert(folders[f"m{number}"], seed=number)
    assert load_family(container, folders) == [0, 1, 1]
    for name in folders:
        assert json.loads(container.invoke(name).body) == [False, pytest.approx(1.0)]


def test_code_is_compiled_once_and_tracebacks_name_the_right_file(
    start: Callable[..., Container], handler: Make
) -> None:
    source = """
        from helper import fail
        def model_fn(d): return __file__
        def predict_fn(data, model):
            if data: fail(data)
            return model
    """
    container = start()
    folders = {}
    for name in ("a", "b", "c"):
        folders[name] = handler(name, source, code__helper_dot_py="def fail(data): raise KeyError(data)")
        assert container.load(name, folders[name]).status == 200
    last = wait_until(lambda: [row for row in container.events("load") if row["model"] == "c"])[-1]
    assert last["shared"] == ["code", "code"]
    for name, folder in folders.items():
        assert container.invoke(name, "0").json() == str(folder / "code" / "inference.py")
        assert container.invoke(name, '"x"').status == 500
        container.wait_for_log(re.escape(f'"{folder}/code/helper.py", line 1, in fail'))
