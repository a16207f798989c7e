"""Answer requests with a handler as the toolkit calls it, in a process of its own, so on another version.

python answers.py HANDLER_FOLDER MODEL_FOLDER < [[BODY, CONTENT_TYPE, ACCEPT], ...] > {"version": ..., "answers": [...]}
"""

import base64
import json
import sys


def main() -> None:
    handler_folder, model_folder = sys.argv[1:]
    requests = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr
    sys.path.insert(0, handler_folder)
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
    json.dump({"version": transformers.__version__, "answers": answers}, out)


if __name__ == "__main__":
    main()
