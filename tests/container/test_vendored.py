"""A library that a model brings in code/ is seen by transformers, although that was imported before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LOOK = """
import sys
from pathlib import Path
from transformers.utils import is_timm_available
before = is_timm_available()
first = sys.modules["transformers"]
import torch
from mme.container.workers import vendored
sys.path.insert(0, sys.argv[1])
named = vendored.bring_in(Path(sys.argv[1]))
import transformers
from transformers.utils import is_timm_available
assert sys.modules["torch"] is torch
print(before, named, is_timm_available(), transformers is first)
from transformers import BertConfig, BertModel
BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9))
"""


def look(code: Path) -> str:
    done = subprocess.run([sys.executable, "-c", LOOK, str(code)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_library_in_code_is_seen(tmp_path: Path) -> None:
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text('__version__ = "1.0.0"\n')
    info = tmp_path / "timm-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 1.0.0\n")
    assert look(tmp_path) == "False ['timm'] True False"


def test_transformers_stays_where_nothing_of_it_is_brought(tmp_path: Path) -> None:
    for name in ("numpy", "my_own"):  # there anyway, and nothing that it looks for
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "inference.py").write_text("")
    assert look(tmp_path) == "False [] False True"
