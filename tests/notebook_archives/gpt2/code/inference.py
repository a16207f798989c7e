# ruff: noqa: PTH118
import json
import os

import torch
from transformers import GPT2LMHeadModel, GPT2Tokenizer

PREFIX = "gpt2-model"


def model_fn(model_dir):
    print("loading the model ...")
    tokenizer = GPT2Tokenizer.from_pretrained(os.path.join(model_dir, PREFIX))
    model = GPT2LMHeadModel.from_pretrained(os.path.join(model_dir, PREFIX))
    model.eval()
    return {"model": model, "tokenizer": tokenizer}


def input_fn(data, content_type):
    if content_type != "application/json":
        raise Exception(f"Unsupported content type {content_type}")
    return json.loads(data)


def predict_fn(data, model):
    tokenizer, network = model["tokenizer"], model["model"]
    parameters = data.get("parameters", {})
    ids = tokenizer.encode(data["inputs"], return_tensors="pt")
    with torch.no_grad():
        outputs = network.generate(ids, do_sample=False, pad_token_id=tokenizer.eos_token_id, **parameters)
    return [{"generated_text": tokenizer.decode(output, skip_special_tokens=True)} for output in outputs]


def output_fn(prediction, accept):
    return str(prediction)
