"""Folders of sentence-transformers: vectors of texts, in both forms that its versions write, and scores of pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rows import Row
from rows_texts import BERT, POSITIONS, ROBERTA, T5, TEXTS
from small import maker, seed, word_tokenizer

LONG = "the old garden gate stands open in the wind, and the rain falls on the house, " * 3
PROMPTS = {"query": "where is the ", "passage": "about : "}
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
Modules = Callable[[], list[Any]]


def bert(folder: Path) -> None:
    maker("BertModel", "BertConfig", lambda: [word_tokenizer()], **BERT, **POSITIONS)(folder)


def roberta(folder: Path) -> None:
    maker("RobertaModel", "RobertaConfig", lambda: [word_tokenizer(pairs=False)], **ROBERTA)(folder)


def t5(folder: Path) -> None:
    maker("T5EncoderModel", "T5Config", lambda: [word_tokenizer(pairs=False)], **T5)(folder)


def sentences(plain: Callable[[Path], None], modules: Modules, old: bool = False, **options: Any) -> Any:
    """A function that saves a model of these modules after ``plain``: as sentence-transformers does today or, where
    ``old``, as its versions until 5 did."""

    def build(folder: Path) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Transformer

        transformer = folder.with_name(folder.name + "-plain")
        plain(transformer)
        seed()
        after = modules()
        SentenceTransformer(modules=[Transformer(str(transformer), max_seq_length=24), *after], **options).save(
            str(folder)
        )
        if old:
            as_before(folder)

    return build


def as_before(folder: Path) -> None:
    """The files of a folder as versions until 5 wrote them: a flag for each way of pooling, types of the old module."""
    listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    for item in listed:
        kind = item["type"].rpartition(".")[2]
        item["type"] = f"sentence_transformers.models.{kind}"
        if kind == "Pooling":
            config = folder / item["path"] / "config.json"
            new = json.loads(config.read_text(encoding="utf-8"))
            modes = [new["pooling_mode"]] if isinstance(new["pooling_mode"], str) else new["pooling_mode"]
            names = {
                "cls": "cls_token",
                "max": "max_tokens",
                "mean": "mean_tokens",
                "weightedmean": "weightedmean_tokens",
            }
            written: dict[str, Any] = {f"pooling_mode_{names.get(mode, mode)}": mode in modes for mode in MODES}
            written |= {"word_embedding_dimension": new["embedding_dimension"], "include_prompt": new["include_prompt"]}
            config.write_text(json.dumps(written), encoding="utf-8")
    (folder / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 24, "do_lower_case": False}), encoding="utf-8"
    )


def vectors(folder: Path, requests: list[dict[str, Any]]) -> list[Any]:
    """``SentenceTransformer.encode``, each text alone."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    answers = []
    for request in requests:
        texts = request["inputs"] if isinstance(request["inputs"], list) else [request["inputs"]]
        named = {name: request[name] for name in ("prompt", "prompt_name") if name in request}
        answers.append([model.encode([text], **named)[0].tolist() for text in texts])
    return answers


def scores(folder: Path, requests: list[dict[str, Any]]) -> list[Any]:
    """``CrossEncoder.predict`` and ``rank``, each pair alone."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu")
    answers: list[Any] = []
    for request in requests:
        if "inputs" in request:
            answers.append({"scores": [model.predict([tuple(pair)])[0].tolist() for pair in request["inputs"]]})
            continue
        each = [float(model.predict([(request["query"], text)])[0]) for text in request["documents"]]
        order = sorted(range(len(each)), key=lambda place: -each[place])[: request.get("top_k")]
        answers.append({"results": [{"index": place, "score": each[place]} for place in order]})
    return answers


def cross(kind: str, labels: int, activation: str | None = None) -> Callable[[Path], None]:
    """A function that saves a cross-encoder, as sentence-transformers does today."""

    def build(folder: Path) -> None:
        import torch
        from sentence_transformers import CrossEncoder

        pairs = kind == "Bert"
        values = {**BERT, **POSITIONS} if pairs else ROBERTA
        plain = folder.with_name(folder.name + "-plain")
        maker(
            f"{kind}ForSequenceClassification",
            f"{kind}Config",
            lambda: [word_tokenizer(pairs=pairs)],
            **values,
            num_labels=labels,
        )(plain)
        more = {"activation_fn": getattr(torch.nn, activation)()} if activation else {}
        CrossEncoder(str(plain), max_length=40, **more).save(str(folder))

    return build


def pooling(size: int, *modes: str, **more: Any) -> Any:
    from sentence_transformers.sentence_transformer.modules import Pooling

    return Pooling(size, modes[0] if len(modes) == 1 else modes, **more)


def dense(size: int, out: int, activation: str = "Tanh") -> Any:
    import torch
    from sentence_transformers.sentence_transformer.modules import Dense

    return Dense(size, out, activation_function=getattr(torch.nn, activation)())


def normalize() -> Any:
    from sentence_transformers.sentence_transformer.modules import Normalize

    return Normalize()


ASKED: list[dict[str, Any]] = [*({"inputs": text} for text in (*TEXTS, LONG)), {"inputs": [*TEXTS, LONG]}]
PROMPTED = [*ASKED, {"inputs": list(TEXTS), "prompt_name": "passage"}, {"inputs": LONG, "prompt": "who : "}]
RANKED = {"query": TEXTS[0], "documents": [*TEXTS[1:], LONG, "home"]}
PAIRS = {"inputs": [[TEXTS[0], TEXTS[1]], [TEXTS[2], LONG], ["home", "house"]]}
TOGETHER = "requests share a pass"


def embedding(name: str, build: Callable[[Path], None], asked: list[dict[str, Any]] = ASKED, **more: Any) -> Row:
    return Row(
        name,
        "feature-extraction",
        build,
        asked,
        vectors,
        handler="embedding",
        project=lambda answer: answer["embeddings"],
        **{"batching": TOGETHER, "quantize": True, **more},
    )


def ranking(name: str, build: Callable[[Path], None], asked: list[dict[str, Any]], **more: Any) -> Row:
    def without_counts(answer: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in answer.items() if key in ("results", "scores")}

    return Row(
        *(name, "text-ranking", build, asked, scores),
        handler="reranking",
        project=without_counts,
        **{"batching": TOGETHER, **more},
    )


ROWS = [
    embedding(
        "BERT (sentence-transformers 6: prompts)",
        sentences(
            bert, lambda: [pooling(16, "mean"), dense(16, 8), normalize()], prompts=PROMPTS, default_prompt_name="query"
        ),
        PROMPTED,
        everywhere=True,
    ),
    embedding(
        "BERT (sentence-transformers 5: six poolings)",
        sentences(bert, lambda: [pooling(16, *MODES), dense(96, 8, "GELU")], old=True),
        everywhere=True,
    ),
    embedding(
        "BERT (sentence-transformers 5: prompts)",
        sentences(bert, lambda: [pooling(16, "weightedmean", include_prompt=False)], old=True, prompts=PROMPTS),
        PROMPTED,
    ),
    embedding(
        "BERT (sentence-transformers 6: two poolings)", sentences(bert, lambda: [pooling(16, "max", "lasttoken")])
    ),
    embedding(
        "RoBERTa (sentence-transformers 5)",
        sentences(roberta, lambda: [pooling(16, "cls"), normalize()], old=True),
    ),
    embedding(
        "T5 (sentence-transformers 6: Dense)",
        sentences(t5, lambda: [pooling(16, "mean"), dense(16, 24, "Identity"), dense(24, 8, "ReLU"), normalize()]),
    ),
    ranking(
        "BERT (cross-encoder: one label)", cross("Bert", 1), [RANKED, {**RANKED, "top_k": 2}, PAIRS], everywhere=True
    ),
    ranking("BERT (cross-encoder: three labels)", cross("Bert", 3), [PAIRS]),
    ranking("RoBERTa (cross-encoder: scores as they are)", cross("Roberta", 1, "Identity"), [RANKED, PAIRS]),
]
