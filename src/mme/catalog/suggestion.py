"""What a table without handler and task most likely lacks, by what lies in its folder."""

from __future__ import annotations

import json
from pathlib import Path

MAX_CONFIG = 1 << 20
# The last part of a class of transformers -> the task that it is for.
TASKS_OF_CLASSES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "GPT2LMHeadModel": "text-generation",
    "T5ForConditionalGeneration": "text2text-generation",
    "MarianMTModel": "translation",
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForAudioClassification": "audio-classification",
    "ForCTC": "automatic-speech-recognition",
    "ForSpeechSeq2Seq": "automatic-speech-recognition",
    "WhisperForConditionalGeneration": "automatic-speech-recognition",
}


def missing_line(folder: Path) -> str | None:
    """The line to add and the reason, such as ``task = "fill-mask": its config.json says BertForMaskedLM.``

    None where the folder does not say it: it has no config.json, or one that names no class or an unknown one.
    """
    if (folder / "modules.json").is_file():
        return 'handler = "embedding": the folder is one of sentence-transformers.'
    try:
        with (folder / "config.json").open("rb") as file:
            architecture = json.loads(file.read(MAX_CONFIG))["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    for ending, task in TASKS_OF_CLASSES.items():
        if isinstance(architecture, str) and architecture.isidentifier() and architecture.endswith(ending):
            return f'task = "{task}": its config.json says {architecture}.'
    return None
