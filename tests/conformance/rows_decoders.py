"""Models that write on: with keys and values, with states, and with both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import reference
from rows import Row
from small import BYTES, byte_tokenizer, saved, seed

# Every id there is, so that a tokenizer's ends are the model's.
COMMON = {"vocab_size": BYTES, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {**COMMON, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA |= {"num_key_value_heads": 1, "max_position_embeddings": 256, "head_dim": 8}
GPT2 = {**COMMON, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}
PLAIN = {key: value for key, value in LLAMA.items() if key not in ("num_key_value_heads", "head_dim")}
MOE = {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
MAMBA = {**COMMON, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "conv_kernel": 4}
NEXT = {**MOE, "num_hidden_layers": 4, "linear_num_value_heads": 2, "linear_num_key_heads": 2}
NEXT |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "shared_expert_intermediate_size": 16}
GRIFFIN = {**LLAMA, "num_hidden_layers": 3, "lru_width": 16, "attention_window_size": 32, "conv1d_width": 4}
TEMPLATE = (
    "{% if tools %}{{ '[' + tools[0]['function']['name'] + ']' }}{% endif %}"
    "{% for message in messages %}{{ '<s>' + message['role'] + ':' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}"
)
REQUESTS = [
    {"inputs": text, "parameters": {"max_new_tokens": tokens}}
    for text, tokens in (("It was", 9), ("The house is quiet, and", 6), ("a", 12), ("Nobody is at home. Rain", 4))
]
# Versions of transformers differ in what a state is after a prompt that is shorter than the convolution before it.
LONGER = [request for request in REQUESTS if len(request["inputs"]) >= 4]
CHAT = [
    {"inputs": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who is it?"}], **extra}
    for extra in ({"parameters": {"max_new_tokens": 5}},)
]
JOIN = "requests join"
ALONE = "one by one"


def texts(answer: list[dict[str, Any]]) -> list[str]:
    return [item["generated_text"] for item in answer]


def decoder(kind: str, values: dict[str, Any], template: str | None = None) -> Callable[[Path], None]:
    model, config = kind.split()

    def build(folder: Path) -> None:
        import transformers

        seed()
        made = getattr(transformers, model)(getattr(transformers, config)(**values))
        made.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=2)
        saved(folder, made, byte_tokenizer(template))

    return build


def row(architecture: str, kind: str, values: dict[str, Any], batching: str = JOIN, **more: Any) -> Row:
    template = more.pop("template", None)
    requests = more.pop("requests", LONGER if batching == ALONE else REQUESTS)
    return Row(
        architecture,
        "text-generation",
        decoder(kind, values, template),
        requests,
        reference.continuations,
        batching=batching,
        quantize=True,
        project=texts,
        **more,
    )


ROWS = [
    row("GPT-2", "GPT2LMHeadModel GPT2Config", GPT2, everywhere=True),
    row(
        *("Llama", "LlamaForCausalLM LlamaConfig", LLAMA),
        template=TEMPLATE,
        requests=[*REQUESTS, *CHAT],
        everywhere=True,
    ),
    row("Mistral", "MistralForCausalLM MistralConfig", {**LLAMA, "sliding_window": 8}),
    row("Mixtral", "MixtralForCausalLM MixtralConfig", {**LLAMA, "num_local_experts": 4}),
    row("Qwen2", "Qwen2ForCausalLM Qwen2Config", LLAMA),
    row("Qwen3", "Qwen3ForCausalLM Qwen3Config", LLAMA),
    row("Qwen3 MoE", "Qwen3MoeForCausalLM Qwen3MoeConfig", MOE),
    row("Gemma", "GemmaForCausalLM GemmaConfig", LLAMA),
    row("Gemma 2", "Gemma2ForCausalLM Gemma2Config", {**LLAMA, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    row("Gemma 3", "Gemma3ForCausalLM Gemma3TextConfig", {**LLAMA, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    row("Phi", "PhiForCausalLM PhiConfig", PLAIN),
    row("Phi-3", "Phi3ForCausalLM Phi3Config", {key: value for key, value in LLAMA.items() if key != "head_dim"}),
    row("GPT-NeoX", "GPTNeoXForCausalLM GPTNeoXConfig", PLAIN),
    row("GPT-J", "GPTJForCausalLM GPTJConfig", {**GPT2, "rotary_dim": 4}),
    row(
        *("OPT", "OPTForCausalLM OPTConfig"),
        {**PLAIN, "ffn_dim": 24, "word_embed_proj_dim": 16},
    ),
    row("BLOOM", "BloomForCausalLM BloomConfig", {**COMMON, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    row("Falcon", "FalconForCausalLM FalconConfig", {**PLAIN, "alibi": False, "new_decoder_architecture": False}),
    row("MPT", "MptForCausalLM MptConfig", {**COMMON, "d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 256}),
    row(
        "StableLM",
        "StableLmForCausalLM StableLmConfig",
        {key: value for key, value in LLAMA.items() if key != "head_dim"},
    ),
    row(
        "StarCoder2",
        "Starcoder2ForCausalLM Starcoder2Config",
        {key: value for key, value in LLAMA.items() if key != "head_dim"},
    ),
    row("OLMo 2", "Olmo2ForCausalLM Olmo2Config", LLAMA),
    row("Granite", "GraniteForCausalLM GraniteConfig", LLAMA),
    row("Cohere", "CohereForCausalLM CohereConfig", {key: value for key, value in LLAMA.items() if key != "head_dim"}),
    row(
        "XGLM",
        "XGLMForCausalLM XGLMConfig",
        {**PLAIN, "d_model": 16, "ffn_dim": 24, "num_layers": 2, "attention_heads": 2},
    ),
    row("BioGPT", "BioGptForCausalLM BioGptConfig", PLAIN),
    row("Mamba", "MambaForCausalLM MambaConfig", MAMBA, ALONE, everywhere=True),
    row(
        *("Mamba 2", "Mamba2ForCausalLM Mamba2Config"),
        {**MAMBA, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
        ALONE,
    ),
    row("Falcon Mamba", "FalconMambaForCausalLM FalconMambaConfig", MAMBA, ALONE),
    row("RWKV", "RwkvForCausalLM RwkvConfig", {**COMMON, "hidden_size": 16, "num_hidden_layers": 2}, ALONE),
    row("RecurrentGemma", "RecurrentGemmaForCausalLM RecurrentGemmaConfig", GRIFFIN, ALONE, everywhere=True),
    row("Qwen3-Next", "Qwen3NextForCausalLM Qwen3NextConfig", NEXT, ALONE, everywhere=True),
    row(
        *("Jamba", "JambaForCausalLM JambaConfig"),
        {**LLAMA, "num_hidden_layers": 4, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False},
        ALONE,
    ),
    row(
        *("Bamba", "BambaForCausalLM BambaConfig"),
        {**LLAMA, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1, "mamba_chunk_size": 8}
        | {"attn_layer_indices": [1]},
        ALONE,
    ),
    row(
        *("LFM2", "Lfm2ForCausalLM Lfm2Config"),
        {**LLAMA, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_auto_adjust_ff_dim": False},
        ALONE,
    ),
]
