"""What a catalogue says of a model, as plain values; and which values it may have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mme.errors import CatalogError, nearest

SEGMENT = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
NAME = re.compile(rf"{SEGMENT}(?:/{SEGMENT})*")
COMMIT = re.compile(r"[0-9a-f]{40}")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
PYTHON = re.compile(r"3\.\d{1,2}")
PACKAGE = re.compile(r"[A-Za-z_]\w*(?:/[\w.-]+)*")

# A TargetModel has at most 1,024 characters. The digest, the suffix and a bucket prefix need some of them.
MAX_NAME = 200

KINDS = ("hub", "folder", "package")
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZES = ("int8",)
COMPRESSIONS = ("auto", "stored", "fast", "small")

# Task -> the Auto classes of transformers that load a checkpoint for it; the first that knows the model wins.
TASKS: dict[str, tuple[str, ...]] = {
    "feature-extraction": ("AutoModel",),
    "text-generation": ("AutoModelForCausalLM",),
    "text2text-generation": ("AutoModelForSeq2SeqLM",),
    "summarization": ("AutoModelForSeq2SeqLM",),
    "translation": ("AutoModelForSeq2SeqLM",),
    "fill-mask": ("AutoModelForMaskedLM",),
    "text-classification": ("AutoModelForSequenceClassification",),
    "token-classification": ("AutoModelForTokenClassification",),
    "question-answering": ("AutoModelForQuestionAnswering",),
    "zero-shot-classification": ("AutoModelForSequenceClassification",),
    "table-question-answering": ("AutoModelForTableQuestionAnswering", "AutoModelForSeq2SeqLM"),
    "image-classification": ("AutoModelForImageClassification",),
    "zero-shot-image-classification": ("AutoModelForZeroShotImageClassification",),
    "object-detection": ("AutoModelForObjectDetection",),
    "zero-shot-object-detection": ("AutoModelForZeroShotObjectDetection",),
    "image-segmentation": (
        *("AutoModelForImageSegmentation", "AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation"),
    ),
    "mask-generation": ("AutoModelForMaskGeneration",),
    "depth-estimation": ("AutoModelForDepthEstimation",),
    "image-feature-extraction": ("AutoModel",),
    "image-to-image": ("AutoModelForImageToImage",),
    "keypoint-matching": ("AutoModelForKeypointMatching",),
    "image-to-text": ("AutoModelForImageTextToText", "AutoModelForVision2Seq"),
    "image-text-to-text": ("AutoModelForImageTextToText",),
    "visual-question-answering": ("AutoModelForVisualQuestionAnswering",),
    "document-question-answering": (
        *("AutoModelForDocumentQuestionAnswering", "AutoModelForImageTextToText", "AutoModelForVision2Seq"),
    ),
    "video-classification": ("AutoModelForVideoClassification",),
    "audio-classification": ("AutoModelForAudioClassification",),
    "automatic-speech-recognition": ("AutoModelForCTC", "AutoModelForSpeechSeq2Seq"),
    "zero-shot-audio-classification": ("AutoModel",),
    "text-to-audio": ("AutoModelForTextToWaveform",),
}
# Other names of tasks, as the Hub and transformers have them.
TASK_ALIASES = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "vqa": "visual-question-answering",
    "text-to-speech": "text-to-audio",
    "image-captioning": "image-to-text",
    "speech-recognition": "automatic-speech-recognition",
}
# transformers' name of a translation between two languages; a model may have settings of its own under it.
TRANSLATION = re.compile(r"translation_[A-Za-z_-]+?_to_[A-Za-z_-]+")
# The Hub's name for sentence vectors that are compared, which the embedding handler does.
SENTENCE_SIMILARITY = "sentence-similarity"
# The Hub's name for scores of pairs of texts, which the reranking handler gives, and transformers' pipelines do not.
TEXT_RANKING = "text-ranking"
# Tasks of the Hub that cannot be served as they are -> why not, and the way out.
_DIFFUSION = "It is a task for models of the library diffusers. A handler of your own can serve one."
_NO_PIPELINE = "transformers has no pipeline for it. A handler of your own can serve the model."
REFUSED_TASKS = {
    "conversational": 'It is text-generation today: say task = "text-generation", and send the messages of the chat.',
    "any-to-any": 'Say task = "image-text-to-text" for texts about images, or give a handler of your own.',
    "audio-text-to-text": "It needs a handler of your own: what such models hear differs from one to the next.",
    "video-text-to-text": "It needs a handler of your own: what such models see differs from one to the next.",
    "multiple-choice": _NO_PIPELINE,
    "keypoint-detection": _NO_PIPELINE,
    "audio-to-audio": _NO_PIPELINE,
    "voice-activity-detection": _NO_PIPELINE,
    "time-series-forecasting": _NO_PIPELINE,
    **dict.fromkeys(
        (
            *("text-to-image", "text-to-video", "image-to-video", "unconditional-image-generation"),
            *("text-to-3d", "image-to-3d"),
        ),
        _DIFFUSION,
    ),
    **dict.fromkeys(
        ("tabular-classification", "tabular-regression", "reinforcement-learning", "robotics", "graph-ml"),
        "It is not a task of transformers. A handler of your own can serve the model.",
    ),
}


def auto_classes(task: str) -> tuple[str, ...]:
    """The Auto classes for a task of the catalogue, ``translation_en_to_de`` and the like among them."""
    if task == TEXT_RANKING:
        task = "text-classification"
    return TASKS["translation" if TRANSLATION.fullmatch(task) else task]


# What the handlers that ship with mme load. A model for another handler is loaded as its own configuration
# says, unless the catalogue gives a task.
HANDLER_TASKS = {"embedding": "feature-extraction", "generation": "text-generation", "reranking": TEXT_RANKING}

# The handlers that packaging adds to an archive for which the catalogue names none: this one for every task but those
# that follow.
PIPELINE_HANDLER = "pipeline"
DEFAULT_HANDLERS = {"text-generation": "generation"}

# Key -> the TOML type it must have, in words.
KEYS: dict[str, tuple[type, str]] = {
    "source": (str, "a string"),
    "revision": (str, "a string"),
    "handler": (str, "a string"),
    "task": (str, "a string"),
    "settings": (dict, "a table"),
    "files": (list, "a list of strings"),
    "dtype": (str, "a string"),
    "quantize": (str, "a string"),
    "max_error": (float, "a number"),
    "adapter": (str, "a string"),
    "adapter_revision": (str, "a string"),
    "adapter_merge": (bool, "true or false"),
    "compression": (str, "a string"),
    "allow_pickle": (bool, "true or false"),
    "trust_remote_code": (bool, "true or false"),
    "python": (str, "a string"),
    "platform": (str, "a string"),
    "notes": (str, "a string"),
}


@dataclass(frozen=True)
class Source:
    """Where a model's files are: ``kind`` is hub, folder or package; ``location`` is what follows the colon.

    ``folder`` is the folder made absolute, for kind folder alone.
    """

    kind: str
    location: str
    folder: Path | None = None

    def __str__(self) -> str:
        """The source as it may be published: an absolute folder is cut down to its own name."""
        if self.kind == "folder" and (Path(self.location).is_absolute() or self.location.startswith("~")):
            return f"folder:{Path(self.location).name}"
        return f"{self.kind}:{self.location}"


@dataclass(frozen=True)
class ModelSpec:
    """One table of the catalogue, checked.

    ``handler`` is the folder with inference.py; where the catalogue names none it is None, and packaging lays in ours
    for the task (``mme.packaging.defaults``). ``settings`` say ``quantize`` too, where it is set. ``max_error`` bounds
    how far ``dtype``, ``quantize`` and a ``dtype`` among the settings may move the answers; see
    ``mme.snapshot.accuracy``.
    ``adapter_merge`` adds the adapter to the weights; without it, the archive holds both, and the handler puts them
    together when it loads.
    ``python`` and ``platform`` are those of the container that the handler's requirements are resolved for.
    """

    name: str
    source: Source
    revision: str | None = None
    handler: Path | None = None
    task: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    dtype: str | None = None
    quantize: str | None = None
    max_error: float | None = None
    adapter: Source | None = None
    adapter_revision: str | None = None
    adapter_merge: bool = True
    compression: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    python: str = "3.12"
    platform: str = "manylinux_2_28_x86_64"
    notes: str = ""


@dataclass(frozen=True)
class Catalog:
    path: Path
    models: tuple[ModelSpec, ...]

    def select(self, names: Iterable[str] = ()) -> tuple[ModelSpec, ...]:
        """The models named, in the catalogue's order; all of them when no name is given."""
        wanted = list(dict.fromkeys(names))
        known = {model.name: model for model in self.models}
        for name in wanted:
            if name not in known:
                raise CatalogError(
                    f"{self.path}: there is no model named {name!r}.",
                    nearest(name, known, "The catalogue has"),
                )
        return tuple(model for model in self.models if not wanted or model.name in wanted)
