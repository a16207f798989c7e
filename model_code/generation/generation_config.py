"""What the model's generation_config.json says of how it writes, and what of it holds here.

Numbers that a request may give, too, become its defaults. What else changes the tokens that are chosen is left to
transformers' `generate`, which knows all of it. What no version can do without code from the Hub is refused by name.
How long a text is and whether it is sampled are the request's and the settings' to say.
"""

from dataclasses import dataclass
from typing import Any

from generation_options import FRACTIONS, PARAMETERS, check_defaults

WHERE = "generation_config.json: "
# Their names there, and here.
SHARED = {
    **{name: name for name in (*FRACTIONS, "top_k", "no_repeat_ngram_size", "min_new_tokens")},
    **{name: name for name in ("num_beams", "num_return_sequences", "early_stopping")},
    "stop_strings": "stop",
}
# What takes code that transformers loads from the Hub, or leaves out.
REFUSED = ("penalty_alpha", "dola_layers", "num_beam_groups", "diversity_penalty", "constraints", "force_words_ids")
# What changes the tokens and is no parameter of a request: `generate` computes it.
FURTHER = (
    *("min_length", "bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens"),
    *("forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids", "encoder_repetition_penalty"),
    *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "epsilon_cutoff", "eta_cutoff", "top_h"),
    *("watermarking_config", "guidance_scale", "token_healing", "remove_invalid_values"),
)
# Set anew: what a model's maker had for speed, memory or a look inside, and what would hold a request up.
PLAIN = {
    **{"return_dict_in_generate": False, "output_scores": False, "output_logits": False, "output_attentions": False},
    **{"output_hidden_states": False, "prompt_lookup_num_tokens": None, "max_time": None, "use_cache": True},
    **{"assistant_early_exit": None, "do_sample": False},
}
NOTHING: dict[str, tuple[Any, ...]] = {"guidance_scale": (1, 1.0), "encoder_repetition_penalty": (1.0,)}


@dataclass(frozen=True)
class Written:
    """``defaults`` are parameters by their names; ``further`` names what `generate` has to compute."""

    defaults: dict[str, Any]
    further: tuple[str, ...]


def read(config: Any) -> Written:
    """What holds of a model's generation configuration, transformers' own object, which is brought to the rest. Raises
    ValueError for what is refused."""
    values = {name: value for name, value in vars(config).items() if value is not None and not name.startswith("_")}
    for name in REFUSED:
        if values.get(name) not in (None, 0, 0.0, 1 if name == "num_beam_groups" else 0, []):
            raise ValueError(f"{WHERE}{name} is {values[name]!r}, which is not computed here. Take it out of the file.")
    defaults = {ours: values[name] for name, ours in SHARED.items() if values.get(name) not in (None, [])}
    if values.get("do_sample"):  # beams and sequences of a text that is sampled
        defaults.pop("num_return_sequences", None)
        defaults.pop("num_beams", None)
    defaults = {name: value for name, value in defaults.items() if value != PARAMETERS[name]}
    check_defaults(WHERE, defaults)
    none = (None, False, 0, 0.0, [], ())
    further = tuple(n for n in FURTHER if values.get(n) not in none and values[n] not in NOTHING.get(n, ()))
    for name, value in PLAIN.items():
        if hasattr(config, name):
            setattr(config, name, value)
    if values.get("cache_implementation") == "quantized":  # of fewer bits
        config.cache_implementation = None
    return Written(defaults, further)
