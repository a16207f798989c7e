"""Train the small GPT-2 in this folder from a text file, on one CPU core in a quarter of an hour.

    python train.py austen.txt            # corpus.py beside this file makes austen.txt
    python train.py my.txt --output DIR   # any other text: paragraphs on one line each, an empty line between two

Headings (CHAPTER, VOLUME, a title in capitals) separate texts. The same text on the same machine with
the same versions of torch and transformers gives the same weights.
"""

import argparse
import json
import math
import re
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

HERE = Path(__file__).parent
END = "<|endoftext|>"
VOCABULARY = 1500
CONTEXT = 256
BATCH = 16
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 100
HELD_OUT = 0.02  # of the texts' tokens, at the end, to measure the loss on


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("text", type=Path)
    arguments.add_argument("--output", type=Path, default=HERE)
    arguments.add_argument("--steps", type=int, default=1600)
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)

    texts = split(options.text.read_text(encoding="utf-8"))
    tokenizer = train_tokenizer(texts)
    stream = torch.tensor(
        [token for text in tokenizer(texts, verbose=False)["input_ids"] for token in [*text, tokenizer.eos_token_id]]
    )
    held_out = int(len(stream) * HELD_OUT)
    model, log = train(stream[:-held_out], stream[-held_out:], tokenizer, options.steps)
    save(model, tokenizer, options.output)
    log = {
        "text": options.text.name,
        "characters": sum(map(len, texts)),
        "tokens": len(stream),
        "steps": options.steps,
        "seed": options.seed,
        "torch": torch.__version__,
        **log,
    }
    (options.output / "training.json").write_text(json.dumps(log, indent=2) + "\n")


def split(text: str) -> list[str]:
    """The texts between headings, each with its paragraphs."""
    texts: list[list[str]] = [[]]
    for paragraph in text.split("\n\n"):
        if re.match(r"(CHAPTER|Chapter|VOLUME|Volume|By |THE END|Finis|FINIS)|[A-Z\s,.0-9()]+$", paragraph):
            texts.append([])
        else:
            texts[-1].append(paragraph)
    return ["\n\n".join(paragraphs) for paragraphs in texts if paragraphs]


def train_tokenizer(texts: list[str]) -> GPT2TokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=sorted(alphabet))
    tokenizer.train_from_iterator(texts, trainer)
    return GPT2TokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END, model_max_length=CONTEXT
    )


def train(
    stream: torch.Tensor, held_out: torch.Tensor, tokenizer: GPT2TokenizerFast, steps: int
) -> tuple[GPT2LMHeadModel, dict[str, object]]:
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
    )
    model = GPT2LMHeadModel(config)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))
    started = time.monotonic()
    losses = []
    for step in range(steps):
        progress = max(0.0, (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS))
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / WARM_UP_STEPS)
            group["lr"] = LEARNING_RATE * warm * (0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2)
        begins = torch.randint(len(stream) - CONTEXT - 1, (BATCH,))
        batch = torch.stack([stream[begin : begin + CONTEXT + 1] for begin in begins])
        with torch.autocast(
            "cpu", torch.bfloat16
        ):  # faster by half where the processor has it, slower where it has not
            loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            recent = sum(losses[-100:]) / 100
            print(f"step {step + 1:5}  loss {recent:.3f}  {time.monotonic() - started:5.0f} s", flush=True)
    # What is stored is half precision, so that is what is measured.
    model.half().float().eval()
    length = len(held_out) // (CONTEXT + 1) * (CONTEXT + 1)
    with torch.no_grad():
        held_out_loss = loss_of(model, held_out[:length].view(-1, CONTEXT + 1)).item()
    print(f"loss on the text held out {held_out_loss:.3f}")
    log = {
        "seconds": round(time.monotonic() - started),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "loss_in_the_last_100_steps": round(sum(losses[-100:]) / len(losses[-100:]), 3),
        "loss_held_out": round(held_out_loss, 3),
    }
    return model, log


def loss_of(model: GPT2LMHeadModel, batch: torch.Tensor) -> torch.Tensor:
    logits = model(batch[:, :-1]).logits
    return cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def save(model: GPT2LMHeadModel, tokenizer: GPT2TokenizerFast, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(output)
    tokenizer.save_pretrained(output)
    tokenizer.backend_tokenizer.model.save(str(output))  # vocab.json and merges.txt, for readers of the older form


if __name__ == "__main__":
    main()
