"""Every task that this handler serves: the classes that load the model, its inputs, and its parameters."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from handler_common import check_choice, check_flag, check_integer, check_number

Check = Callable[[str, Any], None]
MAX_LENGTH = 100_000  # characters of a parameter that is a text
MAX_LABELS = 1000
MOST = 1_000_000


def integer(low: int, high: int = MOST) -> Check:
    return lambda name, value: check_integer(name, value, low, high)


def number(low: float, high: float, above: bool = False) -> Check:
    return lambda name, value: check_number(name, value, low, high, above)


def choice(*choices: str) -> Check:
    return lambda name, value: check_choice(name, value, choices)


def text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value or len(value) > MAX_LENGTH:
        raise ValueError(f"{name} must be a text, not empty, of at most {MAX_LENGTH} characters, not {value!r:.100}.")


def some_texts(name: str, value: Any) -> None:
    """A text, or a list of texts, which may be empty."""
    if value != []:
        texts(name, value)


def texts(name: str, value: Any) -> None:
    """A text, or a list of texts."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not items or not all(isinstance(item, str) and item for item in items):
        raise ValueError(f"{name} must be a text or a list of texts, none of them empty, not {value!r:.100}.")
    if len(items) > MAX_LABELS or any(len(item) > MAX_LENGTH for item in items):
        raise ValueError(f"{name} may hold {MAX_LABELS} texts of {MAX_LENGTH} characters each.")


def template(name: str, value: Any) -> None:
    text(name, value)
    rest = value.replace("{}", "", 1)
    if "{}" not in value or "{" in rest or "}" in rest:
        raise ValueError(f"{name} must have {{}} once, where the label goes, and no other brace, not {value!r:.100}.")


def all_or_some(name: str, value: Any) -> None:
    """null: all of them."""
    if value is not None:
        check_integer(name, value, 1, MOST)


def size(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 3600:
        pair = isinstance(value, list) and len(value) == 2
        if not pair or not all(isinstance(item, (int, float)) and 0 <= item <= 3600 for item in value):
            raise ValueError(f"{name} must be seconds from 0 to 3600, or a list of two of them, not {value!r:.100}.")


def timestamps(name: str, value: Any) -> None:
    if not isinstance(value, bool) and value not in ("word", "char"):
        raise ValueError(f'{name} must be true, false, "word" or "char", not {value!r:.100}.')


flag: Check = check_flag
FUNCTIONS = choice("sigmoid", "softmax", "none")
# For models that write: passed to transformers' generate. `seed` draws the same each time.
GENERATE: dict[str, Check] = {
    "max_new_tokens": integer(1),
    "min_new_tokens": integer(0),
    "max_length": integer(1),
    "min_length": integer(0),
    "do_sample": flag,
    "num_beams": integer(1, 32),
    "num_return_sequences": integer(1, 32),
    "temperature": number(1e-5, 100),
    "top_k": integer(0),
    "top_p": number(0, 1, above=True),
    "typical_p": number(0, 1, above=True),
    "repetition_penalty": number(0.01, 100),
    "length_penalty": number(-100, 100),
    "no_repeat_ngram_size": integer(0, 1000),
    "early_stopping": flag,
    "forced_bos_token_id": integer(0),
    "seed": integer(0, 2**63 - 1),
}
SPEECH = {**GENERATE, "language": text, "task": choice("transcribe", "translate")}


def generate_options(known: dict[str, Check]) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be a JSON object, not {value!r:.100}.")
        check_parameters(name + ".", value, known)

    return check


LENGTHS: dict[str, Check] = {"truncation": flag, "max_length": integer(2)}
SEQ2SEQ: dict[str, Check] = {**GENERATE, "truncation": flag, "clean_up_tokenization_spaces": flag}
LABELS: dict[str, Check] = {"candidate_labels": texts, "hypothesis_template": template}
ANSWERS: dict[str, Check] = {
    "top_k": integer(1, 1000),
    "doc_stride": integer(1),
    "max_answer_len": integer(1, 10_000),
    "max_seq_len": integer(8),
    "max_question_len": integer(1),
    "handle_impossible_answer": flag,
}
WRITES: dict[str, Check] = {"max_new_tokens": integer(1), "generate_kwargs": generate_options(GENERATE)}


@dataclass(frozen=True)
class Task:
    """One task.

    ``classes``: the Auto classes that load a model for it, the first that knows the model wins. ``parts`` prepare a
    request's inputs: a tokenizer, an image_processor, a feature_extractor, a processor; with a question mark, if the
    model has one. ``inputs`` names the kind of a request's inputs (see pipeline_requests.py). ``needs``: parameters
    without which nothing can be answered. ``own``: computed by pipeline_own.py, not by a pipeline of transformers.
    """

    classes: tuple[str, ...]
    parts: tuple[str, ...]
    inputs: str
    parameters: dict[str, Check]
    needs: tuple[str, ...] = ()
    own: bool = False


TOKENIZER, IMAGES, AUDIO, PROCESSOR = "tokenizer", "image_processor", "feature_extractor", "processor"
TASKS = {
    "text-classification": Task(
        ("AutoModelForSequenceClassification",),
        (TOKENIZER,),
        "text or pair",
        {"top_k": all_or_some, "function_to_apply": FUNCTIONS, **LENGTHS},
    ),
    "token-classification": Task(
        ("AutoModelForTokenClassification",),
        (TOKENIZER,),
        "text",
        {
            "aggregation_strategy": choice("none", "simple", "first", "average", "max"),
            "ignore_labels": some_texts,
            "stride": integer(1),
        },
    ),
    "question-answering": Task(
        ("AutoModelForQuestionAnswering",), (TOKENIZER,), "question", {**ANSWERS, "align_to_words": flag}, own=True
    ),
    "fill-mask": Task(
        ("AutoModelForMaskedLM",), (TOKENIZER,), "text", {"top_k": integer(1, 10_000), "targets": texts, **LENGTHS}
    ),
    "zero-shot-classification": Task(
        ("AutoModelForSequenceClassification",),
        (TOKENIZER,),
        "text",
        {**LABELS, "multi_label": flag},
        needs=("candidate_labels",),
    ),
    "table-question-answering": Task(
        ("AutoModelForTableQuestionAnswering", "AutoModelForSeq2SeqLM"),
        (TOKENIZER,),
        "table",
        {"sequential": flag, "padding": flag, "truncation": choice("drop_rows_to_fit", "do_not_truncate")},
    ),
    "summarization": Task(("AutoModelForSeq2SeqLM",), (TOKENIZER,), "text", SEQ2SEQ, own=True),
    "translation": Task(
        ("AutoModelForSeq2SeqLM",), (TOKENIZER,), "text", {**SEQ2SEQ, "src_lang": text, "tgt_lang": text}, own=True
    ),
    "text2text-generation": Task(("AutoModelForSeq2SeqLM",), (TOKENIZER,), "text", SEQ2SEQ, own=True),
    "text-generation": Task(
        ("AutoModelForCausalLM",), (TOKENIZER,), "text or messages", {**GENERATE, "return_full_text": flag}
    ),
    "feature-extraction": Task(("AutoModel",), (TOKENIZER,), "text", LENGTHS),
    "image-classification": Task(
        ("AutoModelForImageClassification",),
        (IMAGES,),
        "image",
        {"top_k": integer(1, 10_000), "function_to_apply": FUNCTIONS},
    ),
    "zero-shot-image-classification": Task(
        ("AutoModelForZeroShotImageClassification",), (TOKENIZER, IMAGES), "image", LABELS, needs=("candidate_labels",)
    ),
    "object-detection": Task(("AutoModelForObjectDetection",), (IMAGES,), "image", {"threshold": number(0, 1)}),
    "zero-shot-object-detection": Task(
        ("AutoModelForZeroShotObjectDetection",),
        (TOKENIZER, IMAGES),
        "image",
        {"candidate_labels": texts, "threshold": number(0, 1), "top_k": integer(1, 10_000)},
        needs=("candidate_labels",),
    ),
    "image-segmentation": Task(
        ("AutoModelForImageSegmentation", "AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation"),
        (IMAGES, TOKENIZER + "?"),
        "image",
        {
            "subtask": choice("semantic", "instance", "panoptic"),
            "threshold": number(0, 1),
            "mask_threshold": number(0, 1),
            "overlap_mask_area_threshold": number(0, 1),
        },
    ),
    "mask-generation": Task(
        ("AutoModelForMaskGeneration",),
        (IMAGES,),
        "image",
        {
            "points_per_batch": integer(1, 4096),
            "points_per_crop": integer(1, 128),
            "crops_n_layers": integer(0, 3),
            "crop_overlap_ratio": number(0, 1),
            "crop_n_points_downscale_factor": integer(1, 16),
            "pred_iou_thresh": number(0, 1),
            "stability_score_thresh": number(0, 1),
            "stability_score_offset": number(0, 100),
            "mask_threshold": number(-100, 100),
            "crops_nms_thresh": number(0, 1),
        },
    ),
    "depth-estimation": Task(("AutoModelForDepthEstimation",), (IMAGES,), "image", {}),
    "image-feature-extraction": Task(("AutoModel",), (IMAGES,), "image", {"pool": flag}),
    "image-to-image": Task(("AutoModelForImageToImage",), (IMAGES,), "image", {}, own=True),
    "keypoint-matching": Task(("AutoModelForKeypointMatching",), (IMAGES,), "two images", {"threshold": number(0, 1)}),
    "image-to-text": Task(
        ("AutoModelForImageTextToText", "AutoModelForVision2Seq"),
        (TOKENIZER, IMAGES),
        "image",
        {**WRITES, "prompt": text},
        own=True,
    ),
    "image-text-to-text": Task(
        ("AutoModelForImageTextToText",), (PROCESSOR,), "image and text", {**WRITES, "return_full_text": flag}
    ),
    "visual-question-answering": Task(
        ("AutoModelForVisualQuestionAnswering",),
        (TOKENIZER, IMAGES),
        "image and question",
        {"top_k": integer(1, 10_000), **WRITES},
        own=True,
    ),
    "document-question-answering": Task(
        ("AutoModelForDocumentQuestionAnswering", "AutoModelForImageTextToText", "AutoModelForVision2Seq"),
        (TOKENIZER, IMAGES + "?"),
        "document",
        ANSWERS,
    ),
    "video-classification": Task(
        ("AutoModelForVideoClassification",),
        (IMAGES,),
        "video",
        {
            "top_k": integer(1, 10_000),
            "function_to_apply": FUNCTIONS,
            "num_frames": integer(1, 1000),
            "frame_sampling_rate": integer(1, 1000),
        },
        own=True,
    ),
    "audio-classification": Task(
        ("AutoModelForAudioClassification",), (AUDIO,), "audio", {"top_k": all_or_some, "function_to_apply": FUNCTIONS}
    ),
    "automatic-speech-recognition": Task(
        ("AutoModelForCTC", "AutoModelForSpeechSeq2Seq"),
        (TOKENIZER, AUDIO),
        "audio",
        {
            "return_timestamps": timestamps,
            "return_language": flag,
            "chunk_length_s": number(0, 3600),
            "stride_length_s": size,
            "generate_kwargs": generate_options(SPEECH),
        },
    ),
    "zero-shot-audio-classification": Task(
        ("AutoModel",), (TOKENIZER, AUDIO), "audio", LABELS, needs=("candidate_labels",)
    ),
    "text-to-audio": Task(
        ("AutoModelForTextToWaveform",),
        (TOKENIZER, PROCESSOR + "?"),
        "text",
        {"generate_kwargs": generate_options(GENERATE), "seed": integer(0, 2**63 - 1)},
    ),
}
ALIASES = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "vqa": "visual-question-answering",
    "text-to-speech": "text-to-audio",
    "image-captioning": "image-to-text",
    "speech-recognition": "automatic-speech-recognition",
}
TRANSLATION = re.compile(r"translation_([A-Za-z_-]+?)_to_([A-Za-z_-]+)")


def task_of(name: str) -> tuple[str, Task]:
    """The task's own name, and the task. ``translation_XX_to_YY`` is a translation. Raises ValueError."""
    name = ALIASES.get(name, name)
    if TRANSLATION.fullmatch(name):
        return "translation", TASKS["translation"]
    if name not in TASKS:
        raise ValueError(f"The task {name!r} is not known. Known: {', '.join(TASKS)}.")
    return name, TASKS[name]


def check_parameters(where: str, values: dict[str, Any], known: dict[str, Check]) -> None:
    """Raises ValueError for a parameter that is not known or out of bounds; it lists those that are."""
    for name, value in values.items():
        if name not in known:
            raise ValueError(
                f"Unknown parameter {where.split('.', 1)[1]}{name!r}. Known: {', '.join(known) or 'none'}."
            )
        known[name](where + name, value)
