"""What the models' own library answers, in this process: transformers' pipelines, and for tasks that version 5 dropped
its model classes, called as plainly as can be."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np


def picture(body: str) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(body))).convert("RGB")


def sound(body: str) -> Any:
    import soundfile

    samples, _ = soundfile.read(io.BytesIO(base64.b64decode(body)), dtype="float32")
    return samples


def plain(value: Any) -> Any:
    """An answer as JSON would bring it."""
    import torch

    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.detach().tolist()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if hasattr(value, "save"):
        with io.BytesIO() as buffer:
            value.save(buffer, format="PNG")
            return base64.b64encode(buffer.getvalue()).decode()
    return value


def pipeline(task: str, **parts: Any) -> Any:
    """The pipeline of transformers: media decoded, parameters spread."""

    def answers(folder: Path, requests: list[dict[str, Any]]) -> list[Any]:
        import torch
        import transformers
        from transformers.models.auto.image_processing_auto import AutoImageProcessor

        kind = "image" if task.startswith(("image-", "object-", "depth-", "mask-")) else ""
        kind = "image" if task.startswith("zero-shot-") and ("image" in task or "object" in task) else kind
        kind = "sound" if "audio-" in task or "speech" in task else kind
        kind = "" if task in ("text-to-audio", "image-text-to-text") else kind
        given: dict[str, Any] = {}
        if kind == "image" or ((folder / "preprocessor_config.json").is_file() and kind != "sound"):
            given["image_processor"] = AutoImageProcessor.from_pretrained(folder)
        if kind == "sound":
            given["feature_extractor"] = str(folder)
        if task == "image-text-to-text":
            given = {"processor": transformers.AutoProcessor.from_pretrained(folder)}
        elif any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
            given["tokenizer"] = str(folder)
        call = transformers.pipeline(task, model=str(folder), device="cpu", **given, **parts)
        results = []
        for request in requests:
            inputs = request["inputs"]
            options = dict(request.get("parameters", {}))
            read = {"image": picture, "sound": sound}.get(kind, _with_images)
            inputs = [read(item) for item in inputs] if isinstance(inputs, list) else read(inputs)
            if "seed" in options:
                torch.manual_seed(options.pop("seed"))
            if task == "image-text-to-text":
                options |= {"images": inputs["image"], "text": inputs["text"]}
                results.append(plain(call(**options)))
            else:
                results.append(plain(call(inputs, **options)))
        return results

    return answers


def _with_images(value: Any) -> Any:
    if isinstance(value, dict) and isinstance(value.get("table"), dict):
        import pandas

        return {**value, "table": pandas.DataFrame(value["table"])}
    if isinstance(value, dict) and isinstance(value.get("image"), str):
        return {**value, "image": picture(value["image"])}
    return value


def writing(name: str, beams: int = 4, prefix: str = "") -> Any:
    """A text in, a text out: ``generate`` with the pipelines' defaults, the answer under ``name``."""

    def answers(folder: Path, requests: list[dict[str, Any]]) -> list[Any]:
        import transformers

        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        results = []
        for request in requests:
            options = {"num_beams": beams, "max_new_tokens": 256, **request.get("parameters", {})}
            texts = request["inputs"] if isinstance(request["inputs"], list) else [request["inputs"]]
            rows = []
            for text in texts:
                inputs = tokenizer(prefix + text, return_tensors="pt", return_token_type_ids=False)
                rows.append({name: tokenizer.decode(model.generate(**inputs, **options)[0], skip_special_tokens=True)})
            results.append(rows)
        return results

    return answers


def spans(folder: Path, requests: list[dict[str, Any]]) -> list[Any]:
    """question-answering by brute force: every span of the context, one after the other."""
    import torch
    import transformers

    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answers = []
    for request in requests:
        item = request["inputs"]
        inputs = tokenizer(item["question"], item["context"], return_tensors="pt", return_offsets_mapping=True)
        offsets = inputs.pop("offset_mapping")[0].tolist()
        owners = inputs.sequence_ids(0)
        with torch.no_grad():
            output = model(**inputs)
        inside = [place for place, owner in enumerate(owners) if owner == 1]
        first = inputs["input_ids"][0].tolist().index(tokenizer.cls_token_id)
        usable = [first, *inside]  # the first token takes part in the probabilities and answers nothing
        start = dict(zip(usable, output.start_logits[0][usable].softmax(0).tolist(), strict=True))
        end = dict(zip(usable, output.end_logits[0][usable].softmax(0).tolist(), strict=True))
        best: dict[str, Any] = {"score": -1.0}
        for begin in inside:
            for stop in inside:
                if begin <= stop < begin + 15 and start[begin] * end[stop] > best["score"]:
                    left, right = offsets[begin][0], offsets[stop][1]
                    text = item["context"][left:right]
                    best = {"score": start[begin] * end[stop], "start": left, "end": right, "answer": text}
        answers.append(best)
    return answers


def captions(auto: str = "AutoModelForImageTextToText") -> Any:
    """image-to-text: ``generate`` on the pixels."""

    def answers(folder: Path, requests: list[dict[str, Any]]) -> list[Any]:
        import transformers
        from transformers.models.auto.image_processing_auto import AutoImageProcessor

        model = getattr(transformers, auto).from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        processor = AutoImageProcessor.from_pretrained(folder)
        results = []
        for request in requests:
            inputs = processor(images=picture(request["inputs"]), return_tensors="pt")
            rows = model.generate(**inputs, **{"max_new_tokens": 256, **request.get("parameters", {})})
            results.append([{"generated_text": tokenizer.decode(rows[0], skip_special_tokens=True)}])
        return results

    return answers


def labels_of_questions(folder: Path, requests: list[dict[str, Any]]) -> list[Any]:
    """visual-question-answering by a model that chooses among labels."""
    import torch
    import transformers
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    model = transformers.AutoModelForVisualQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    answers = []
    for request in requests:
        item = request["inputs"]
        inputs = {**tokenizer(item["question"], return_tensors="pt")}
        inputs |= processor(images=picture(item["image"]), return_tensors="pt")
        with torch.no_grad():
            chances = model(**inputs).logits.sigmoid()[0]
        order = chances.argsort(descending=True).tolist()[:5]
        answers.append([{"score": float(chances[n]), "answer": model.config.id2label[n]} for n in order])
    return answers


def videos(folder: Path, requests: list[dict[str, Any]]) -> list[Any]:
    import torch
    import transformers
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    model = transformers.AutoModelForVideoClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    answers = []
    for request in requests:
        frames = [np.asarray(picture(frame)) for frame in request["inputs"]["frames"]]
        inputs = processor(frames, return_tensors="pt")
        with torch.no_grad():
            chances = model(**inputs).logits.softmax(-1)[0]
        order = chances.argsort(descending=True).tolist()[:5]
        answers.append([{"score": float(chances[n]), "label": model.config.id2label[n]} for n in order])
    return answers


def upscaled(folder: Path, requests: list[dict[str, Any]]) -> list[Any]:
    import torch
    import transformers
    from PIL import Image
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    model = transformers.AutoModelForImageToImage.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    answers = []
    for request in requests:
        with torch.no_grad():
            pixels = model(**processor(images=[picture(request["inputs"])], return_tensors="pt")).reconstruction[0]
        answers.append(plain(Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())))
    return answers


def continuations(folder: Path, requests: list[dict[str, Any]]) -> list[Any]:
    """text-generation: ``generate`` for each prompt alone."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ends = model.generation_config.eos_token_id
    pad = ends[0] if isinstance(ends, list) else ends
    answers = []
    for request in requests:
        options = dict(request.get("parameters", {}))
        if isinstance(request["inputs"], list):
            ids = tokenizer.apply_chat_template(request["inputs"], add_generation_prompt=True, return_tensors="pt")
            ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
        else:
            ids = tokenizer(request["inputs"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            rows = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=pad, **options
            )
        before = tokenizer.decode(ids[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = tokenizer.decode(rows[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        answers.append([text[len(before) :]])
    return answers
