"""What the graphs of encoders are given for each pass. A graph asks for some of these, by its model:

- `ids`, `types`, `positions`: whole numbers, one for each token;
- `spread` (texts, longest): which token stands at each place; `lengths` (texts): how many of them are real;
  `places` (tokens): where in the spread-out texts each token stands;
- `asked`: the tokens that a head which fills masks answers;
- `firsts` (texts): the first token of each, and `averages` (texts, tokens), which a head takes;
- `distances` (longest, longest): for each two places the bucket of their distance, which MPNet has a number for;
- `relative`: the rows of DeBERTa's table of distances that occur, and `ahead` (twice longest): which of them is that of
  each distance from 1 - longest to longest; `behind`: the same backwards; `real` (texts, longest, 1): 1 where a token
  stands, else 0; and the numbers from which `engine_deberta.py` makes shapes;
- `cosines`, `sines` (longest, half a head) of the rotation by which ModernBERT and NomicBERT mark positions, and
  `window` (1, 1, longest, longest): what ModernBERT adds to attention so that most of its layers see near tokens only.
"""

from itertools import chain

import numpy as np
from engine_builder import MASKED, Encoder, Relative


def inputs(
    encoder: Encoder,
    rows: list[list[int]],
    types: list[list[int]] | None = None,
    asked: list[np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """The inputs of the graph for these texts (their tokens; `types`: their token_type_ids, else all 0). `asked`: the
    places of those tokens of each text that a head answers which is asked for some; None: all of them."""
    lengths = np.array([len(row) for row in rows], np.int32)
    if len(rows) == 1:  # the usual case, of which as little as can be is computed
        ids = np.array(rows[0], np.int64)
        longest = tokens = len(ids)
        starts, rank = _counting(1), _counting(tokens)
        places = rank
    else:
        longest, tokens = int(lengths.max()), int(lengths.sum())
        ids = np.fromiter(chain.from_iterable(rows), np.int64, tokens)
        starts, rank = np.cumsum(lengths) - lengths, _counting(longest)
        places = _counting(tokens) - np.repeat(starts, lengths)  # of each token in its text
    made: dict[str, np.ndarray] = {"ids": ids, "lengths": lengths}
    if tokens == len(rows) * longest:  # nothing is spread out
        made["places"] = _counting(tokens)
        made["spread"] = made["places"].reshape(len(rows), longest)
    else:
        real = rank < lengths[:, None]
        made["places"] = np.flatnonzero(real)
        made["spread"] = np.where(real, starts[:, None] + rank, 0)
    if "firsts" in encoder.inputs:
        made["firsts"] = starts.astype(np.int64)
    if "asked" in encoder.inputs:
        offsets = starts.astype(np.int64)
        own = None if asked is None else [start + at for start, at in zip(offsets, asked, strict=True)]
        made["asked"] = np.arange(tokens) if own is None else np.concatenate(own).astype(np.int64)
    if "averages" in encoder.inputs:
        text = np.repeat(np.arange(len(rows)), lengths)
        made["averages"] = np.zeros((len(rows), tokens), np.float32)
        made["averages"][text, np.arange(tokens)] = (np.float32(1) / lengths.astype(np.float32))[text]
    if "positions" in encoder.inputs:
        made["positions"] = places + encoder.first_position
        if encoder.not_counted is not None and (ids == encoder.not_counted).any():
            made["positions"] = _counted(ids, starts, lengths, encoder)
    if "types" in encoder.inputs:
        flat = None if types is None else chain.from_iterable(types)
        made["types"] = np.zeros(tokens, np.int64) if flat is None else np.fromiter(flat, np.int64, tokens)
    if "distances" in encoder.inputs:
        made["distances"] = _buckets(rank[None, :] - rank[:, None], encoder.buckets)
    if encoder.relative is not None:
        made |= {name: value for name, value in _of_distances(longest, encoder.relative) if name in encoder.inputs}
    if "real" in encoder.inputs:
        made["real"] = (rank < lengths[:, None]).astype(np.float32)[:, :, None]
    for number, rotation in enumerate(encoder.rotations):
        exponents = np.arange(0, rotation.size, 2, dtype=np.float32) / np.float32(rotation.size)
        frequencies = np.float32(1) / np.float32(rotation.theta) ** exponents
        angles = rank.astype(np.float32)[:, None] * frequencies
        made[f"cosines{number}"], made[f"sines{number}"] = np.cos(angles), np.sin(angles)
    if "window" in encoder.inputs:
        near = np.abs(rank[None, :] - rank[:, None]) <= encoder.window
        made["window"] = np.where(near, np.float32(0), np.float32(MASKED))[None, None]
    return made


_numbers = np.arange(512)  # whole numbers from 0, of which passes get as many as they have tokens


def _counting(count: int) -> np.ndarray:
    """np.arange(count), which is not to be written to."""
    global _numbers
    numbers = _numbers
    if count > len(numbers):
        _numbers = numbers = np.arange(2 * count)
    return numbers[:count]


def _counted(ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, encoder: Encoder) -> np.ndarray:
    """Positions where a token that is not counted stands among the others: it has the one before the first."""
    counted = (ids != encoder.not_counted).astype(np.int64)
    before = np.cumsum(counted)
    offsets = np.repeat(before[starts] - counted[starts], lengths)
    return (before - offsets) * counted + encoder.first_position - 1


def _buckets(distances: np.ndarray, buckets: int) -> np.ndarray:
    """MPNet's (and T5's) buckets of distances: near ones have their own, far ones share one by their logarithm, from
    both sides (https://arxiv.org/abs/1910.10683)."""
    half = buckets // 2
    exact = half // 2
    apart = np.abs(distances)
    far = np.log(np.maximum(apart, 1).astype(np.float32) / np.float32(exact)) / np.log(np.float32(128 / exact))
    coarse = np.minimum(exact + (far * (half - exact)).astype(np.int64), half - 1)
    return np.where(distances > 0, half, 0) + np.where(apart < exact, apart, coarse)


def _of_distances(longest: int, relative: Relative) -> list[tuple[str, np.ndarray]]:
    rows, ahead = np.unique(_rows(np.arange(1 - longest, longest + 1), relative), return_inverse=True)
    return [
        ("relative", rows),
        ("ahead", ahead),
        ("behind", np.ascontiguousarray(ahead[::-1])),
        ("longest", np.array([longest])),
        ("before", np.array([longest - 1])),
        ("skewed", np.array([0, 0, -1, 2 * longest - 1])),
    ]


def _rows(distances: np.ndarray, relative: Relative) -> np.ndarray:
    """DeBERTa's: the row of each distance in the table. Beyond half as many distances as there are buckets, the farther
    share one by their logarithm, the farthest (`most`) being the last (https://arxiv.org/abs/2006.03654)."""
    bucketed = distances
    if relative.buckets:
        exact, apart = relative.exact, np.abs(distances)
        far = np.log(np.maximum(apart, exact) / exact) / np.log((relative.most - 1) / exact) * (exact - 1)
        # A whole number stays one, whatever the last bits of the logarithms.
        coarse = np.ceil(far.astype(np.float32)).astype(np.int64) + exact
        bucketed = np.where(apart <= exact, distances, coarse * np.sign(distances))
    return np.clip(bucketed + relative.span, 0, 2 * relative.span - 1)
