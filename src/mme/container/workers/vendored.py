"""Makes libraries in a model's ``code/`` known to transformers, which was imported before they were on the path.

transformers looks once for its optional libraries (Pillow, sentencepiece, timm and others), and puts stand-ins in the
place of whatever needs one that is missing. The parent imports it before a model's folder is known, so without this no
model could bring such a library: ``import PIL`` would work in its handler, and transformers would say that Pillow is
not installed.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from pathlib import Path

# The modules of libraries that transformers looks for, in any version from 4.49 on.
LOOKED_FOR = frozenset(
    {
        *("PIL", "accelerate", "av", "bitsandbytes", "bs4", "cv2", "decord", "einops", "essentia", "faiss", "ftfy"),
        *("g2p_en", "google", "jieba", "kernels", "kenlm", "levenshtein", "librosa", "mistral_common", "mamba_ssm"),
        *("nltk", "num2words", "optimum", "pandas", "peft", "phonemizer", "pretty_midi", "pyctcdecode", "pytesseract"),
        *("rjieba", "sacremoses", "scipy", "sentencepiece", "sklearn", "soundfile", "spacy", "sudachipy", "tiktoken"),
        *("timm", "tokenizers", "torchaudio", "torchvision", "uroman", "yt_dlp"),
    }
)
PACKAGE = "transformers"


def bring_in(code: Path) -> list[str]:
    """Have transformers look again, if it is imported and ``code``, which is to be first on the path by now, has
    libraries that were not there when it looked. Returns their names.

    It is imported anew where it is wanted next, which takes some seconds; torch stays.
    """
    if PACKAGE not in sys.modules or not code.is_dir():
        return []
    there = {item.name.partition(".")[0] for item in code.iterdir() if item.is_dir() or item.suffix in (".py", ".so")}
    # Each name is looked up by itself: iterating over all of sys.modules counts a reference to every name in it, and so
    # copies 8 MB of pages that this process shares with its parent.
    names = sorted(name for name in there & LOOKED_FOR if name not in sys.modules)
    new = [name for name in names if not _elsewhere(name, code)]
    if new:
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name == PACKAGE or name.startswith(PACKAGE + ".")]:
            del sys.modules[name]
    return new


def _elsewhere(name: str, code: Path) -> bool:
    """Whether the library is on the path without the model's code, too."""
    rest = [entry for entry in sys.path if Path(entry or ".").resolve() != code.resolve()]
    return importlib.machinery.PathFinder.find_spec(name, rest) is not None
