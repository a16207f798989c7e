"""Tasks for which transformers 5 has no pipeline any more, or one that only reads paths and URLs: computed with the
model classes, with the answers of transformers 4's pipelines."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

MASKED = -10000.0  # the logit of a token that cannot be in the answer


@dataclass(frozen=True)
class Parts:
    """A loaded model with its tokenizer and processors."""

    task: str  # as the catalogue writes it, such as translation_en_to_de
    model: Any
    tokenizer: Any = None
    image_processor: Any = None
    feature_extractor: Any = None
    processor: Any = None


def positions(model: Any, decoder: bool = False) -> int | None:
    """How many tokens the table of positions has a row for, of what reads a text, or of the ``decoder`` that writes
    one; None for a model without one."""
    rows_of = []
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last not in ("position_embeddings", "embed_positions", "position_embedding", "wpe"):
            continue
        if not isinstance(module, torch.nn.Embedding) or "vision" in name or ("decoder" in name) != decoder:
            continue
        rows = module.num_embeddings
        if "Sinusoidal" not in type(module).__name__:
            if hasattr(module, "offset"):
                rows -= module.offset
            elif module.padding_idx is not None:  # positions are numbered from there on
                rows -= module.padding_idx + 1
        rows_of.append(rows)
    return min(rows_of, default=None)


# --- Writing -------------------------------------------------------------------------------------------------------


class Full(transformers.StoppingCriteria):  # type: ignore[misc]
    """Ends a text where the model's table of positions ends. (Of the library's own MaxLengthCriteria, one given here
    would take the place of that which `generate` makes of max_new_tokens.)"""

    def __init__(self, most: int) -> None:
        self.most = most

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        count, length = input_ids.shape
        return torch.full((count,), length > self.most, dtype=torch.bool, device=input_ids.device)


class Writer:
    """The model's own settings for `generate`, completed as the pipelines of transformers do it."""

    def __init__(self, parts: Parts, beams: int | None = None) -> None:
        """`beams`: the number of beams for models whose configuration does not give one."""
        self.model = parts.model
        self.most = positions(parts.model, decoder=True)
        self.prefix = getattr(parts.model.config, "prefix", None) or ""
        config = copy.deepcopy(parts.model.generation_config)
        if config.max_new_tokens is None and config.max_length in (None, 20):  # 20: until transformers 5, not set
            config.max_new_tokens = 256
        if beams is not None and config.num_beams in (None, 1):
            config.num_beams = beams
        special = _special(parts)
        if special:
            special = dict(special)
            self.prefix = special.pop("prefix", self.prefix) or ""
            config.update(**special)
            if "max_length" in special and "max_new_tokens" not in special:
                config.max_new_tokens = None
        if not isinstance(self.prefix, str):
            raise ValueError(f"config.json: prefix must be a text, not {self.prefix!r}.")
        if config.pad_token_id is None and getattr(parts.tokenizer, "pad_token_id", None) is not None:
            config.pad_token_id = parts.tokenizer.pad_token_id
        self.config = config

    def write(self, inputs: dict[str, Any], asked: dict[str, Any], first: Any = None) -> torch.Tensor:
        """Token ids, of shape (sequences, tokens). A length that a request asks for takes the place of the model's."""
        config = copy.deepcopy(self.config)
        if "max_length" in asked and "max_new_tokens" not in asked:
            config.max_new_tokens = None
        options = {key: value for key, value in asked.items() if key != "seed"}
        beams = options.get("num_beams") or config.num_beams or 1
        if not options.get("do_sample", config.do_sample) and options.get("num_return_sequences", 1) > beams:
            raise ValueError("parameters.num_return_sequences: set do_sample to true, or num_beams to as many.")
        arguments = () if first is None else (first,)
        if self.most is not None:  # a text ends with the decoder's table of positions, where `generate` would fail
            options["stopping_criteria"] = transformers.StoppingCriteriaList([Full(self.most)])
        with seeded(asked.get("seed"), self.model.device):
            tokens: torch.Tensor = self.model.generate(*arguments, **inputs, generation_config=config, **options)
        return tokens


def _special(parts: Parts) -> dict[str, Any] | None:
    """The model's settings for the task. A translation that names no languages is the first that the model has
    settings for."""
    known = getattr(parts.model.config, "task_specific_params", None) or {}
    if not isinstance(known, dict) or not all(isinstance(settings, dict) for settings in known.values()):
        raise ValueError("config.json: task_specific_params must be an object with an object for each task.")
    task = parts.task
    if task == "translation":
        task = next((name for name in known if name.startswith(task)), task)
    settings: dict[str, Any] | None = known.get(task)
    return settings


def seeded(seed: int | None, device: torch.device) -> Any:
    """A block in which random numbers follow from the seed; the generator's state is restored afterwards."""
    devices = [device] if device.type == "cuda" else []
    block = torch.random.fork_rng(devices, enabled=seed is not None)
    return _Seeded(block, seed)


class _Seeded:
    def __init__(self, block: Any, seed: int | None) -> None:
        self.block, self.seed = block, seed

    def __enter__(self) -> None:
        self.block.__enter__()
        if self.seed is not None:
            torch.manual_seed(self.seed)

    def __exit__(self, *error: Any) -> None:
        self.block.__exit__(*error)


def seq2seq(parts: Parts, answer: str) -> Callable[..., Any]:
    """summarization, translation, text2text-generation: a text in, a text out, under the name `answer`."""
    writer = Writer(parts, beams=4)
    tokenizer, device = parts.tokenizer, parts.model.device
    languages = parts.task.split("_") if parts.task.startswith("translation_") else []

    def encode(text: str, truncation: bool, source: str | None, target: str | None) -> dict[str, Any]:
        build = getattr(tokenizer, "_build_translation_inputs", None)
        if parts.task.startswith("translation") and build is not None:
            source, target = source or _default(tokenizer, "src_lang"), target or _default(tokenizer, "tgt_lang")
            known = getattr(tokenizer, "lang_code_to_id", None) or {}
            for name, language in (("src_lang", source), ("tgt_lang", target)):
                if not language:
                    raise ValueError(f"This model needs parameters.{name}: the language that it translates.")
                if known and language not in known:
                    raise ValueError(f"parameters.{name}: this model does not know {language!r}.")
            encoded = build(text, return_tensors="pt", truncation=truncation, src_lang=source, tgt_lang=target)
        else:
            if source or target:
                raise ValueError("This model translates one pair of languages: it has no src_lang and tgt_lang.")
            encoded = tokenizer(writer.prefix + text, return_tensors="pt", truncation=truncation)
        return {key: _to(value, device) for key, value in encoded.items() if key != "token_type_ids"}

    def one(text: str, options: dict[str, Any]) -> list[dict[str, Any]]:
        options = dict(options)
        clean = options.pop("clean_up_tokenization_spaces", False)
        source, target = options.pop("src_lang", None), options.pop("tgt_lang", None)
        if (
            len(languages) == 4
            and source is None
            and target is None
            and hasattr(tokenizer, "_build_translation_inputs")
        ):
            source, target = languages[1], languages[3]
        inputs = encode(text, options.pop("truncation", False), source, target)
        rows = writer.write(inputs, options)
        return [
            {answer: tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=clean)}
            for row in rows
        ]

    def call(inputs: Any, **options: Any) -> Any:
        if isinstance(inputs, str):
            return one(inputs, options)
        results = [one(text, options) for text in inputs]
        return [answers[0] for answers in results] if all(len(answers) == 1 for answers in results) else results

    return call


def _default(tokenizer: Any, name: str) -> str | None:
    value = getattr(tokenizer, name, None)
    return value if isinstance(value, str) else None


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if hasattr(value, "to") else value


class Features:
    """A tokenizer in the place of a processor: the text-to-audio pipeline of transformers 5.17 wants the numbers of
    what it calls in the model's format, which what a tokenizer answers cannot be asked for."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, *texts: Any, **options: Any) -> Any:
        return transformers.BatchFeature(dict(self.tokenizer(*texts, **options)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


# --- Answering from a text -----------------------------------------------------------------------------------------


def question_answering(parts: Parts) -> Callable[..., Any]:
    """{"question", "context"} -> {"score", "start", "end", "answer"}: the span of the context whose first token times
    last token is likeliest. A long context is read in overlapping pieces, and the best span of all wins."""
    tokenizer, model = parts.tokenizer, parts.model
    if not tokenizer.is_fast:
        raise ValueError("question-answering needs a fast tokenizer (tokenizer.json): it tells where each token lies.")
    takes = frozenset(inspect.signature(model.forward).parameters)

    def one(item: dict[str, str], top_k: int = 1, **options: Any) -> Any:
        answers: list[dict[str, Any]] = []
        impossible = options.pop("handle_impossible_answer", False)
        longest = options.pop("max_answer_len", 15)
        align = options.pop("align_to_words", True)
        null_score = 1.0
        for piece in _pieces(tokenizer, item, **options):
            inputs = {key: value.to(model.device) for key, value in piece.inputs.items() if key in takes}
            if "use_cache" in takes:
                inputs["use_cache"] = False
            with torch.inference_mode():
                output = model(**inputs)
            start, end = _chances(output, piece.allowed, top=hasattr(output, "start_top_index"))
            if impossible:
                null_score = min(null_score, float(start[0] * end[0]))
            start[0] = end[0] = 0.0
            for first, last, score in _spans(start, end, piece.allowed, top_k * 2 + 10 if align else top_k, longest):
                begin, stop = _characters(piece.encoding, first, last, piece.sequence, align)
                text = item["context"][begin:stop]
                same = next((answer for answer in answers if answer["answer"].lower() == text.lower()), None)
                if same is not None:
                    same["score"] += score
                else:
                    answers.append({"score": score, "start": begin, "end": stop, "answer": text})
        if impossible:
            answers.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
        best = sorted(answers, key=lambda answer: answer["score"], reverse=True)[:top_k]
        return best[0] if len(best) == 1 else best

    def call(inputs: Any, **options: Any) -> Any:
        if isinstance(inputs, dict):
            return one(inputs, **options)
        results = [one(item, **options) for item in inputs]
        return results[0] if len(results) == 1 else results

    return call


@dataclass(frozen=True)
class Piece:
    """A part of the context with the question. ``allowed``: 1 for each token that may be in the answer."""

    inputs: dict[str, torch.Tensor]
    allowed: np.ndarray
    encoding: Any
    sequence: int  # which of the two texts is the context


def _pieces(
    tokenizer: Any,
    item: dict[str, str],
    max_seq_len: int | None = None,
    doc_stride: int | None = None,
    max_question_len: int | None = None,
) -> list[Piece]:
    most = max_seq_len or min(tokenizer.model_max_length, 384)
    if most > tokenizer.model_max_length:
        raise ValueError(f"parameters.max_seq_len is {most}; the model reads {tokenizer.model_max_length} tokens.")
    stride = doc_stride or min(most // 2, 128)
    first = tokenizer.padding_side == "right"  # the question stands first
    question = item["question"]
    tokens = len(tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"])
    special = tokenizer.num_special_tokens_to_add(pair=True)
    if most - tokens - special <= stride:
        # The next piece of the context would begin where this one does.
        room = most - tokens - special - 1
        if room < 1:
            raise ValueError(f"question has {tokens} tokens; with {most} in all, no room is left for the context.")
        if doc_stride is not None:
            raise ValueError(f"parameters.doc_stride is {stride}; beside this question it may be at most {room}.")
        stride = max(0, room // 2)
    texts = (question, item["context"]) if first else (item["context"], question)
    encoded = tokenizer(
        *texts,
        truncation="only_second" if first else "only_first",
        max_length=most,
        stride=stride,
        return_token_type_ids=True,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = [name for name in tokenizer.model_input_names if name in encoded]
    sequence = 1 if first else 0
    pieces = []
    for number, ids in enumerate(encoded["input_ids"]):
        allowed = np.array([int(owner == sequence) for owner in encoded.sequence_ids(number)])
        if tokenizer.cls_token_id is not None:  # some models point there for "no answer"
            allowed[np.array(ids) == tokenizer.cls_token_id] = 1
        inputs = {name: torch.tensor([encoded[name][number]]) for name in names}
        pieces.append(Piece(inputs, allowed, encoded.encodings[number], sequence))
    return pieces


def _chances(output: Any, allowed: np.ndarray, top: bool) -> tuple[np.ndarray, np.ndarray]:
    """For each token the probability that the answer starts there, and that it ends there."""
    if top and not hasattr(output, "start_logits"):
        raise ValueError("This model answers with its own search for spans (XLNet, XLM), which is not computed here.")
    chances = []
    for logits in (output.start_logits, output.end_logits):
        values = np.where(allowed == 0, MASKED, logits[0].float().cpu().numpy())
        exponents = np.exp(values - values.max())
        chances.append(exponents / exponents.sum())
    return chances[0], chances[1]


def _spans(
    start: np.ndarray, end: np.ndarray, allowed: np.ndarray, count: int, longest: int
) -> list[tuple[int, int, float]]:
    """The likeliest spans, at most `count` before those are left out that touch a token that is not allowed."""
    chances = np.tril(np.triu(np.outer(start, end)), longest - 1)
    flat = chances.flatten()
    if count == 1:
        order = np.array([flat.argmax()])
    elif len(flat) < count:
        order = np.argsort(-flat)
    else:
        order = np.argpartition(-flat, count)[:count] if count < len(flat) else np.arange(len(flat))
        order = order[np.argsort(-flat[order])]
    spans = []
    for place in order:
        first, last = divmod(int(place), len(end))
        if allowed[first] and allowed[last]:
            spans.append((first, last, float(chances[first, last])))
    return spans


def _characters(encoding: Any, first: int, last: int, sequence: int, align: bool) -> tuple[int, int]:
    """Where in the context the span lies; to whole words where the tokenizer knows them."""
    if align:
        words = encoding.token_to_word(first), encoding.token_to_word(last)
        if None not in words:
            begin = encoding.word_to_chars(words[0], sequence)
            end = encoding.word_to_chars(words[1], sequence)
            if begin is not None and end is not None:
                return begin[0], end[1]
    return encoding.offsets[first][0], encoding.offsets[last][1]


# --- Images --------------------------------------------------------------------------------------------------------


def each(function: Callable[..., Any]) -> Callable[..., Any]:
    """For one input, its answer; for a list, a list of answers."""

    def call(inputs: Any, **options: Any) -> Any:
        return (
            [function(item, **options) for item in inputs] if isinstance(inputs, list) else function(inputs, **options)
        )

    return call


def image_to_text(parts: Parts) -> Callable[..., Any]:
    writer = Writer(parts)
    model, tokenizer, processor = parts.model, parts.tokenizer, parts.image_processor

    def one(image: Any, prompt: str | None = None, **options: Any) -> list[dict[str, Any]]:
        kind = model.config.model_type
        if prompt is not None and kind == "vision-encoder-decoder":
            raise ValueError("parameters.prompt: this model describes images without one.")
        header = {"header_text": prompt} if prompt is not None and kind == "pix2struct" else {}
        inputs = dict(processor(images=image, return_tensors="pt", **header))
        if prompt is not None and kind == "git":
            ids = [tokenizer.cls_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
            inputs["input_ids"] = torch.tensor([ids])
        elif prompt is not None and kind != "pix2struct":
            text = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
            inputs |= dict(text)
        inputs = {key: value.to(model.device) for key, value in inputs.items() if hasattr(value, "to")}
        first = inputs.pop(model.main_input_name, None)
        rows = writer.write(inputs, writing(options), first)
        return [{"generated_text": tokenizer.decode(row, skip_special_tokens=True)} for row in rows]

    return each(one)


def writing(options: dict[str, Any]) -> dict[str, Any]:
    """max_new_tokens and generate_kwargs as one. Raises ValueError where they contradict each other."""
    inner = dict(options.get("generate_kwargs") or {})
    if "max_new_tokens" in options:
        if "max_new_tokens" in inner:
            raise ValueError("parameters.max_new_tokens is also in generate_kwargs: give it once.")
        inner["max_new_tokens"] = options["max_new_tokens"]
    return inner


def visual_question_answering(parts: Parts) -> Callable[..., Any]:
    model, tokenizer, processor = parts.model, parts.tokenizer, parts.image_processor
    generates = model.can_generate()
    writer = Writer(parts) if generates else None

    def one(item: dict[str, Any], top_k: int = 5, **options: Any) -> list[dict[str, Any]]:
        inputs = dict(tokenizer(item["question"], return_tensors="pt"))
        inputs |= dict(processor(images=item["image"], return_tensors="pt"))
        inputs = {key: value.to(model.device) for key, value in inputs.items()}
        if writer is not None:
            rows = writer.write(inputs, writing(options))
            return [{"answer": tokenizer.decode(row, skip_special_tokens=True).strip()} for row in rows]
        if options:
            raise ValueError(f"parameters.{next(iter(options))}: this model chooses among labels, it writes nothing.")
        with torch.inference_mode():
            chances = model(**inputs).logits.sigmoid()[0]
        scores, ids = chances.topk(min(top_k, model.config.num_labels))
        labels = model.config.id2label
        return [
            {"score": score, "answer": labels[number]}
            for score, number in zip(scores.tolist(), ids.tolist(), strict=True)
        ]

    return each(one)


def image_to_image(parts: Parts) -> Callable[..., Any]:
    def one(image: Any) -> Any:
        from PIL import Image

        inputs = parts.image_processor(images=[image], return_tensors="pt").to(parts.model.device)
        with torch.inference_mode():
            reconstruction = parts.model(**inputs).reconstruction[0]
        pixels = reconstruction.float().cpu().clamp(0, 1).movedim(0, -1).numpy()
        return Image.fromarray((pixels * 255.0).round().astype(np.uint8))

    return each(one)


def video_classification(parts: Parts) -> Callable[..., Any]:
    model = parts.model

    def one(frames: Any, top_k: int = 5, function_to_apply: str = "softmax") -> list[dict[str, Any]]:
        inputs = parts.image_processor(list(frames), return_tensors="pt").to(model.device)
        with torch.inference_mode():
            logits = model(**inputs).logits[0].float()
        if function_to_apply == "softmax":
            logits = logits.softmax(-1)
        elif function_to_apply == "sigmoid":
            logits = logits.sigmoid()
        scores, ids = logits.topk(min(top_k, model.config.num_labels))
        return [
            {"score": score, "label": model.config.id2label[number]}
            for score, number in zip(scores.tolist(), ids.tolist(), strict=True)
        ]

    return each(one)


OWN: dict[str, Callable[[Parts], Callable[..., Any]]] = {
    "question-answering": question_answering,
    "summarization": lambda parts: seq2seq(parts, "summary_text"),
    "translation": lambda parts: seq2seq(parts, "translation_text"),
    "text2text-generation": lambda parts: seq2seq(parts, "generated_text"),
    "image-to-text": image_to_text,
    "visual-question-answering": visual_question_answering,
    "image-to-image": image_to_image,
    "video-classification": video_classification,
}
