"""Text generation from any transformers decoder (GPT-2, Llama, Mistral, Qwen, ...).

Runs unchanged in the Hugging Face inference containers (sagemaker-huggingface-inference-toolkit on multi-model-server)
and in `mme.container`. It needs torch and transformers (4.49 to 5.x), and nothing else from this project.

Request: text/plain (one prompt), or application/json: "prompt", ["prompt", ...] or
{"inputs": "prompt" or [...], "parameters": {"max_new_tokens": 20, ...}}; generation_options.py lists them all.
A chat is {"messages": [{"role": ..., "content": ...}, ...], "tools": [...], "parameters": {...}}, or its messages as
inputs: the model's own template makes the prompt of it.
Answer, in the shape of transformers' own text-generation pipeline: for one prompt
[{"generated_text": ..., "finish_reason": ..., "prompt_tokens": ..., "generated_tokens": ..., "truncated": ...}]
with one entry per returned sequence; for a list of prompts, a list of such lists.

Defaults come from `code/settings.json` in the model's folder (any parameter by its name, and LIMITS), then from the
model's generation_config.json (see generation_config.py), then from generation_options.py.

Requests with different parameters, lengths and seeds share one forward pass per token, and each still gets what it
would have got alone: see generation_decoding.py.
"""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import engine
import generation_chat
import generation_config
import handler_adapter
import handler_format
import handler_int8
import torch
from generation_continuous import Asked, Decoder
from generation_decoding import CACHES, Generator, Prompt, Sequence, grow, text_of
from generation_joining import alone, joins, same_rotation
from generation_linear import wrap_linear_layers
from generation_options import LIMITS, PARAMETERS, Options, defaults_of, options_of, settings_of
from handler_common import (
    JSON,
    Request,
    check_known,
    check_quantize,
    device_of,
    known_tokens,
    load_tokenizer,
    load_whole,
    loading_options,
    name_of,
    negotiate,
    orjson,
    read_settings,
    tokenize,
)
from transformers import AutoModelForCausalLM

# Used where the model's configuration does not say how long its context is.
FALLBACK_CONTEXT = 2048


# --- The four functions that the toolkit calls -----------------------------------------------------------------------


def model_fn(model_dir: str, context: Any = None) -> Generator:
    """Load the model in `model_dir`. Raises ValueError for settings that make no sense."""
    folder = Path(model_dir)
    device = device_of(context)
    own = handler_format.chosen(read_settings(folder, (*PARAMETERS, *LIMITS)), device)
    settings = settings_of(own)
    check_quantize(settings, device)
    settings["dtype"], slow = handler_format.computing(settings["dtype"], device)
    tokenizer = load_tokenizer(folder)
    options = loading_options(settings["dtype"])
    if settings["quantize"]:
        model = handler_int8.load(AutoModelForCausalLM, folder, options)
    else:
        model = load_whole(AutoModelForCausalLM, folder, options)
    model.to(device).eval().requires_grad_(False)
    handler_adapter.adapt(model, folder)
    if not settings["quantize"]:
        wrap_linear_layers(model)
    written = generation_config.read(model.generation_config)
    settings |= defaults_of(written.defaults, own, settings)
    decoding, reason = _engine(folder, model, settings, device)
    if hasattr(context, "note"):  # mme.container's
        context.note(
            engine="torch" if decoding is None else "onnxruntime",
            format=settings["quantize"] or settings["dtype"],
            reason="; ".join(filter(None, (reason, slow))),
            key=decoding.key if decoding else "",
        )
    arguments = frozenset(inspect.signature(model.forward).parameters)
    loaded = Generator(
        model=model,
        tokenizer=tokenizer,
        device=device,
        settings=settings,
        context=_context_length(model.config),
        end_tokens=_end_tokens(model, tokenizer),
        arguments=arguments,
        engine=decoding,
        cache=next((name for name in CACHES if name in arguments), None),
        words=known_tokens(model.config, tokenizer),
        same_rotation=same_rotation(model.config),
    )
    if written.further:
        reason = f"its generation_config.json has {', '.join(written.further)}"
        return dataclasses.replace(loaded, together=alone(loaded, reason))
    return dataclasses.replace(loaded, together=joins(loaded))


def _engine(
    folder: Path, model: Any, settings: dict[str, Any], device: torch.device
) -> tuple[engine.Decoding | None, str]:
    """The engine that computes steps in torch's place; or None, and the reason."""
    if device.type != "cpu":
        return None, "it is on a GPU"
    if settings["quantize"] or settings["dtype"] != "float32":
        return None, f"it computes in {settings['quantize'] or settings['dtype']}"
    try:
        decoding = engine.load_decoder(folder, model.config, handler_adapter.matrices(folder))
    except engine.Unsupported as error:
        return None, str(error)
    apart = None if engine.checked(decoding) else engine.decodes_otherwise(decoding, model)
    return (decoding, "") if apart is None else (None, apart)


def input_fn(data: Any, content_type: str | None) -> Request:
    """Read one request's body. Raises ValueError with what is wrong with it."""
    return generation_chat.read(data, content_type, tuple(PARAMETERS))


def predict_fn(data: Request, model: Generator) -> list[Any]:
    """Continue one request's prompts. Raises ValueError where the request cannot be answered."""
    result = batch_fn([data], model)[0]
    if isinstance(result, Exception):
        raise result
    answer: list[Any] = result
    return answer


def output_fn(prediction: list[Any], accept: str | None) -> bytes:
    """Write the answer as JSON."""
    negotiate(accept, (JSON,))
    if orjson is not None:
        return orjson.dumps(prediction)
    return json.dumps(prediction, ensure_ascii=False, separators=(",", ":")).encode()


# --- The hooks with which a server batches concurrent requests -------------------------------------------------------


def tokens_fn(data: Request, model: Generator) -> int:
    """How many tokens the request costs: its prompts' and the new ones that it may bring, for every sequence. The
    tokens are kept in `data`, so they are counted only once."""
    try:
        option = options_of(data, model.settings)
        _tokenize(data, model)
    except ValueError:
        return 1  # batch_fn will refuse it
    width = max(option.num_return_sequences, option.num_beams)
    return sum(min(len(ids) + option.max_new_tokens, model.context) for ids in data.tokens or ()) * width


def batch_fn(inputs: list[Request], model: Generator) -> list[Any]:
    """Continue many requests together: for each, in order, what predict_fn would return, or the exception that it would
    raise. Parameters may differ from one request to the next."""
    results: list[Any] = [None] * len(inputs)
    options: list[Options | None] = [None] * len(inputs)
    for index, request in enumerate(inputs):
        try:
            option = options_of(request, model.settings)
            if isinstance(request, generation_chat.Chat):
                _tokenize(request, model)
            options[index] = option
        except ValueError as error:
            results[index] = error
    tokenize([request for request, option in zip(inputs, options, strict=True) if option], model.tokenizer)

    prompts: dict[int, list[Prompt]] = {}
    for index, (request, option) in enumerate(zip(inputs, options, strict=True)):
        if option is not None:
            try:
                prompts[index] = _prompts(request, option, model)
            except ValueError as error:
                results[index] = error

    grow([prompt for group in prompts.values() for prompt in group], model)
    for index, group in prompts.items():
        results[index] = _answers(inputs[index], group, model)
    return results


def busy_fn(model: Generator) -> engine.Decoding | None:
    """Packed weights, which make a busy model faster and take more memory."""
    return model.engine


def decoder_fn(model: Generator) -> Decoder:
    """For a server that lets requests join while others are in work: see Decoder for its three methods."""
    return Decoder(model, _asked)


# --- From requests to prompts, from tokens to answers ----------------------------------------------------------------


def _tokenize(request: Request, model: Generator) -> None:
    """Give the request its tokens. Raises ValueError for a chat that the model's template refuses."""
    if isinstance(request, generation_chat.Chat) and request.tokens is None:
        generation_chat.render(request, model.tokenizer)
    tokenize([request], model.tokenizer)


def _prompts(request: Request, option: Options, model: Generator) -> list[Prompt]:
    prompts = []
    for place, (text, ids) in enumerate(zip(request.texts, request.tokens or (), strict=True)):
        if not ids:
            # An empty prompt: the model begins a text of its own, where it has a token to begin with.
            start = model.tokenizer.bos_token_id
            if start is None:
                raise ValueError(f"{name_of(request, place)} has no tokens, and the model has none to begin with.")
            ids = [start]
        check_known(name_of(request, place), ids, model.tokenizer, model.words)
        truncated = False
        if len(ids) >= model.context:
            room = model.context - min(option.max_new_tokens, model.context - 1)
            if not option.truncate:
                raise ValueError(
                    f"{name_of(request, place)} has {len(ids)} tokens; the model's context is {model.context}, prompt "
                    "and new tokens together. Shorten it, or set parameters.truncate to true to have its end read."
                )
            ids, truncated = ids[-room:], True
        limit = min(option.max_new_tokens, model.context - len(ids))
        prompts.append(Prompt(text, ids, truncated, option, limit))
    return prompts


def _asked(request: Request, model: Generator) -> Asked:
    option = options_of(request, model.settings)
    _tokenize(request, model)
    prompts = _prompts(request, option, model)
    return Asked(prompts, lambda: _answers(request, prompts, model))


def _answers(request: Request, prompts: list[Prompt], model: Generator) -> list[Any]:
    answers = [[_answer(sequence, model) for sequence in prompt.sequences] for prompt in prompts]
    return answers[0] if request.single else answers


def _answer(sequence: Sequence, model: Generator) -> dict[str, Any]:
    prompt = sequence.prompt
    # Some tokenizers drop a space at the beginning of what they decode, so the new text is what follows the prompt's.
    before = text_of(prompt.tokens, model)
    text = text_of(prompt.tokens + sequence.tokens, model)[len(before) :]
    ends = [place for place in (text.find(stop) for stop in prompt.options.stop) if place >= 0]
    text = text[: min(ends)] if ends else text
    return {
        "generated_text": prompt.text + text if prompt.options.return_full_text else text,
        "finish_reason": sequence.finish_reason,
        "prompt_tokens": len(prompt.tokens),
        "generated_tokens": len(sequence.tokens),
        "truncated": prompt.truncated,
    }


# --- What the model can do ------------------------------------------------------------------------------------------


def _context_length(config: Any) -> int:
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 1 else FALLBACK_CONTEXT


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    for owner in (model.generation_config, model.config, tokenizer):
        ends = getattr(owner, "eos_token_id", None)
        if ends is not None:
            return frozenset([ends] if isinstance(ends, int) else ends)
    return frozenset()
