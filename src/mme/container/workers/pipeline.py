"""The default pipeline of a model without a handler."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mme.container.errors import HandlerError

ARCHITECTURE_TASKS = {
    "TapasForQuestionAnswering": "table-question-answering",
    "ForQuestionAnswering": "question-answering",
    "ForTokenClassification": "token-classification",
    "ForSequenceClassification": "text-classification",
    "ForMultipleChoice": "multiple-choice",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "MTModel": "text2text-generation",
    "EncoderDecoderModel": "text2text-generation",
    "GPT2LMHeadModel": "text-generation",
    "T5WithLMHeadModel": "text2text-generation",
}
# Tasks whose pipeline takes a feature extractor where others take a tokenizer.
FEATURE_TASKS = {
    "automatic-speech-recognition",
    "image-segmentation",
    "image-classification",
    "audio-classification",
    "object-detection",
    "zero-shot-image-classification",
}


def infer_task(model_dir: str) -> str:
    """The pipeline's task, from HF_TASK or from the architecture that config.json names."""
    if os.environ.get("HF_TASK"):
        return os.environ["HF_TASK"]
    try:
        config = json.loads(Path(model_dir, "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        if Path(model_dir, "code", "inference.py").is_file():
            raise HandlerError(
                "code/inference.py has no function that is called (model_fn, predict_fn, transform_fn), and the model "
                "no config.json of which a pipeline could be made"
            ) from None
        raise HandlerError(
            "The model has neither code/inference.py nor config.json at its root. Check that the archive has no extra "
            "top folder, or set HF_TASK"
        ) from None
    architecture = (config.get("architectures") or ["none"])[0]
    task = None
    for ending, name in ARCHITECTURE_TASKS.items():
        if architecture.endswith(ending):
            task = name
    if task is None:
        raise HandlerError(
            f"No task follows from the architecture {architecture}. Add a handler in code/inference.py, or set HF_TASK"
        )
    return task


def default_pipeline(model_dir: str, device: int) -> Any:
    """The transformers pipeline of a model without a model_fn."""
    from transformers import pipeline

    task = infer_task(model_dir)
    part = "feature_extractor" if task in FEATURE_TASKS else "tokenizer"
    trust = os.environ.get("HF_TRUST_REMOTE_CODE", "").lower() in ("y", "yes", "t", "true", "on", "1")
    return pipeline(
        task=task,  # type: ignore[call-overload,unused-ignore]
        model=model_dir,
        device=device,
        trust_remote_code=trust,
        **{part: model_dir},
    )


def pipeline_predict(data: Any, model: Any) -> Any:
    """The toolkit's predict_fn: ``{"inputs": …, "parameters": {…}}`` spread over the model's call."""
    inputs, parameters = data, None
    if isinstance(data, dict):
        parameters = data.pop("parameters", None)
        inputs = data.pop("inputs", data)
    return model(inputs, **parameters) if parameters is not None else model(inputs)
