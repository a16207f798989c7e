"""Handlers written for the Hugging Face toolkit run here unchanged; batching and errors."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from container_process import Container, background, wait_until

Make = Callable[..., Path]


def test_all_four_functions_and_what_they_get(container: Container, handler: Make) -> None:
    source = """
        import json
        def model_fn(model_dir):
            return {"dir": model_dir}
        def input_fn(data, content_type):
            return {"type": type(data).__name__, "content_type": content_type}
        def predict_fn(data, model):
            return {**data, **model}
        def output_fn(prediction, accept):
            return json.dumps({**prediction, "accept": accept})
    """
    folder = handler("four", source)
    assert container.load("four", folder).status == 200
    answer = container.invoke("four", "{}", Content_Type="application/json; charset=utf-8", Accept="text/plain")
    assert answer.json() == {
        "type": "str",
        "content_type": "application/json; charset=utf-8",
        "dir": str(folder),
        "accept": "text/plain",
    }
    assert answer.headers["content-type"] == "text/plain"
    assert container.invoke("four", b"\xff", Content_Type="application/x-image").json()["type"] == "bytes"
    assert container.invoke("four", Accept="*/*").json()["accept"] == "application/json"


def test_context_as_a_trailing_argument(container: Container, handler: Make) -> None:
    source = """
        def model_fn(model_dir, context):
            return context.system_properties["model_dir"]
        def input_fn(data, content_type, context):
            return context.get_request_header(0, "X-Amzn-SageMaker-Custom-Attributes")
        def predict_fn(data, model, context):
            return {"attributes": data, "dir": model, "name": context.model_name}
        def output_fn(prediction, accept, context):
            context.set_response_content_type(0, "application/vnd.own+json")
            return str(prediction)
    """
    folder = handler("context", source)
    assert container.load("context", folder).status == 200
    answer = container.invoke("context", X_Amzn_SageMaker_Custom_Attributes="trace=7")
    assert answer.body.decode() == str({"attributes": "trace=7", "dir": str(folder), "name": "context"})
    assert answer.headers["content-type"] == "application/vnd.own+json"


def test_transform_fn(container: Container, handler: Make) -> None:
    source = """
        def model_fn(model_dir):
            return 3
        def transform_fn(model, data, content_type, accept):
            return str(model * int(data)), "text/times"
    """
    assert container.load("times", handler("times", source)).status == 200
    answer = container.invoke("times", "14")
    assert (answer.body, answer.headers["content-type"]) == (b"42", "text/times")
    assert container.invoke("times", "x").status == 400


def test_libraries_that_travel_in_the_archive_are_each_models_own(container: Container, handler: Make) -> None:
    source = """
        from helper import WHO
        import inner.deep
        def model_fn(d): return None
        def predict_fn(data, model): return [WHO, inner.deep.WHO]
    """
    for who in ("one", "two"):
        text = f"WHO = {who!r}"
        folder = handler(who, source, code__helper_dot_py=text, code__inner__deep_dot_py=text)
        assert container.load(who, folder).status == 200
    for who in ("one", "two", "one"):
        assert container.invoke(who).json() == [who, who]


def test_another_program_name(start: Callable[..., Container], handler: Make) -> None:
    container = start(SAGEMAKER_PROGRAM="serve_me.py")
    folder = handler("own", None, code__serve_me_dot_py="def model_fn(d): return 1\ndef predict_fn(d, m): return m")
    assert container.load("own", folder).status == 200
    assert container.invoke("own").json() == 1


def save_classifier(folder: Path) -> list[dict[str, object]]:
    """A tiny sentiment model as transformers saves it; what its pipeline answers for "three one two"."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, pipeline

    torch.manual_seed(5)
    small = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    labels = {0: "good", 1: "bad"}
    config = BertConfig(**small, intermediate_size=64, id2label=labels, label2id={v: k for k, v in labels.items()})
    BertForSequenceClassification(config).save_pretrained(folder)
    words = {word: n for n, word in enumerate(("[PAD]", "[UNK]", "one", "two", "three"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    answer: list[dict[str, object]] = pipeline("text-classification", model=str(folder))("three one two")
    return answer


def test_no_handler_at_all(container: Container, handler: Make) -> None:
    """The task follows from the architecture; parameters go to the pipeline's call."""
    folder = handler("plain", None)
    expected = save_classifier(folder)
    assert container.load("plain", folder).status == 200
    for body in ({"inputs": "three one two"}, "three one two"):
        answer = container.invoke("plain", json.dumps(body)).json()
        assert answer == [{**expected[0], "score": pytest.approx(expected[0]["score"], abs=1e-6)}]
    both = container.invoke("plain", json.dumps({"inputs": "three one two", "parameters": {"top_k": 2}})).json()
    assert sorted(row["label"] for row in both) == ["bad", "good"]


def test_no_handler_and_the_task_by_name(start: Callable[..., Container], handler: Make) -> None:
    container = start(HF_TASK="feature-extraction", MME_PRELOAD="torch,transformers")
    folder = handler("plain", None)
    save_classifier(folder)
    assert container.load("plain", folder).status == 200
    vectors = container.invoke("plain", json.dumps({"inputs": "three one two"})).json()
    assert np.shape(vectors) == (1, 3, 32)


def test_some_of_the_functions_and_the_task_of_the_model(container: Container, handler: Make) -> None:
    """A handler may leave out model_fn: its predict_fn gets the pipeline."""
    folder = handler("some", "def predict_fn(data, model): return [type(model).__name__, model(data)[0]['label']]")
    label = save_classifier(folder)[0]["label"]
    assert container.load("some", folder).status == 200
    assert container.invoke("some", '"three one two"').json() == ["TextClassificationPipeline", label]


VALUES = """
    import datetime
    import numpy as np
    import torch
    def model_fn(d): return None
    def predict_fn(data, model):
        return {
            "array": np.arange(3),
            "tensor": [torch.ones(2)],
            "number": np.float32(0.5),
            "date": datetime.date(2026, 1, 2),
            "text": "ü",
            "table": [{"a": 1, "b": 2}, {"a": 3, "b": 4}],
            "nan": float("nan"),
            "object": object(),
            "objects": [{"a": 1}],
        }[data]
"""


def test_default_encoding(container: Container, handler: Make) -> None:
    assert container.load("values", handler("values", VALUES)).status == 200
    for wanted, value in {
        "array": [0, 1, 2],
        "tensor": [[1.0, 1.0]],
        "number": 0.5,
        "date": "2026-01-02",
        "text": "ü",
    }.items():
        assert container.invoke("values", json.dumps(wanted)).json() == value
    npy = container.invoke("values", '"array"', Accept="application/x-npy")
    assert np.load(io.BytesIO(npy.body), allow_pickle=False).tolist() == [0, 1, 2]
    assert npy.headers["content-type"] == "application/x-npy"
    assert container.invoke("values", '"table"', Accept="text/csv").body.decode().split() == ["a,b", "1,2", "3,4"]
    assert container.invoke("values", '"objects"', Accept="application/x-npy").status == 406
    assert container.invoke("values", '"array"', Accept="video/mp4").status == 406
    assert container.invoke("values", '"nan"').status == 400
    assert container.invoke("values", '"object"').status == 500


def test_default_decoding(container: Container, handler: Make) -> None:
    source = """
        def model_fn(d): return None
        def predict_fn(data, model): return data
    """
    assert container.load("same", handler("same", source)).status == 200
    buffer = io.BytesIO()
    np.save(buffer, np.ones((2, 2)))
    assert container.invoke("same", buffer.getvalue(), Content_Type="application/x-npy").json() == [[1.0, 1.0]] * 2
    assert container.invoke("same", "inputs\none\ntwo\n", Content_Type="text/csv").json() == {"inputs": ["one", "two"]}
    assert container.invoke("same", "1,2\n", Content_Type="text/csv").status == 400
    assert container.invoke("same", "{", Content_Type="application/json").status == 400
    assert container.invoke("same", b"\xff\xfe", Content_Type="application/json").status == 400
    assert container.invoke("same", "x", Content_Type="video/mp4").status == 415


def test_a_pickle_in_an_array_is_refused(container: Container, handler: Make, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "owned"),))

    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil()], dtype=object), allow_pickle=True)
    source = "def model_fn(d): return None\ndef predict_fn(data, model): return data"
    assert container.load("same", handler("same", source)).status == 200
    assert container.invoke("same", buffer.getvalue(), Content_Type="application/x-npy").status == 400
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        ("ValueError('text is missing')", 400),
        ("MemoryError('text is missing')", 507),
        ("RuntimeError('CUDA out of memory: text is missing')", 507),
        ("RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate: text is missing')", 507),
        ("RuntimeError('CUDA error: CUBLAS_STATUS_NOT_INITIALIZED in cublasCreate(h): text is missing')", 507),
        ("KeyError('text is missing')", 500),
        ("SystemExit('text is missing')", 500),
    ],
)
def test_what_a_handler_raises(container: Container, handler: Make, raised: str, status: int) -> None:
    source = f"""
        def model_fn(d): return None
        def predict_fn(data, model):
            if data: raise {raised}
            return "fine"
    """
    assert container.load("raises", handler("raises", source)).status == 200
    answer = container.invoke("raises", "1")
    assert answer.status == status
    assert answer.json()["code"] == status
    assert "text is missing" in answer.json()["message"]
    assert container.invoke("raises", "0").json() == "fine"  # the model serves on


BATCH = """
    import os, time
    def model_fn(d): return []
    def input_fn(data, content_type): return data
    def tokens_fn(data, model): return 0 if data.startswith("alone") else len(data)
    def predict_fn(data, model): raise AssertionError("batch_fn stands in for it")
    def batch_fn(inputs, model):
        if inputs == ["hold"]:
            open(HELD, "w").close()
            while not os.path.exists(GO): time.sleep(0.005)
        if any(text == "poison" for text in inputs): raise ValueError("poison")
        return [KeyError("own") if text == "own" else [text, len(inputs)] for text in inputs]
"""


@pytest.fixture
def batching(handler: Make, tmp_path: Path) -> Path:
    source = f"HELD, GO = {str(tmp_path / 'held')!r}, {str(tmp_path / 'go')!r}\n"
    folder = handler("batch", BATCH)
    script = folder / "code" / "inference.py"
    script.write_text(source + script.read_text())
    return folder


def held(container: Container, tmp_path: Path, texts: list[str]) -> list[object]:
    """Send the texts while the model is held up by an earlier request, so that they gather; their answers."""
    first = background(container.invoke, "batch", "hold")
    wait_until((tmp_path / "held").exists)
    later = []
    for count, text in enumerate(texts, 2):
        later.append(background(container.invoke, "batch", text))
        wait_until(lambda count=count: container.metric('mme_model_open_requests{model="batch"}') == count)
    (tmp_path / "go").touch()
    assert first.result().json() == ["hold", 1]
    return [answer.result() for answer in later]


def test_requests_that_gather_are_one_batch(container: Container, batching: Path, tmp_path: Path) -> None:
    assert container.load("batch", batching).status == 200
    texts = [f"text-{number}" for number in range(6)]
    assert [answer.json() for answer in held(container, tmp_path, texts)] == [[text, 6] for text in texts]
    assert container.invoke("batch", "alone").json() == ["alone", 1]


def test_a_request_that_costs_nothing_shares_no_batch(container: Container, batching: Path, tmp_path: Path) -> None:
    assert container.load("batch", batching).status == 200
    texts = ["one", "two", "alone 1", "alone 2", "three", "four"]
    sizes = [answer.json()[1] for answer in held(container, tmp_path, texts)]
    assert sizes == [2, 2, 1, 1, 2, 2]


def test_one_bad_request_does_not_spoil_its_batch(container: Container, batching: Path, tmp_path: Path) -> None:
    assert container.load("batch", batching).status == 200
    answers = held(container, tmp_path, ["one", "poison", "own", "two"])
    assert [answer.status for answer in answers] == [200, 400, 500, 200]
    assert [answers[0].json()[0], answers[3].json()[0]] == ["one", "two"]
    assert "poison" in answers[1].json()["message"]


def test_batches_keep_to_the_token_budget(start: Callable[..., Container], batching: Path, tmp_path: Path) -> None:
    container = start(MME_BATCH_TOKENS="30", MME_BATCH_REQUESTS="4")
    assert container.load("batch", batching).status == 200
    # Padded to the longest: 10 + 10 + 10 fit into 30, a fourth does not; one that is too long goes alone; then four
    # small ones, because a batch holds four.
    texts = ["a" * 10, "b" * 10, "c" * 10, "d" * 40, *"efghi"]
    sizes = [answer.json()[1] for answer in held(container, tmp_path, texts)]
    assert sizes == [3, 3, 3, 1, 4, 4, 4, 4, 1]


def test_a_wrong_number_of_results_is_an_error(container: Container, handler: Make) -> None:
    source = "def model_fn(d): return 1\ndef batch_fn(inputs, model): return []"
    assert container.load("short", handler("short", source)).status == 200
    answer = container.invoke("short")
    assert answer.status == 500
    assert "0 results for 1 inputs" in answer.json()["message"]


def test_a_client_that_left_is_dropped_from_the_queue(container: Container, handler: Make, tmp_path: Path) -> None:
    source = f"""
        import os, time
        def model_fn(d): return None
        def input_fn(data, c): return data
        def predict_fn(data, model):
            with open({str(tmp_path / "seen")!r}, "a") as file: file.write(data + "\\n")
            while not os.path.exists({str(tmp_path / "go")!r}): time.sleep(0.005)
            return data
    """
    assert container.load("slow", handler("slow", source)).status == 200
    first = background(container.invoke, "slow", "first")
    wait_until((tmp_path / "seen").exists)
    import http.client

    leaver = http.client.HTTPConnection("127.0.0.1", container.port)
    leaver.request("POST", "/models/slow/invoke", "leaver", {"Content-Type": "application/json"})
    wait_until(lambda: container.metric('mme_model_open_requests{model="slow"}') == 2)
    leaver.close()
    wait_until(lambda: container.metric('mme_model_open_requests{model="slow"}') == 1)
    (tmp_path / "go").touch()
    assert first.result().json() == "first"
    assert container.invoke("slow", "last").json() == "last"
    assert (tmp_path / "seen").read_text().split() == ["first", "last"]


def test_many_clients_each_get_their_own_answer(container: Container, handler: Make) -> None:
    """Models that can be told apart, and requests that can: a mix-up anywhere on the way would show."""
    source = """
        import pathlib
        def model_fn(d): return int(pathlib.Path(d).name)
        def batch_fn(inputs, model): return [model * n for n in inputs]
    """
    factors = [2, 3, 5, 7]
    for factor in factors:
        assert container.load(f"times-{factor}", handler(str(factor), source)).status == 200
    wrong: list[object] = []
    answered: list[int] = []

    def client(seed: int) -> None:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", container.port)
        for step in range(625):
            factor = factors[(seed + step) % 4]
            number = seed * 1000 + step
            connection.request(
                "POST", f"/models/times-{factor}/invoke", str(number), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200 or json.loads(body) != factor * number:
                wrong.append((factor, number, answer.status, body))
            answered.append(number)
        connection.close()

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(answered) == 10_000


def test_where_a_handler_refuses_is_logged_for_its_first_refusals(container: Container, handler: Make) -> None:
    """A ValueError is the client's mistake or the handler's own, so its author sees the line; clients cannot fill the
    log."""
    source = """
        def model_fn(d): return None
        def predict_fn(data, model):
            raise ValueError("a word of this test alone")
    """
    assert container.load("refuses", handler("refuses", source)).status == 200
    for _ in range(30):
        assert container.invoke("refuses", "1").status == 400
    container.wait_for_log(r'inference.py", line \d+, in predict_fn\n.*\n.*ValueError: a word of this test alone')
    assert container.unload("refuses").status == 200
    assert container.log().count("ValueError: a word of this test alone") == 20


CALLED = {
    "options by name": "def predict_fn(data, model, *, factor=2): return data['x'] * factor",
    "further options": "def predict_fn(data, model, **options): return data['x'] * 2 + len(options)",
    "both": "def predict_fn(data, model, *, factor=2, **options): return data['x'] * factor + len(options)",
    "an object": "class Service:\n    def __call__(self, data, model): return data['x'] * 2\npredict_fn = Service()",
    "a wrapper": "f = lambda data, model: data['x'] * 2\ndef predict_fn(*a, **k): return f(*a, **k)",
}


@pytest.mark.parametrize("form", CALLED)
def test_functions_with_options_of_their_own(container: Container, handler: Make, form: str) -> None:
    source = f"def model_fn(model_dir, **options): return len(options)\n{CALLED[form]}\n"
    assert container.load("options", handler("options", source)).status == 200
    assert container.invoke("options", '{"x": 3}').json() == 6


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("async def model_fn(model_dir): return 1", "model_fn is asynchronous"),
        ("async def predict_fn(data, model): return 1", "predict_fn is asynchronous"),
        ("async def output_fn(prediction, accept):\n    yield b'1'", "output_fn is asynchronous"),
        ("def predict_fn(data, model, *, factor): return 1", "none of them by name alone"),
        ("def predict_fn(data, model, one=1, two=2): return 1", "takes 4 arguments"),
    ],
)
def test_functions_that_cannot_be_called_fail_the_load(
    container: Container, handler: Make, source: str, words: str
) -> None:
    """Not each request: invoke package sees it."""
    reply = container.load("uncalled", handler("uncalled", source))
    assert (reply.status, words in reply.json()["message"]) == (500, True), reply.body
