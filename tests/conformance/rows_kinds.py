"""Kinds of models, and forms in which their folders come, that are easily read as something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reference
from rows import Row
from rows_media import HEARD, SEEN, VIT, looks, pixels
from rows_media import LABELS as SEEN_LABELS
from rows_texts import BART, BERT, LABELS, POSITIONS, ROBERTA, SEQ2SEQ, T5, TEXTS, asked, row, words
from small import BYTES, WORDS, byte_tokenizer, lively, maker, saved, seed, word_tokenizer

CLASSIFIER = {**BERT, **POSITIONS, **LABELS}
LLAMA = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LLAMA |= {"num_key_value_heads": 1, "max_position_embeddings": 64, "vocab_size": len(WORDS), "pad_token_id": 0}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": len(WORDS)}
CODES = ("eng_Latn", "deu_Latn", "fra_Latn")
PROPHET = {"hidden_size": 16, "num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 2}
PROPHET |= {"num_decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "ngram": 2, **POSITIONS}
PROPHET |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
BY_BYTES = {**T5, "vocab_size": 384, "eos_token_id": 1}
ENDS = [*range(40, 60)]
Build = Callable[[Path], None]


def classifier(**values: Any) -> Build:
    return maker("BertForSequenceClassification", "BertConfig", words(), **{**CLASSIFIER, **values})


def then(build: Build, change: Build) -> Build:
    def both(folder: Path) -> None:
        build(folder)
        change(folder)

    return both


def in_pieces(folder: Path) -> None:
    """The weights in several files with an index, as those of a large model."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 2


def in_bfloat16(folder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)


def with_more(folder: Path) -> None:
    """Tensors of a head that the class does not have, as training leaves them."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors |= {"cls.predictions.bias": torch.ones(9), "bert.embeddings.position_ids": torch.arange(64)[None]}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def bare_tokenizer(folder: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)


def without_tied(folder: Path) -> None:
    """Only one of the names under which tied weights are known, which is the other than save_pretrained keeps."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("shared.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def nllb(folder: Path) -> None:
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    letters = sorted({letter for word in WORDS for letter in word.lower()} | {"▁"})
    vocabulary = {word: number for number, word in enumerate(("<s>", "<pad>", "</s>", "<unk>", *letters))}
    tokenizer = NllbTokenizer(
        vocab=vocabulary, merges=[], additional_special_tokens=list(CODES), src_lang=CODES[0], tgt_lang=CODES[1]
    )
    seed()
    values = {**BART, "vocab_size": len(tokenizer), "decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
    model = M2M100ForConditionalGeneration(M2M100Config(**{**values, "bos_token_id": 0, "forced_eos_token_id": None}))
    saved(folder, model, tokenizer)


def translated(folder: Path, requests: list[dict[str, Any]]) -> list[Any]:
    import transformers

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    answers = []
    for request in requests:
        options = dict(request["parameters"])
        source, target = options.pop("src_lang"), options.pop("tgt_lang")
        kind = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["tokenizer_class"]
        tokenizer = getattr(transformers, kind).from_pretrained(folder, src_lang=source, tgt_lang=target)
        first = tokenizer.convert_tokens_to_ids(target)
        rows = model.generate(
            **tokenizer(request["inputs"], return_tensors="pt"),
            **{"num_beams": 4, "forced_bos_token_id": first, **options},
        )
        answers.append([{"translation_text": tokenizer.decode(rows[0], skip_special_tokens=True)}])
    return answers


def two_berts(folder: Path) -> None:
    from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

    seed()
    one = BertConfig(**BERT, **POSITIONS)
    model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(one, BertConfig(**BERT, **POSITIONS)))
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 3
    saved(folder, model, word_tokenizer())


def forced(folder: Path) -> None:
    """A BART whose first word is given by its generation_config.json."""
    maker("BartForConditionalGeneration", "BartConfig", words(False), **BART)(folder)
    path = folder / "generation_config.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    said |= {
        "forced_bos_token_id": WORDS.index("garden"),
        "num_beams": 1,
        "max_new_tokens": 5,
        "no_repeat_ngram_size": 2,
    }
    path.write_text(json.dumps(said), encoding="utf-8")


def ends_early(folder: Path) -> None:
    """A GPT-2 with two tokens that end a text, in its generation_config.json alone; none of them is the tokenizer's."""
    from transformers import GPT2Config, GPT2LMHeadModel

    seed()
    values = {**GPT2, "n_positions": 256, "vocab_size": BYTES}
    model = GPT2LMHeadModel(GPT2Config(**values, bos_token_id=1, eos_token_id=2))
    model.generation_config.update(pad_token_id=7, bos_token_id=1, eos_token_id=ENDS)
    saved(folder, model, byte_tokenizer())


def canine() -> list[Any]:
    from transformers import CanineTokenizer

    return [CanineTokenizer(model_max_length=256)]


def by_bytes() -> list[Any]:
    from transformers import ByT5Tokenizer

    return [ByT5Tokenizer()]


def mbart(folder: Path) -> None:
    from transformers import MBart50Tokenizer, MBartConfig, MBartForConditionalGeneration

    letters = sorted({letter for word in WORDS for letter in word.lower()} | {"▁"})
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in letters)]
    tokenizer = MBart50Tokenizer(vocab=pieces, src_lang="en_XX", tgt_lang="de_DE")
    seed()
    values = {**BART, "vocab_size": len(tokenizer), "decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}
    model = MBartForConditionalGeneration(MBartConfig(**{**values, "bos_token_id": 0, "forced_eos_token_id": None}))
    saved(folder, model, tokenizer)


def spectra() -> list[Any]:
    from transformers import ASTFeatureExtractor

    return [ASTFeatureExtractor(max_length=32, num_mel_bins=16)]


def until_an_end(folder: Path, requests: list[dict[str, Any]]) -> list[Any]:
    """``generate`` for each prompt alone, and the text before the token that ends it."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers = []
    for request in requests:
        inputs = tokenizer(request["inputs"], return_tensors="pt")
        row = model.generate(**inputs, do_sample=False, **request["parameters"])[0][inputs["input_ids"].shape[1] :]
        ended = int(row[-1]) in ENDS
        answers.append([tokenizer.decode(row[:-1] if ended else row, skip_special_tokens=True)])
    return answers


def detr(folder: Path) -> None:
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

    seed()
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = DetrConfig(
        **{"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "backbone_config": backbone},
        **{"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 5, **SEEN_LABELS},
    )
    processor = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    lively(DetrForObjectDetection(config)).save_pretrained(folder)
    processor.save_pretrained(folder)


def kind(name: str, change: Build | None = None, **more: Any) -> Row:
    build = classifier(**more.pop("values", {}))
    return Row(
        *(name, "text-classification", then(build, change) if change else build, more.pop("requests", asked())),
        more.pop("reference", reference.pipeline("text-classification")),
        **more,
    )


def classifies(name: str, model: str, values: dict[str, Any], **more: Any) -> Row:
    requests = [*asked(), {"inputs": TEXTS[0], "parameters": {"top_k": 3}}]
    return row(
        *(name, "text-classification", f"{model}ForSequenceClassification", f"{model}Config", requests),
        **{"values": {**values, **LABELS}, "pairs": False, **more},
    )


ROWS = [
    kind(
        "BERT (several labels at once)",
        values={"problem_type": "multi_label_classification"},
        everywhere=True,
        requests=[*asked(), *asked(top_k=3)],
    ),
    kind("BERT (a number)", values={"num_labels": 1, "id2label": {0: "stars"}, "label2id": {"stars": 0}}),
    kind("BERT (regression)", values={"problem_type": "regression"}),
    kind("BERT (weights in pieces)", in_pieces),
    kind("BERT (bfloat16)", in_bfloat16, reference=reference.pipeline("text-classification", dtype="float32")),
    kind("BERT (further tensors)", with_more),
    kind("BERT (tokenizer.json alone)", bare_tokenizer, everywhere=True),
    classifies("GPT-2", "GPT2", {**GPT2, "pad_token_id": 0}),
    classifies("Llama", "Llama", LLAMA),
    classifies("T5", "T5", T5),
    classifies("XLNet", "XLNet", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "vocab_size": len(WORDS)}),
    classifies("Longformer", "Longformer", {**ROBERTA, "attention_window": 8}),
    classifies("BigBird", "BigBird", {**BERT, **POSITIONS, "attention_type": "original_full"}),
    row(
        *("ELECTRA", "token-classification", "ElectraForTokenClassification", "ElectraConfig"),
        [
            *asked(aggregation_strategy="first"),
            *asked(aggregation_strategy="average"),
            *asked(aggregation_strategy="max", ignore_labels=[]),
        ],
        values={
            **{**BERT, **POSITIONS, "embedding_size": 16, "num_labels": 3},
            **{"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}, "label2id": {"O": 0, "B-PER": 1, "I-PER": 2}},
        },
    ),
    Row(
        *("NLLB", "translation", nllb),
        [
            {"inputs": TEXTS[0], "parameters": {"src_lang": a, "tgt_lang": b, "max_new_tokens": 8}}
            for a, b in ((CODES[0], CODES[1]), (CODES[1], CODES[2]), (CODES[2], CODES[0]))
        ],
        translated,
    ),
    Row(
        *("BART (first word forced)", "text2text-generation", forced, [{"inputs": text} for text in TEXTS]),
        lambda folder, requests: reference.writing("generated_text")(
            folder, [{**request, "parameters": {"max_new_tokens": 5}} for request in requests]
        ),
    ),
    Row(
        *("BERT and BERT", "text2text-generation", two_berts),
        [{"inputs": text, "parameters": {"max_new_tokens": 6}} for text in TEXTS],
        reference.writing("generated_text"),
    ),
    Row(
        "T5 (tied weights under the other name)",
        "text2text-generation",
        then(maker("T5ForConditionalGeneration", "T5Config", words(False), **T5), without_tied),
        [{"inputs": text, "parameters": {"max_new_tokens": 6}} for text in TEXTS],
        reference.writing("generated_text"),
    ),
    Row(
        *("GPT-2 (several ends)", "text-generation", ends_early),
        [{"inputs": text, "parameters": {"max_new_tokens": 20}} for text in ("It was", "a", "The house is quiet")],
        until_an_end,
        batching="requests join",
        quantize=True,
        project=lambda answer: [item["generated_text"] for item in answer],
    ),
    Row(
        *("DETR", "object-detection", detr, [{**item, "parameters": {"threshold": 0.3}} for item in SEEN]),
        reference.pipeline("object-detection"),
    ),
    *(
        row(
            *(name, "text2text-generation", f"{name.replace(' ', '')}ForConditionalGeneration"),
            *(f"{name.replace(' ', '')}Config", SEQ2SEQ),
            values=values,
            pairs=False,
            reference=reference.writing("generated_text"),
        )
        for name, values in (
            ("UMT5", T5),
            ("LongT5", {**T5, "local_radius": 7}),
            ("ProphetNet", PROPHET),
            ("Blenderbot", BART),
            ("M2M100", BART),
        )
    ),
    Row(
        *("ByT5", "text2text-generation", maker(*("T5ForConditionalGeneration", "T5Config", by_bytes), **BY_BYTES)),
        [{"inputs": text, "parameters": {"max_new_tokens": 6}} for text in TEXTS],
        reference.writing("generated_text"),
    ),
    row(
        *("GPT-2", "token-classification", "GPT2ForTokenClassification", "GPT2Config"),
        [*asked(), *asked(aggregation_strategy="simple")],
        values={**GPT2, "num_labels": 3, "id2label": {0: "O", 1: "B-X", 2: "I-X"}},
        pairs=False,
    ),
    Row(
        "CANINE",
        "text-classification",
        maker(
            *("CanineForSequenceClassification", "CanineConfig", canine),
            **{
                **BERT,
                "max_position_embeddings": 256,
                "num_hash_buckets": 64,
                "local_transformer_stride": 16,
                **LABELS,
            },
        ),
        asked(),
        reference.pipeline("text-classification"),
    ),
    looks(
        *("MobileNet V2", "image-classification", "MobileNetV2ForImageClassification MobileNetV2Config"),
        {"image_size": 32, "depth_multiplier": 0.25, **SEEN_LABELS},
        pixels("MobileNetV2ImageProcessor", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        adapters=False,
    ),
    classifies(
        "Funnel",
        "Funnel",
        {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "block_sizes": [1, 1], "vocab_size": len(WORDS)},
    ),
    classifies("BART", "Bart", BART),
    Row(
        *("mBART", "translation", mbart),
        [
            {"inputs": TEXTS[0], "parameters": {"src_lang": a, "tgt_lang": b, "max_new_tokens": 8}}
            for a, b in (("en_XX", "de_DE"), ("fr_XX", "en_XX"))
        ],
        translated,
        everywhere=True,
    ),
    Row(
        "AST",
        "audio-classification",
        maker(
            *("ASTForAudioClassification", "ASTConfig", spectra),
            **{**VIT, "patch_size": 4, "frequency_stride": 4, "time_stride": 4, "max_length": 32, "num_mel_bins": 16},
            **SEEN_LABELS,
        ),
        HEARD,
        reference.pipeline("audio-classification"),
    ),
]
