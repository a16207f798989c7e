"""A model's forward pass by ONNX Runtime, where that library is there; nothing here needs it to be.

The graph is made when the model loads, in a few milliseconds (`engine_encoders.py`), and its weights stay in the
model's own safetensors files, mapped (`engine_graph.py`). A graph is used only after its answers were compared with
those of transformers and were equal to 1e-5.

`MME_ENGINE=torch` in the environment leaves all models to torch.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import engine_builder
import engine_decoders
import engine_encoders
import engine_inputs
import numpy as np
from engine_graph import Stored, Unsupported, stored_tensors
from engine_heads import NONE, SPANS, TEXTS

# From release 1.30 or so, importing the library starts a thread that reports its use to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime
except ImportError:
    onnxruntime = None

TOLERANCE = 1e-5  # of the largest number that transformers answers, or of 1 where that is less
# How far int8 may be from float32 with the same weights, in times of what torch's int8 is. Both round, and not always
# to the same side: they are as far from each other as either is from float32, but equally far from that.
INT8_ERROR = 1.1
WEIGHTS = "model.safetensors"
# Attention's work grows with the square of the longest text, the rest of a pass with the tokens. Texts share a pass as
# long as what they are spread out to for attention is at most so many times what they need.
SPREAD = 2.0
SMALL_SPREAD = 32 * 1024  # products (texts times the square of the longest) that no pass is parted for
# A pass over more tokens than this is slower for each of them: what passes between layers no longer stays in the
# processor's cache. It bounds the memory, too.
PASS_TOKENS = 256
CHECKED = "MME_ENGINE_CHECKED"  # keys of graphs that have been compared, which a container gives to its workers


@dataclass
class Pace:
    """How long passes take, with one thread and with several: seconds a pass, for passes of like size."""

    seconds: dict[int, float] = field(default_factory=dict)  # by number of threads
    since_tried: int = 0


# A session of several threads takes 15 ms to make and 0.8 MB to keep. It is made once a model has computed so many
# times with pauses shorter than this.
SEVERAL_AFTER = 4
PAUSE = 1.0  # seconds


class Engine:
    """A graph with its sessions: one of a single thread, and one of several where they gain; another with packed
    weights while the model is busy."""

    def __init__(self, graph: Any, folder: Path, facts: str) -> None:
        """`graph` is the graph, with what its inputs are made of. `facts` says what of that the graph does not."""
        self.graph = graph
        self.key = hashlib.blake2b(facts.encode() + graph.structure, digest_size=12).hexdigest()
        self._folder = folder
        self._session_of_one: Any = None
        self._several: tuple[int, Any] | None = None
        self._packed: Any = None
        self._outputs: list[str] | None = None  # the same of all sessions; asking one for them takes time
        self._paces: dict[int, Pace] = {}
        self._in_a_row = 0
        self._ended = 0.0

    def sample(self) -> dict[str, np.ndarray]:
        """Inputs for a small pass."""
        raise NotImplementedError

    # -- more memory for speed, while a server has some to spare (docs/handlers.md, "A busy model") -----------------

    @property
    def bytes(self) -> int:
        """What `begin` takes, about; 0 where it brings nothing."""
        return 0 if self.graph.int8 else self.graph.packed_bytes  # int8 weights are packed as it is

    @property
    def packed(self) -> bool:
        return self._packed is not None

    def begin(self) -> None:
        """Have a copy of the weights in an order that suits the processor. It may be called from another thread while
        `compute` is, which goes on as before until the copy is there. Raises Unsupported where it answers otherwise."""
        packed = _session(self.graph, self._folder, 1, packed=True)
        feed = self.sample()
        got, want = packed.run(None, feed)[0], self._one.run(None, feed)[0]
        if not float(np.abs(got - want).max()) <= TOLERANCE * max(1.0, float(np.abs(want).max())):
            raise Unsupported("packed weights answer otherwise")
        self._paces = {}
        self._packed = packed

    def end(self) -> None:
        """Give the memory back. Passes in other threads end as they began."""
        self._packed = None
        self._paces = {}

    # -- passes -------------------------------------------------------------------------------------------------------

    def compute(self, feed: dict[str, np.ndarray], size: int, threads: int) -> list[np.ndarray]:
        """The graph's outputs for these inputs. `size` is how much work they are: passes that share a highest bit are
        taken for alike. At most `threads` threads compute."""
        if threads == 1 or self.graph.int8:  # a second session would have its own copy of int8 weights
            outputs: list[np.ndarray] = self._session(1).run(self._outputs, feed)
            return outputs
        pace = self._paces.setdefault(size.bit_length(), Pace())
        began = time.perf_counter()
        self._in_a_row = self._in_a_row + 1 if began - self._ended < PAUSE else 1
        chosen = 1 if self._several is None and self._in_a_row <= SEVERAL_AFTER else _choose(pace, threads)
        session = self._session(chosen)
        began = time.perf_counter()
        outputs = session.run(self._outputs, feed)
        self._ended = time.perf_counter()
        _note(pace, chosen, self._ended - began)
        return outputs

    @property
    def _one(self) -> Any:
        if self._session_of_one is None:
            self._session_of_one = _session(self.graph, self._folder, 1)
            self._outputs = [output.name for output in self._session_of_one.get_outputs()]
        return self._session_of_one

    def _session(self, threads: int) -> Any:
        if threads == 1:
            packed = self._packed
            return self._one if packed is None else packed
        several = self._several
        if several is None or several[0] != threads:
            self._several = several = (threads, _session(self.graph, self._folder, threads))
        return several[1]


class Encoding(Engine):
    """An encoder."""

    def __init__(self, encoder: engine_builder.Encoder, folder: Path) -> None:
        facts = f"{encoder.first_position} {encoder.not_counted} {encoder.rotations} {encoder.window}"
        facts += f" {encoder.relative}"
        super().__init__(encoder, folder, f"{onnxruntime.__version__} {facts}")
        self.width = encoder.width
        assert self._one is not None  # it shows at once whether the graph is taken
        if encoder.int8:  # it holds the weights, of which the session has its own copy
            self.graph = replace(encoder, graph=b"", structure=b"")

    def run(
        self,
        rows: list[list[int]],
        threads: int = 1,
        types: list[list[int]] | None = None,
        asked: list[np.ndarray] | None = None,
    ) -> np.ndarray:
        """The last hidden states of all tokens of all texts, one after the other: (tokens, width) float32; where the
        graph has a head, its numbers for each text or token (`asked`: for those places of each text, where it is one
        that fills masks). At most `threads` threads compute."""
        feed = engine_inputs.inputs(self.graph, rows, types, asked)
        return self.compute(feed, len(feed["ids"]), threads)[0]

    def sample(self) -> dict[str, np.ndarray]:
        random = np.random.default_rng(0)
        rows = [random.integers(0, self.graph.vocabulary, length).tolist() for length in (11, 1, 3)]
        return engine_inputs.inputs(self.graph, rows)


class Decoding(Engine):
    """A decoder. Its sessions are made when they are first used."""

    def __init__(self, decoder: engine_decoders.Decoder, folder: Path) -> None:
        super().__init__(
            decoder, folder, f"{onnxruntime.__version__} decoder {decoder.layers} {decoder.heads} {decoder.size}"
        )

    def step(
        self,
        ids: np.ndarray,
        mask: np.ndarray,
        positions: np.ndarray,
        cache: list[np.ndarray] | None,
        threads: int = 1,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """The last column's logits (rows, vocabulary), and the cache with these tokens in it; see
        engine_decoders.inputs."""
        feed = engine_decoders.inputs(self.graph, ids, mask, positions, cache)
        logits, *longer = self.compute(feed, ids.size, threads)
        return logits, longer

    def sample(self) -> dict[str, np.ndarray]:
        ids = np.arange(6).reshape(2, 3) % self.graph.vocabulary
        mask = np.array([[1, 1, 1], [0, 1, 1]])
        return engine_decoders.inputs(self.graph, ids, mask, np.maximum(mask.cumsum(1) - 1, 0), None)


# How much of a pass's time counts against those before it.
NEWEST = 0.3
# The slower way is tried again once that costs no more than this share of the time since the last try: where it takes
# half as long again, after 50 passes, and where it takes three times as long, after 200. So few answers are slow for it
# that the slowest hundredth of all is not made of them. At the least after so many passes, at the most after so many.
TRY_COST = 0.01
TRY_EVERY, TRY_EVERY_MOST = 24, 240


def _choose(pace: Pace, threads: int) -> int:
    """How many threads for the next pass: what was faster lately. Another process on one of the cores makes threads
    that wait for each other slower than one alone, and only time shows it."""
    if threads not in pace.seconds:
        return threads
    if 1 not in pace.seconds:
        return 1
    best, other = (threads, 1) if pace.seconds[threads] < pace.seconds[1] else (1, threads)
    pace.since_tried += 1
    loses = pace.seconds[other] / pace.seconds[best] - 1 if pace.seconds[best] else 0.0
    if pace.since_tried >= min(max(TRY_EVERY, loses / TRY_COST), TRY_EVERY_MOST):
        pace.since_tried = 0
        return other
    return best


def _note(pace: Pace, threads: int, seconds: float) -> None:
    before = pace.seconds.get(threads, seconds)
    # What is much slower than before says at once that the cores are not ours alone.
    pace.seconds[threads] = before + max(NEWEST, min(1.0, seconds / before - 1) if before else 1.0) * (seconds - before)


def batches(order: list[int], rows: Sequence[Sized], most: int) -> list[list[int]]:
    """Split `order` (longest row first) into passes of at most `most` tokens, unless a single row has more, with
    attention mostly over tokens."""
    most = min(most, PASS_TOKENS)
    made: list[list[int]] = []
    tokens = needed = longest = 0
    for row in order:
        length = len(rows[row])
        if made and tokens + length <= most:
            spread = (len(made[-1]) + 1) * longest**2
            if spread <= max(SMALL_SPREAD, SPREAD * (needed + length**2)):
                made[-1].append(row)
                tokens += length
                needed += length**2
                continue
        made.append([row])
        tokens, needed, longest = length, length**2, length
    return made


def load(
    folder: Path,
    config: Any,
    weights: str = WEIGHTS,
    head: str = NONE,
    int8: bool = False,
    adapter: engine_builder.Adapter = engine_builder.NO_ADAPTER,
) -> Encoding:
    """The engine of the model in this folder, with transformers' configuration of it and its weights in the file
    `weights`; with this `head` (engine_heads.py). With `int8`, linear layers
    compute in int8 also where their weights are float32. What the `adapter` adds to layers is float32. Raises
    Unsupported, with the reason, where it is better left to torch. The answers are still to be compared (`differs`)."""
    _wanted()
    tensors, real = _tensors(folder, weights)
    encoder = engine_encoders.encoder(config, tensors, real, head, int8, adapter)
    try:
        return Encoding(encoder, real)
    except Exception as error:  # whatever onnxruntime raises: its exceptions have no base of their own
        raise Unsupported(f"onnxruntime refuses the graph: {error}") from None


def load_decoder(folder: Path, config: Any, adapter: engine_builder.Adapter = engine_builder.NO_ADAPTER) -> Decoding:
    """The same for a decoder, whose answers are compared by `decodes_otherwise`."""
    _wanted()
    tensors, real = _tensors(folder, WEIGHTS)
    return Decoding(engine_decoders.decoder(config, tensors, adapter), real)


def _wanted() -> None:
    if onnxruntime is None:
        raise Unsupported("onnxruntime is not installed")
    if os.environ.get("MME_ENGINE", "").strip().lower() == "torch":
        raise Unsupported("MME_ENGINE is torch")


def checked(engine: Engine) -> bool:
    """Whether this very graph, for weights of these shapes and at these places, is known to be equal."""
    return engine.key in os.environ.get(CHECKED, "").split()


def compared(compare: Callable[[], str | None]) -> str | None:
    """What `compare` returns, called in a process of its own, which ends with all that transformers' model took. Where
    there can be none (this one has several threads), or it fails, `compare` is called here."""
    try:
        single = len(list(Path("/proc/self/task").iterdir())) == 1
    except OSError:
        single = False
    if not single:
        return compare()
    reading, writing = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        return compare()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w", encoding="utf-8") as pipe:
                json.dump(compare(), pipe)
            status = 0
        finally:
            os._exit(status)  # whatever it raises: it is raised below again, if it was no accident
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        text = pipe.read()
    if os.waitpid(pid, 0)[1] != 0:
        return compare()
    result: str | None = json.loads(text)
    return result


def typed(tokenizer: Any, config: Any) -> bool:
    """Whether the two texts of a pair differ in the types of their tokens."""
    return "token_type_ids" in tokenizer.model_input_names and getattr(config, "type_vocab_size", 0) > 1


def differs(
    engine: Encoding,
    model: Any,
    longest: int,
    typed: bool = False,
    exactly: Callable[[Any], AbstractContextManager[None]] = nullcontext,
) -> str | None:
    """None where the engine answers as `model`, transformers' own, does: to 1e-5, for texts of different lengths up to
    `longest` tokens, the second half of each of another type where they are `typed`. In int8 it is to be as near to
    float32 as `model` is, which computes in float32 with the same weights while `exactly(model)` is entered
    (handler_int8.py has it). Else what differs."""
    random = np.random.default_rng(0)
    wanted = [1, 3, 11, 24, 2 * engine.graph.window + 9]
    if engine.graph.relative is not None and engine.graph.relative.exact + 9 <= longest:
        wanted.append(engine.graph.relative.exact + 9)  # with tokens so far apart that distances share a row
    lengths = sorted({min(longest, length) for length in wanted}, reverse=True)
    rows = [random.integers(0, engine.graph.vocabulary, length).tolist() for length in [*lengths, lengths[-1]]]
    types = [[0] * (len(row) - len(row) // 2) + [1] * (len(row) // 2) for row in rows] if typed else None
    try:
        got = engine.run(rows, 1, types)
    except Exception as error:  # whatever onnxruntime raises
        return f"it fails: {error}"
    want = _answers(model, rows, types, engine.graph.head)
    if engine.graph.int8:
        with exactly(model):
            exact = _answers(model, rows, types, engine.graph.head)
        ours, torchs = _error(got, exact), _error(want, exact)
        if not ours <= INT8_ERROR * torchs + TOLERANCE:
            return f"its int8 is {ours:.2g} from float32, and torch's {torchs:.2g}"
        return None
    ends = np.cumsum([1 if engine.graph.head == TEXTS else len(row) for row in rows])[:-1]
    for states, own in zip(np.split(got, ends), np.split(want, ends), strict=True):
        apart, bound = float(np.abs(states - own).max()), TOLERANCE * max(1.0, float(np.abs(own).max()))
        if not apart <= bound:  # so that NaN does not pass
            return f"its answers differ by {apart:.2g} where {bound:.2g} is allowed"
    return None


def _answers(model: Any, rows: list[list[int]], types: list[list[int]] | None, head: str) -> np.ndarray:
    """What transformers' `model` answers to each row alone, in the order of `Encoding.run`."""
    import torch

    answers = []
    for place, row in enumerate(rows):
        ids = torch.tensor([row])
        arguments = {"token_type_ids": torch.tensor([types[place]])} if types else {}
        with torch.inference_mode():
            answer = model(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments)
        if head == SPANS:
            numbers = torch.stack([answer.start_logits[0], answer.end_logits[0]], 1)
        else:
            numbers = answer.last_hidden_state[0] if head == NONE else answer.logits.flatten(0, -2)
        answers.append(numbers.float().numpy())
    return np.concatenate(answers)


def _error(states: np.ndarray, exact: np.ndarray) -> float:
    """How far the numbers are from the exact ones, of the size of those (root of mean squares)."""
    return float(np.linalg.norm(states - exact) / max(np.linalg.norm(exact), np.finfo(np.float32).tiny))


def decodes_otherwise(engine: Decoding, model: Any) -> str | None:
    """None where the engine answers as `model`, transformers' own, does: to 1e-5, for two prompts of which one is
    padded, and one token more. Else what differs."""
    import torch

    random = np.random.default_rng(0)
    mask = np.ones((2, 9), np.int64)
    mask[1, :4] = 0
    ids = random.integers(0, engine.graph.vocabulary, (2, 9))
    cache, own = None, None
    for columns in (8, 1):
        until = 8 if columns == 8 else 9
        new, seen = ids[:, until - columns : until], mask[:, :until]
        positions = np.maximum(seen.cumsum(1) - 1, 0)[:, -columns:]
        try:
            got, cache = engine.step(new, seen, positions, cache)
        except Exception as error:  # whatever onnxruntime raises
            return f"it fails: {error}"
        with torch.inference_mode():
            answer = model(
                input_ids=torch.from_numpy(new),
                attention_mask=torch.from_numpy(seen),
                position_ids=torch.from_numpy(positions),
                past_key_values=own,
                use_cache=True,
            )
        own = answer.past_key_values
        want = answer.logits[:, -1].float().numpy()
        apart, bound = float(np.abs(got - want).max()), TOLERANCE * max(1.0, float(np.abs(want).max()))
        if not apart <= bound:  # so that NaN does not pass
            return f"its answers differ by {apart:.2g} where {bound:.2g} is allowed"
    return None


def _tensors(folder: Path, weights: str) -> tuple[dict[str, Stored], Path]:
    """Every tensor of the model's weights, and the folder in which the files really lie."""
    names = [weights]
    if not (folder / weights).is_file():
        try:
            index = json.loads((folder / f"{weights}.index.json").read_text(encoding="utf-8"))
            names = sorted(set(index["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise Unsupported(f"it has no {weights}") from None
    real = {(folder / name).resolve().parent for name in names}
    if len(real) != 1 or any((folder / name).resolve().name != name for name in names):
        raise Unsupported("its weights are links to elsewhere")
    tensors: dict[str, Stored] = {}
    for name in names:
        tensors.update(stored_tensors(folder, name))
    return tensors, real.pop()


def _session(graph: Any, folder: Path, threads: int, packed: bool = False) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # What a pass takes is given back after it. Unless `packed`, float32 weights stay where they are mapped instead of
    # being copied into an order that suits the processor better; those in int8 are the session's own in any case.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    )  # it is written as it is to run
    options.add_session_config_entry("session.disable_prepacking", "0" if graph.int8 or packed else "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph.graph, options, providers=["CPUExecutionProvider"])
