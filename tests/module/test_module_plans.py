"""`terraform test`: one file for each feature, plans alone, with the real provider and no network."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import attached_provider
import pytest
from test_module_inputs import REFUSED

from mme import terraform

ROOT = Path(__file__).resolve().parents[2]

OFFLINE = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}


@pytest.fixture(scope="module")
def env() -> Iterator[dict[str, str]]:
    with attached_provider.attached(OFFLINE) as env:
        yield env


@pytest.fixture(scope="module")
def root(module_copy: Path, env: dict[str, str]) -> Path:
    terraform.run(
        ["init", "-input=false", "-backend=false", "-test-directory=tests/module", "-no-color"], module_copy, env
    )
    return module_copy


def test_the_module_is_valid(root: Path, env: dict[str, str]) -> None:
    terraform.run(["validate", "-no-color"], root, env)


@pytest.mark.slow
def test_terraform_test_passes(root: Path, env: dict[str, str]) -> None:
    files = sorted(path.name for path in (root / "tests" / "module").glob("*.tftest.hcl"))
    done = terraform.run(["test", "-no-color", "-test-directory=tests/module"], root, env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Success! \d+ passed, 0 failed\.", done.stdout), done.stdout
    for name in files:
        assert f"tests/module/{name}... pass" in done.stdout


def test_every_input_with_a_validation_is_refused_somewhere(root: Path) -> None:
    """As many refusals as validations, for each input: a validation without one could be deleted unnoticed."""
    text = "".join(path.read_text() for path in sorted(root.glob("variables*.tf")))
    refusals = "".join(path.read_text() for path in (root / "tests" / "module").glob("*.tftest.hcl"))
    for name, body in re.findall(r'^variable "(\w+)" \{\n(.*?)^\}', text, re.M | re.S):
        validations = body.count("  validation {\n")
        tested = refusals.count(f"expect_failures = [var.{name}]") + sum(case[0] == name for case in REFUSED)
        assert tested >= validations, f"{name}: {validations} validations, {tested} refusals tested"


def test_the_module_leaves_providers_to_its_callers(root: Path) -> None:
    for path in root.glob("*.tf"):
        assert not re.search(r"^provider\b", path.read_text(), re.M), path.name
    versions = (root / "versions.tf").read_text()
    assert re.findall(r'source\s*=\s*"([^"]+)"', versions) == ["hashicorp/aws"]


def test_the_provider_does_not_have_yet_what_the_module_waits_for(root: Path, env: dict[str, str]) -> None:
    """On the day that this fails, `metrics_config` and `instance_pools` become inputs (docs/module.md names them)."""
    done = terraform.run(["providers", "schema", "-json"], root, env)
    schemas = json.loads(done.stdout)["provider_schemas"]
    [provider] = [schema for source, schema in schemas.items() if source.endswith("hashicorp/aws")]
    configuration = provider["resource_schemas"]["aws_sagemaker_endpoint_configuration"]["block"]
    variant = configuration["block_types"]["production_variants"]["block"]
    assert "core_dump_config" in variant["block_types"], "the schema is read where it is"
    for name, block in {"metrics_config": configuration, "instance_pools": variant}.items():
        assert name not in block["block_types"].keys() | block["attributes"].keys(), f"the provider has {name} now"


@pytest.mark.slow
def test_a_caller_tests_its_root_with_mocks(tmp_path: Path, env: dict[str, str]) -> None:
    """`terraform test` as docs/module.md has it, of a root that calls the module with much of what it has."""
    for source in ROOT.glob("*.tf"):
        (tmp_path / "module").mkdir(exist_ok=True)
        shutil.copy(source, tmp_path / "module")
    call = {
        "source": "./module",
        "name": "search",
        "bucket": {"force_destroy": True},
        "variants": {"a": {"autoscaling": {"min_capacity": 1, "max_capacity": 2, "cpu_utilization": 60}}, "b": {}},
        "vpc": {"subnet_ids": ["subnet-1", "subnet-2"], "security_group_ids": ["sg-1"]},
        "notifications": {"create_topic": True},
        "alarms": {"enabled": True, "targets": {"bert": {"target": "bert-*", "p99_seconds": 1}}},
        "invoke_policies": {"team-a": ["team-a/*"]},
        "create_publisher_policy": True,
        "contributor_insights": True,
        "dashboard": True,
        "data_capture": {},
    }
    needs = {"required_providers": {"aws": {"source": "hashicorp/aws"}}}
    (tmp_path / "main.tf.json").write_text(json.dumps({"terraform": needs, "module": {"endpoint": call}}))
    text = (ROOT / "docs" / "module.md").read_text()
    [block] = re.findall(r"^```hcl\n(mock_provider.*?)^```$", text, re.M | re.S)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "root.tftest.hcl").write_text(block + '\nrun "planned" {\n  command = plan\n}\n')
    terraform.run(["init", "-input=false", "-backend=false", "-no-color"], tmp_path, env)
    done = terraform.run(["test", "-no-color"], tmp_path, env, check=False)
    assert "Success! 2 passed, 0 failed." in done.stdout, done.stdout + done.stderr
