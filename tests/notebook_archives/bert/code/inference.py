# ruff: noqa: PTH118
import json
import logging
import os

import torch
from transformers import AutoModel, AutoTokenizer

logger = logging.getLogger(__name__)


def model_fn(model_dir):
    """Load the model and the tokenizer for inference"""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = os.path.join(model_dir, "bert-model")
    logger.info("loading the model from %s", path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModel.from_pretrained(path).eval().to(device)
    return {"model": model, "tokenizer": tokenizer}


def input_fn(input_data, content_type):
    """Deserialize the request"""
    if content_type == "application/json":
        request = json.loads(input_data)
        return request["inputs"] if isinstance(request, dict) else request
    elif content_type == "text/csv":
        return input_data
    raise ValueError("Requested unsupported ContentType in content_type: " + content_type)


def predict_fn(input_object, model_dict):
    """Run the model"""
    model, tokenizer = model_dict["model"], model_dict["tokenizer"]
    encoded = tokenizer(input_object, return_tensors="pt", truncation=True).to(model.device)
    with torch.no_grad():
        output = model(**encoded)
    return output.last_hidden_state.mean(dim=1)


def output_fn(prediction, response_content_type):
    """Serialize the answer"""
    return str(prediction)
