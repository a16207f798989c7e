"""Answer requests with a handler as the toolkit calls it, in a process of its own, so on another version.

python answers.py HANDLER_FOLDER MODEL_FOLDER < [[BODY, CONTENT_TYPE, ACCEPT], ...] > {"version": ..., "answers": [...]}

Where the handler has a decoder_fn, "joined" has the answers of the same requests, each of which joined the others one
token later; an error stands as null. "by_engine" is whether ONNX Runtime computed them, and
"together" whether prompts share a pass, where the handler knows it.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    handler_folder, model_folder = sys.argv[1:]
    requests = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr
    sys.path[:0] = [handler_folder, str(Path(handler_folder).with_name("common"))]
    import inference
    import transformers

    model = inference.model_fn(model_folder)
    answers = []
    for body, content_type, accept in requests:
        try:
            data = inference.input_fn(body.encode(), content_type)
            answer = inference.output_fn(inference.predict_fn(data, model), accept)
            answers.append({"body": base64.b64encode(answer).decode()})
        except ValueError as error:
            answers.append({"error": str(error)})
    joined = join(inference, model, requests) if hasattr(inference, "decoder_fn") else None
    by_engine = getattr(model, "engine", None) is not None
    result = {"version": transformers.__version__, "answers": answers, "joined": joined, "by_engine": by_engine}
    json.dump({**result, "together": getattr(model, "together", None)}, out)


def join(handler: Any, model: Any, requests: list[list[str]]) -> list[str | None]:
    decoder = handler.decoder_fn(model)
    bodies: dict[int, str] = {}

    def step() -> None:
        for place, result in decoder.step():
            bodies[place] = base64.b64encode(handler.output_fn(result, requests[place][2])).decode()

    for place, (body, content_type, _) in enumerate(requests):
        try:
            decoder.add(place, handler.input_fn(body.encode(), content_type))
        except ValueError:
            continue
        step()
    while len(decoder):
        step()
    return [bodies.get(place) for place in range(len(requests))]


if __name__ == "__main__":
    main()
