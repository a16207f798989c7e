"""How far a model's answers move when its weights are stored in fewer bits: measured on real sentences, and bounded.

The answers that will be served are compared: those of the model's handler, with the model as the archive will hold it,
against those of the same handler in float32 on the original weights. Where the handler is not one of this project's
kinds, or there is none, the model's outputs are compared.

Two models are loaded, one after the other, in a separate process, so that their memory is given back:

    python -m mme.snapshot.accuracy REQUEST.json ANSWER.json
"""

from __future__ import annotations

import gc
import importlib
import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mme.errors import SourceError
from mme.handler_files import copy_handler
from mme.runner.process import run_guarded
from mme.snapshot import adapters, libraries
from mme.snapshot.portable import has_tokenizer

# Prose of several lengths, questions, numbers, code, other languages and scripts: what a tokenizer treats differently.
TEXTS = (
    "The house was quiet, and nobody was at home.",
    "Rain.",
    "What is the capital of France, and how many people live there?",
    "How do I reset my password?",
    "In 2019, revenue rose by 12.5 % to $3,400,000; costs fell by 7 %.",
    "Two dogs run across a wet field after a red ball.",
    "Take one tablet twice a day with water, and see your doctor if the pain has not gone after three days.",
    "def add(a, b):\n    return a + b  # the sum",
    "TypeError: unsupported operand type(s) for +: 'int' and 'str'",
    "Les élèves étaient déjà partis quand il est arrivé à l'école.",
    "Der Zug nach Hamburg hat zwanzig Minuten Verspätung.",
    "今日は天気がいいですね。",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful property "
    "of some one or other of their daughters.",
)
MOST_TOKENS = 64  # of a text, where a model's outputs for each token are compared

# What is compared -> how it is called, which figure is bounded, and the bound where the catalogue has none.
VECTORS, OUTPUTS, CHOICES = "vectors", "outputs", "choices"
BOUNDED = {VECTORS: "worst", OUTPUTS: "worst", CHOICES: "mean"}
DEFAULT_BOUND = {VECTORS: 0.01, OUTPUTS: 0.01, CHOICES: 0.05}
# What float32 itself loses when sums are taken in another order. int8 loses much more.
ROUNDING = {VECTORS: 1e-11, OUTPUTS: 1e-11, CHOICES: 1e-5}
WORDS = {VECTORS: "1 - cosine of the vectors", OUTPUTS: "1 - cosine of the outputs", CHOICES: "probability that moved"}


@dataclass(frozen=True)
class Side:
    """A model to be asked: its folder, and the settings for its handler."""

    folder: Path
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Accuracy:
    """How far the answers of a model in ``form`` (such as "int8") are from the exact ones; 0 is the same.

    ``measure`` says what was compared. "vectors": the sentence vectors that the handler answers, and "outputs": the
    model's outputs for each token, as 1 - cosine similarity (2 is the opposite). "choices": the probabilities of the
    next token, or of the label, as the share of the probability that moved from one to another (1 is all of it).
    ``bounded`` names the figure that must not be above ``bound``: the worst or the mean. ``same_choice`` is the share
    of first choices that stay the same; None where nothing is chosen.
    """

    form: str
    against: str
    measure: str
    worst: float
    mean: float
    same_choice: float | None
    bounded: str
    bound: float

    @property
    def exceeds_bound(self) -> bool:
        return not getattr(self, self.bounded) <= self.bound

    @property
    def nothing(self) -> bool:
        """Whether there is no difference."""
        return self.worst < ROUNDING[self.measure]

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def words(accuracy: Mapping[str, Any]) -> str:
    """What a manifest says of a model's accuracy, for people."""
    measure = str(accuracy.get("measure", OUTPUTS))
    form = f"{accuracy['form']}: " if "form" in accuracy else ""
    text = (
        f"{form}{WORDS.get(measure, measure)} against {accuracy.get('against')}: "
        f"{float(accuracy.get('worst', 0)):.2g} at worst, {float(accuracy.get('mean', 0)):.2g} on average"
    )
    choice = accuracy.get("same_choice")
    text = text if choice is None else f"{text}; the same first choice in {100 * float(choice):.1f} %"
    return f"{text} (bound: {accuracy['bound']:g} {_figure(accuracy)})" if "bound" in accuracy else text


def _figure(accuracy: Mapping[str, Any]) -> str:
    return "at worst" if accuracy.get("bounded") == "worst" else "on average"


def measure(
    before: Side,
    after: Side,
    *,
    handler: Path | None,
    kind: str,
    work: Path,
    form: str,
    against: str,
    max_error: float | None,
    trust: bool = False,
    path: Sequence[Path] = (),
) -> Accuracy:
    """Ask both, and compare. ``handler`` is the folder of a handler that can be asked; without one, ``kind``, a class
    of transformers, is loaded, with code of its own if ``trust``. ``work`` is a new folder for what is needed
    meanwhile. ``path`` has further folders to import from. Raises SourceError when a side cannot be loaded or asked.
    """
    work.mkdir()
    code = work / "code"
    if handler is not None:  # as the archive will hold it
        code.mkdir()
        copy_handler(handler, code)
    sides = [_linked(side, work / name) for side, name in ((before, "before"), (after, "after"))]
    request = {
        "sides": [str(side) for side in sides],
        "handler": handler is not None,
        "kind": kind,
        "trust": trust,
        "path": [str(folder) for folder in ([code] if handler else []) + list(path)],
    }
    (work / "request.json").write_text(json.dumps(request), encoding="utf-8")
    environment = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_VISIBLE_DEVICES": "",  # the same figures wherever it is packaged; and int8 is for the CPU alone
        "MME_FORMAT": "asked",  # the cost where the format is computed in, even if this machine would choose another
        **({"HF_TRUST_REMOTE_CODE": "true"} if trust else {}),
    }
    words = [sys.executable, "-m", __spec__.name, str(work / "request.json"), str(work / "answer.json")]
    done = run_guarded(words, work, environment)
    try:
        answer = json.loads((work / "answer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = done.stderr.strip().splitlines()
        killed = done.returncode == 128 + signal.SIGKILL  # as the kernel does where memory runs out
        reason = "there is not enough memory to load the model" if killed else f"its process ended ({done.returncode})"
        answer = {"error": said[-1] if said and not killed else reason}
    if "error" in answer:
        raise SourceError(
            f"The accuracy cannot be measured: {answer['error']}.",
            "Without dtype and quantize in its table, the model is packed as it is, and nothing is measured.",
        )
    name = answer["measure"]
    return Accuracy(
        form=form,
        against=against,
        measure=name,
        worst=answer["worst"],
        mean=answer["mean"],
        same_choice=answer["same_choice"],
        bounded=BOUNDED[name],
        bound=DEFAULT_BOUND[name] if max_error is None else max_error,
    )


def _linked(side: Side, folder: Path) -> Path:
    """A folder as a handler gets it, with links to the model's files."""
    (folder / "code").mkdir(parents=True)
    for item in side.folder.iterdir():
        (folder / item.name).symlink_to(item.resolve())
    (folder / "code" / "settings.json").write_text(json.dumps(dict(side.settings)), encoding="utf-8")
    return folder


# --- in the process that measures ----------------------------------------------------------------------------------


def main(request: Path, answer: Path) -> None:
    asked = json.loads(request.read_text(encoding="utf-8"))
    sys.path[:0] = asked["path"]
    before, after = asked["sides"]
    try:
        with libraries.quiet():
            exact = outputs(Path(before), asked["handler"], asked["kind"], asked["trust"])
            gc.collect()  # the first model is freed before the second is loaded
            said = asdict(compare(exact, outputs(Path(after), asked["handler"], asked["kind"], asked["trust"])))
    except Exception as error:
        said = {"error": libraries.first_line(error)}
    partial = answer.with_suffix(".partial")
    partial.write_text(json.dumps(said), encoding="utf-8")
    partial.rename(answer)


@dataclass(frozen=True)
class Outputs:
    """Rows of float32 numbers; ``measure`` says what they are."""

    measure: str
    rows: tuple[Any, ...]


@dataclass(frozen=True)
class Difference:
    measure: str
    worst: float
    mean: float
    same_choice: float | None


def outputs(folder: Path, handler: bool, kind: str, trust: bool) -> Outputs:
    """The answers of the model in ``folder`` to each of the texts: through the handler that can be imported, or as
    transformers loads it. The model is loaded here and freed afterwards."""
    import torch

    if not handler:
        return _plain(folder, kind, trust)
    module = importlib.import_module("inference")
    loaded = module.model_fn(str(folder))
    asked = module.predict_fn(module.input_fn(json.dumps(list(TEXTS[:1])), "application/json"), loaded)
    if isinstance(asked, dict) and "embeddings" in asked:
        # Each alone, and all of them in one request, as clients may send them.
        requests = [[text] for text in TEXTS] + [list(TEXTS)]
        return Outputs(
            VECTORS,
            tuple(torch.tensor(_answer(module, loaded, texts)["embeddings"]).float() for texts in requests),
        )
    model, tokenizer = (getattr(loaded, name, None) for name in ("model", "tokenizer"))
    if model is None or tokenizer is None:
        raise ValueError("what the handler's model_fn returns has no model and tokenizer to ask")
    return _raw(model, tokenizer)


def _answer(module: Any, loaded: Any, texts: list[str]) -> Any:
    data = module.input_fn(json.dumps(texts), "application/json")
    return json.loads(module.output_fn(module.predict_fn(data, loaded), "application/json"))


def _plain(folder: Path, kind: str, trust: bool) -> Outputs:
    """Without the handler: the model as transformers loads it, and an adapter that is kept apart with it."""
    import transformers
    from transformers import AutoTokenizer

    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust}
    factory = getattr(transformers, kind, transformers.AutoModel)
    model = factory.from_pretrained(folder, **options, **{"dtype" if version >= (4, 56) else "torch_dtype": "auto"})
    tokenized = has_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, **options) if tokenized else None
    adapter = folder / adapters.FOLDER
    with adapters.attached(adapters.fit(model, adapter, "The adapter") if adapter.is_dir() else None):
        return _raw(model.eval(), tokenizer)


def _raw(model: Any, tokenizer: Any | None) -> Outputs:
    """Probabilities where the model chooses among tokens or labels; else its outputs for each token."""
    import torch

    rows = []
    measure = OUTPUTS
    with torch.inference_mode():
        for inputs in _inputs(model, tokenizer):
            try:
                output = model(**inputs)
            except RuntimeError:  # some operation has no such number format on a CPU: look at the rounded weights alone
                if model.dtype == torch.float32:
                    raise
                output = model.float()(**inputs)
            logits = getattr(output, "logits", None)
            first = (output[0] if logits is None else logits).float()
            if logits is not None:
                measure = CHOICES
                first = first.softmax(dim=-1)
            rows.append(first.reshape(-1, first.shape[-1]))
    return Outputs(measure, tuple(rows))


def _inputs(model: Any, tokenizer: Any | None) -> Iterator[dict[str, Any]]:
    if tokenizer is None:
        yield dict(model.dummy_inputs)
        return
    limit = min(MOST_TOKENS, int(getattr(model.config, "max_position_embeddings", None) or MOST_TOKENS))
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=limit)["input_ids"]
        if ids.numel():
            encoder = getattr(model.config, "is_encoder_decoder", False)
            yield {"input_ids": ids, **({"decoder_input_ids": ids} if encoder else {})}


def compare(before: Outputs, after: Outputs) -> Difference:
    """NaN anywhere counts as the largest difference."""
    import torch

    errors, same = [], []
    for one, other in zip(before.rows, after.rows, strict=True):
        a, b = one.double(), other.double()
        if before.measure == CHOICES:
            errors.append((a - b).abs().sum(dim=-1) / 2)
            same.append(a.argmax(-1) == b.argmax(-1))
        else:
            errors.append(1 - torch.nn.functional.cosine_similarity(a, b, dim=-1))
    errors_of_all = torch.cat(errors).nan_to_num(nan=1.0 if before.measure == CHOICES else 2.0).clamp_(min=0.0)
    return Difference(
        before.measure,
        float(errors_of_all.max()),
        float(errors_of_all.mean()),
        float(torch.cat(same).double().mean()) if same else None,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
