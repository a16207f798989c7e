"""A repository that calls the module, whose inputs change from apply to apply."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stack import Stack

from mme.local import LocalAws

ROOT = Path(__file__).resolve().parents[2]

QUICK = {"noncurrent_version_expiration_days": 0, "abort_incomplete_upload_days": 0}
"""For a bucket without lifecycle rules: the provider watches them settle for most of a minute."""


class Caller(Stack):
    """A root with one call of the module, ``module.endpoint``, and whatever blocks are given beside it."""

    def __init__(self, folder: Path, aws: LocalAws, env: Mapping[str, str], name: str, **blocks: Any) -> None:
        super().__init__(folder / name, aws, env)
        self.name = name
        self.blocks = blocks
        self.folder.mkdir()
        module = self.folder / "module"
        module.mkdir()
        for source in ROOT.glob("*.tf"):
            shutil.copy(source, module)
        self.write()
        self.init()

    def write(self, **inputs: Any) -> None:
        """Writes the root: the module's inputs, where "${…}" is an expression. A bucket gets no lifecycle rules."""
        bucket = {**QUICK, "force_destroy": True, **inputs.pop("bucket", {})}
        if not bucket.get("create", True):
            del bucket["force_destroy"]
        call = {"source": "./module", "name": self.name, "bucket": bucket, **inputs}
        root = {
            "terraform": {"required_providers": {"aws": {"source": "hashicorp/aws"}}},
            "module": {"endpoint": call},
            "output": {"toolchain": {"value": "${module.endpoint.toolchain}"}, "all": {"value": "${module.endpoint}"}},
            **self.blocks,
        }
        (self.folder / "main.tf.json").write_text(json.dumps(root, indent=1))

    def settle(self, **inputs: Any) -> str:
        """Applies these inputs, and plans again: a second plan has nothing to do. What the apply printed."""
        self.write(**inputs)
        printed = self.apply()
        left = self.changes()
        assert left == "", left
        return printed

    def look(self) -> str:
        """What a plan prints that only looks at what there is."""
        _, printed = self._run("plan", "-refresh-only", "-input=false")
        return printed

    def refuse(self, **inputs: Any) -> str:
        """The words of a plan that fails, on one line and without the frame around them."""
        self.write(**inputs)
        code, printed = self._run("plan", "-input=false", check=False)
        assert code == 1, f"the plan was to fail:\n{printed}"
        return " ".join(printed.replace("│", " ").split())

    def outputs(self) -> dict[str, Any]:
        """The module's own outputs."""
        outputs = super().outputs()["all"]
        assert isinstance(outputs, dict)
        return outputs
