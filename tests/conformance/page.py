"""docs/models.md, made from the rows of the suite:  python tests/conformance/page.py"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "models.md"
HEAD = """# Models

<!-- Made from tests/conformance by python tests/conformance/page.py: change the rows there. -->

Each row is a test: a small model of this architecture goes from a table of the catalogue into an archive, into
`mme.container` and into the Hugging Face container's own stack, and answers there what its own library answers in
process (numbers to 1e-5, texts to the letter), alone and with 24 requests at once. `make test` runs one of each kind;
`MME_CONFORMANCE=all` and continuous integration run them all.

- **batching**: whether concurrent requests share a pass through the model.
- **quantize**: whether `quantize = "int8"` is offered.
- **adapters**: whether it has linear layers, into which a LoRA adapter can be merged
  ([what each kind of adapter takes](packaging.md#adapters)).

Folders of sentence-transformers are rows of `feature-extraction`, cross-encoders of `text-ranking`. "6" is the form
that version 6 writes, "5" that of the versions until 5.

An architecture that is not here is no less welcome: `invoke package` loads it with transformers, runs it once, and
refuses what it cannot serve, by name.

| architecture | task | handler | batching | quantize | adapters |
| --- | --- | --- | --- | --- | --- |
"""


def text() -> str:
    """The page as it should be."""
    from rows import all_rows

    from mme.catalog.spec import DEFAULT_HANDLERS, PIPELINE_HANDLER

    lines = []
    for row in sorted(all_rows(), key=lambda row: (row.task, row.architecture.lower())):
        handler = row.handler or DEFAULT_HANDLERS.get(row.task, PIPELINE_HANDLER)
        offers = ["yes" if offered else "no" for offered in (row.quantize, row.adapters)]
        lines.append(f"| {row.architecture} | `{row.task}` | {handler} | {row.batching} | {' | '.join(offers)} |\n")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    PAGE.write_text(text(), encoding="utf-8")
