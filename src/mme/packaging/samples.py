"""A sample request for each task, to verify archives whose handlers bring none."""

from __future__ import annotations

import base64
import io
import json
import struct
import wave
import zlib
from pathlib import Path
from typing import Any

from mme.snapshot.portable import read_json

TEXT = "The house is quiet, and nobody is at home."
QUESTION = "What is quiet?"
LABELS = ["a house", "a dog"]


def for_task(task: str, model: Path) -> bytes:
    """The body of a request, in JSON, for the model in the folder ``model``."""
    return json.dumps(_request(task, model), ensure_ascii=False).encode()


def _request(task: str, model: Path) -> dict[str, Any]:
    picture, sound = image(), tone()
    if task == "fill-mask":
        return {"inputs": f"The house is {_mask(model)}."}
    if task == "question-answering":
        return {"inputs": {"question": QUESTION, "context": TEXT}}
    if task in ("zero-shot-classification", "zero-shot-image-classification", "zero-shot-object-detection"):
        inputs = TEXT if task == "zero-shot-classification" else picture
        return {"inputs": inputs, "parameters": {"candidate_labels": LABELS}}
    if task == "zero-shot-audio-classification":
        return {"inputs": sound, "parameters": {"candidate_labels": LABELS}}
    if task == "table-question-answering":
        table = {"city": ["Oslo", "Rome"], "people": ["700000", "2800000"]}
        return {"inputs": {"query": "How many people live in Rome?", "table": table}}
    if task == "visual-question-answering":
        return {"inputs": {"image": picture, "question": QUESTION}}
    if task == "document-question-answering":
        boxes = [[word, [100 * place, 100, 100 * place + 90, 200]] for place, word in enumerate(TEXT.split())]
        return {"inputs": {"image": picture, "question": QUESTION, "word_boxes": boxes}}
    if task == "image-text-to-text":
        return {"inputs": _about_an_image(model, picture), "parameters": {"max_new_tokens": 4}}
    if task == "keypoint-matching":
        return {"inputs": [picture, picture]}
    if task == "video-classification":
        frames = read_json(model / "config.json").get("num_frames") or 16
        return {"inputs": {"frames": [picture] * int(frames)}}
    if task == "image-to-text":
        return {"inputs": picture, "parameters": {"max_new_tokens": 4}}
    if task in ("audio-classification", "automatic-speech-recognition"):
        return {"inputs": sound}
    if task.startswith(("image-", "object-", "mask-", "depth-")):
        return {"inputs": picture}
    if task in ("summarization", "text2text-generation"):
        return {"inputs": TEXT, "parameters": {"max_new_tokens": 8}}
    if task.startswith("translation"):
        return {"inputs": TEXT, "parameters": {"max_new_tokens": 8, **_languages(model)}}
    return {"inputs": TEXT}


def _mask(model: Path) -> str:
    """The mask token of this model's tokenizer."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (model / name).is_file():
            mask = read_json(model / name).get("mask_token")
            mask = mask.get("content") if isinstance(mask, dict) else mask
            if isinstance(mask, str):
                return mask
    return "[MASK]"


def _languages(model: Path) -> dict[str, str]:
    """For models of many languages, two of them."""
    pairs = {
        "mbart": ("en_XX", "de_DE"),
        "m2m_100": ("en", "de"),
        "nllb": ("eng_Latn", "deu_Latn"),
    }
    kind = str(read_json(model / "config.json").get("model_type"))
    settings = read_json(model / "tokenizer_config.json") if (model / "tokenizer_config.json").is_file() else {}
    if "Nllb" in str(settings.get("tokenizer_class")):
        kind = "nllb"
    if kind not in pairs:
        return {}
    return dict(zip(("src_lang", "tgt_lang"), pairs[kind], strict=True))


def _about_an_image(model: Path, picture: str) -> Any:
    """A chat, for a model that has a template for one; else a text with the token that stands for an image."""
    if any((model / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]}]
    return {"image": picture, "text": _image_token(model) + QUESTION}


def _image_token(model: Path) -> str:
    """The placeholder in a text where the image belongs; "" for a model that needs none."""
    config = read_json(model / "config.json")
    number = config.get("image_token_id", config.get("image_token_index"))
    if number is None or not (model / "tokenizer.json").is_file():
        return ""
    added = read_json(model / "tokenizer.json").get("added_tokens") or []
    return next((str(token["content"]) for token in added if token.get("id") == number), "")


def image(width: int = 64, height: int = 64) -> str:
    """A PNG in base64: colours that run from one corner to the other."""
    rows = b"".join(
        b"\0" + bytes(value for x in range(width) for value in (4 * x % 256, 4 * y % 256, (x + y) * 2 % 256))
        for y in range(height)
    )
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


def tone(seconds: float = 1.0, rate: int = 16_000) -> str:
    """A WAV in base64: a tone of 250 Hz, at half the loudness there is."""
    period = rate // 250
    wanted = int(seconds * rate)
    one = [int(16_000 * (abs(4 * place / period - 2) - 1)) for place in range(period)]
    samples = (one * (wanted // period + 1))[:wanted]
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(struct.pack(f"<{wanted}h", *samples))
    return base64.b64encode(buffer.getvalue()).decode()
