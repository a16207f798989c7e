"""A model that brings Python of its own (trust_remote_code): verified as on an endpoint that trusts it, or refused."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from mme.catalog import reader
from mme.errors import MmeError
from mme.packaging.job import PackagingJob
from mme.packaging.verify import Verifier

CONFIGURATION = """
from transformers import PretrainedConfig

class QuietConfig(PretrainedConfig):
    model_type = "quiet"

    def __init__(self, hidden_size=8, vocab_size=128, **more):
        self.hidden_size = hidden_size
        self.vocab_size = vocab_size
        super().__init__(**more)
"""
MODEL = """
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from .configuration_quiet import QuietConfig

class QuietForSequenceClassification(PreTrainedModel):
    config_class = QuietConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.score = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids=None, attention_mask=None, **more):
        return SequenceClassifierOutput(logits=self.score(self.embed(input_ids).mean(1)))
"""


@pytest.fixture
def source(tmp_path: Path, bert: Path) -> Path:
    """A model of a class that transformers does not have, whose code lies beside the weights."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (bert / name).is_file():
            shutil.copy(bert / name, folder)
    words = json.loads((bert / "config.json").read_text())["vocab_size"]
    config = {
        "model_type": "quiet",
        "architectures": ["QuietForSequenceClassification"],
        "hidden_size": 8,
        "vocab_size": words,
        "num_labels": 2,
        "auto_map": {
            "AutoConfig": "configuration_quiet.QuietConfig",
            "AutoModelForSequenceClassification": "modeling_quiet.QuietForSequenceClassification",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_quiet.py").write_text(CONFIGURATION)
    (folder / "modeling_quiet.py").write_text(MODEL)
    numbers = torch.Generator().manual_seed(0)
    weights = {
        "embed.weight": torch.randn(words, 8, generator=numbers),
        "score.weight": torch.randn(2, 8, generator=numbers),
        "score.bias": torch.zeros(2),
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_own_code_without_a_handler_is_verified_as_an_endpoint_runs_that_trusts_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TRUST_REMOTE_CODE", raising=False)
    catalogue = tmp_path / "models.toml"
    catalogue.write_text(
        '[models.quiet]\nsource = "folder:source"\ntask = "text-classification"\ntrust_remote_code = true\n'
        '[models.plain]\nsource = "folder:source"\ntask = "text-classification"\n'
    )
    quiet, plain = reader.load(catalogue).models
    with Verifier() as verifier:
        made = PackagingJob(quiet, tmp_path / "dist").package(verifier)
        assert made.verified is not None
        assert json.loads(made.verified.answer or "")[0].keys() == {"label", "score"}
        assert made.archive.manifest["trust_remote_code"] is True
        with pytest.raises(MmeError, match="needs Python code that comes with the model"):
            PackagingJob(plain, tmp_path / "dist").package(verifier)


def test_only_a_model_that_is_trusted_gets_a_container_that_trusts(tmp_path: Path) -> None:
    """The container of a run is replaced where the next archive asks for the other kind."""
    program = tmp_path / "container.py"
    program.write_text(
        "import os, pathlib, time\n"
        f"with pathlib.Path({str(tmp_path / 'seen')!r}).open('a') as seen:\n"
        "    print(os.environ['HF_TRUST_REMOTE_CODE'], file=seen, flush=True)\n"
        "time.sleep(600)\n"
    )
    with Verifier((sys.executable, str(program))) as verifier:
        for trusted, expected in ((False, ["false"]), (False, ["false"]), (True, ["false", "true"])):
            verifier.start(trusted)
            while not (tmp_path / "seen").exists() or (tmp_path / "seen").read_text().split() != expected:
                assert verifier._container is not None
                assert verifier._container.alive
                time.sleep(0.02)
