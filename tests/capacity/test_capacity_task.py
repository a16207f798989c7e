"""`invoke capacity` as a user types it, the worked example of docs/capacity.md among it."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import uuid
from pathlib import Path
from typing import Any

import attached_provider
import boto3
import pytest
from typed import Result, typed

from mme import terraform
from mme.capacity import instances, published, report, tfvars
from mme.capacity.fleets import GB
from mme.local import LocalAws
from mme.releases import Store

PAGE = Path(__file__).resolve().parents[2] / "docs" / "capacity.md"
HEAD = "name,size,active,load_seconds,wake_seconds,answer_seconds,cores\n"
ROW = "90MB,105MB,0.06,0.05,0.012,1.3\n"


CHIPS = """region = "eu-west-1"
day = "2026-11-01"
source = "mine"
[types]
"ml.g5.xlarge" = { vcpus = 4, memory_gib = 16, usd_per_hour = 1.4 }
"ml.inf2.xlarge" = { vcpus = 4, memory_gib = 16, usd_per_hour = 1.0 }
"ml.trn1.2xlarge" = { vcpus = 8, memory_gib = 32, usd_per_hour = 1.6 }
"""


@pytest.fixture
def capacity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "MME_BUCKET", "MME_TERRAFORM"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "chips.toml").write_text(CHIPS)
    (tmp_path / "tiny.toml").write_text(
        CHIPS.replace("ml.g5.xlarge", "ml.m5.large").replace("memory_gib = 16", "memory_gib = 0.25")
    )
    (tmp_path / "models.csv").write_text(HEAD + "".join(f"tenant-{n},{ROW}" for n in range(60)))

    def run(*words: str) -> Result:
        result = typed(capsys, "capacity", *words)
        assert "Traceback" not in result.err
        return result

    return run


KINDS = """region = "us-east-1"
day = "2026-11-01"
source = "mine"
[types]
"ml.m5.xlarge" = { vcpus = 4, memory_gib = 16, usd_per_hour = 0.23 }
"ml.c7g.xlarge" = { vcpus = 4, memory_gib = 8, usd_per_hour = 0.01 }
"ml.t2.xlarge" = { vcpus = 4, memory_gib = 16, usd_per_hour = 0.01 }
"ml.c5d.xlarge" = { vcpus = 4, memory_gib = 8, usd_per_hour = 0.01 }
"ml.m6a.xlarge" = { vcpus = 4, memory_gib = 16, usd_per_hour = 0.01 }
"ml.r5.xlarge" = { vcpus = 4, memory_gib = 32, usd_per_hour = 0.01, local_disk_gb = 100 }
"""


LAW = ("--models", "models.csv", "--zipf", "0.9", "--rate", "40")


def test_a_plan_as_json_and_everything_it_writes(capacity: Any, tmp_path: Path) -> None:
    done = capacity(
        "plan", *LAW, "--type", "ml.m5.xlarge", "--type", "ml.c5.large", "--json",
        "--tfvars", "fleet.tfvars.json", "--page", "plan.html", "--plots", "plots",
    )  # fmt: skip
    assert done.code == 0, done.err
    best = done.json["best"]
    assert {option["type"] for option in done.json["options"]} == {"ml.m5.xlarge", "ml.c5.large"}
    primary = json.loads((tmp_path / "fleet.tfvars.json").read_text())["variants"]["primary"]
    assert (primary["instance_type"], primary["instance_count"]) == (best["type"], best["instances"])
    assert "Capacity plan" in (tmp_path / "plan.html").read_text()
    idle = capacity("plan", *LAW[:-1], "0.5", "--type", "ml.m5.large", "--tfvars", "idle.tfvars.json")
    assert "Autoscaling adds instances above 30 invocations a minute on each: this traffic" in idle.err
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["cost-and-cold.svg", "hits-and-instances.svg", "latency-by-popularity.svg"]


@pytest.mark.usefixtures("aws_env")
def test_a_plan_is_published_for_the_page(capacity: Any) -> None:
    s3 = boto3.client("s3")
    bucket = f"plans-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket)
    done = capacity("plan", *LAW, "--type", "ml.m5.xlarge", "--bucket", bucket, "--publish", "first", "--json")
    assert done.code == 0, done.err
    assert f"s3://{bucket}/plans/first.json" in done.err
    _, plan = published.read(s3, Store(bucket), "first")
    assert plan.tables[0].rows[0][0] == "1 x ml.m5.xlarge"
    assert [one.title for one in plan.pictures] == list(report.PLOTS.values())
    refused = capacity("plan", *LAW, "--bucket", bucket, "--publish", "My plan")
    assert (refused.code, "cannot be the name of a plan" in refused.err) == (2, True)
    nowhere = capacity("plan", *LAW, "--publish", "first")
    assert nowhere.code == 2
    assert "bucket" in nowhere.err


def test_a_plan_as_a_table_marks_the_best_and_says_what_it_stands_on(capacity: Any) -> None:
    done = capacity("plan", *LAW, "--type", "ml.m5.xlarge")
    assert done.code == 0, done.err
    assert re.search(r"^->  1 x ml\.m5\.xlarge", done.out, re.M)
    for words in ("one endpoint per model", "serverless", "inference components", "Prices: us-east-1, ", "Assumed:"):
        assert words in done.out


def test_a_goal_that_cannot_be_met_fails_and_writes_nothing(capacity: Any, tmp_path: Path) -> None:
    done = capacity(
        "plan", *LAW, "--type", "ml.m5.large", "--volume-gb", "1", "--tfvars", "fleet.tfvars.json", "--json"
    )
    assert done.code == 2
    assert "No fleet that was tried meets the goal" in done.err
    assert done.json["best"] is None
    assert not (tmp_path / "fleet.tfvars.json").exists()


def test_a_simulation_of_a_trace(capacity: Any, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("time,model\n0,tenant-1\n1,tenant-1\n2,tenant-2\n3,tenant-1\n")
    fleet = ("--type", "ml.m5.large", "--count", "1", "--models", "models.csv", "--trace", "trace.csv")
    done = capacity("simulate", *fleet, "--deployments", "2.5", "--json", "--per-model")
    assert done.code == 0, done.err
    assert done.json["requests"] == 4
    assert done.json["hit_ratio"] == 0.25
    assert done.json["models"]["tenant-1"]["requests"] == 3
    assert done.json["models"]["tenant-3"]["p99"] is None
    text = capacity("simulate", *fleet, "--autoscale", "1,2,600", "--warm", "1")
    assert text.code == 0, text.err
    assert "instances added, removed" in text.out


def test_no_request_and_a_single_model_are_right(capacity: Any, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text(HEAD + f"only,{ROW}")
    (tmp_path / "empty.csv").write_text("time,model\n")
    given = ("--models", "one.csv", "--trace", "empty.csv", "--type", "ml.m5.large", "--json")
    planned = capacity("plan", *given, "--page", "plan.html", "--tfvars", "fleet.tfvars.json")
    assert planned.code == 0, planned.err
    assert planned.json["best"]["instances"] == 1
    assert planned.json["best"]["p99"] is None
    assert "nan" not in planned.out
    assert any("nobody asks, so that the fewest instances" in line for line in planned.json["assumptions"])
    simulated = capacity("simulate", *given, "--count", "2")
    assert simulated.code == 0, simulated.err
    assert simulated.json["usd_month"] == pytest.approx(2 * 0.115 * 730)
    (tmp_path / "two.csv").write_text("time,model\n5,only\n6,only\n")
    (tmp_path / "once.csv").write_text("time,model\n5,only\n")
    once = capacity("plan", "--models", "one.csv", "--trace", "once.csv", "--type", "ml.m5.large")
    assert once.code == 2
    assert "once.csv: all requests are of one moment" in once.err
    (tmp_path / "soon.csv").write_text("time,model\n5,only\n5.25,only\n")
    soon = capacity("plan", "--models", "one.csv", "--trace", "soon.csv", "--type", "ml.m5.large")
    assert soon.code == 2
    assert "soon.csv: all requests are of 0.250 seconds" in soon.err
    two = capacity("simulate", "--models", "one.csv", "--trace", "two.csv", "--type", "ml.m5.large", "--count", "1")
    assert two.code == 0, two.err
    assert "1 model;" in two.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan",), "Which models?"),
        (("plan", "--models", "none.csv", "--zipf", "1", "--rate", "1"), "none.csv cannot be read"),
        (("plan", "--models", "models.csv"), "Which traffic?"),
        (("plan", "--models", "models.csv", "--zipf", "1"), "--zipf needs --rate"),
        (("plan", *LAW, "--trace", "t.csv"), "more than one source"),
        (("plan", *LAW, "--p99", "fast"), "--p99 takes a number"),
        (("plan", *LAW, "--cold", "2"), "--cold takes a number"),
        (("plan", *LAW, "--routing", "nearest"), "no routing 'nearest'"),
        (("plan", *LAW, "--container", "theirs"), "no container 'theirs'"),
        (("plan", *LAW, "--type", "ml.m9.huge"), "has no price of 'ml.m9.huge'"),
        (("plan", *LAW, "--region", "eu-west-1"), "not of eu-west-1"),
        (("plan", *LAW, "--volume-gb", "600"), "--volume-gb takes a number from 1 to 512"),
        (("plan", *LAW, "--bursts", "1,2"), "--bursts takes NUMBER,FACTOR,SECONDS"),
        (("plan", *LAW, "--type", "ml.m5.large", "--tfvars", "fleet.tf"), "NAME.tfvars.json"),
        (("plan", *LAW, "--at-least", "0"), "--at-least takes a number"),
        (("simulate", *LAW), "Which fleet?"),
        (("simulate", *LAW, "--type", "ml.m5.large", "--count", "none"), "--count takes a number"),
        (("simulate", *LAW, "--type", "ml.m5.large", "--count", "1", "--autoscale", "3"), "--autoscale takes"),
        (("simulate", *LAW, "--type", "ml.m5.large", "--count", "1", "--deployments", "9,3"), "order of their times"),
        (("simulate", *LAW, "--type", "ml.m5.large", "--count", "9", "--autoscale", "1,3,60"), "autoscaling range"),
        (
            ("plan", *LAW, "--prices", "chips.toml"),
            "chips.toml has no type that can be simulated: ml.g5.xlarge has a GPU",
        ),
        (("plan", *LAW, "--prices", "chips.toml", "--type", "ml.inf2.xlarge"), "ml.inf2.xlarge has an accelerator"),
        (("plan", *LAW, "--prices", "chips.toml", "--type", "ml.g5.xlarge"), "ml.g5.xlarge has a GPU"),
        (
            ("simulate", *LAW, "--prices", "chips.toml", "--type", "ml.trn1.2xlarge", "--count", "1"),
            "ml.trn1.2xlarge has an accelerator",
        ),
        (("measure", "--archive", "none.tar.gz"), "There is no archive none.tar.gz"),
        (
            ("simulate", *LAW, "--type", "ml.m5.large", "--count", "1", "--hours", "0.01", "--deployments", "99"),
            "--deployments 99: the last request comes after ",
        ),
        (("plan", *LAW, "--catalog", "models.toml"), "more than one source of the models"),
        (("plan", *LAW, "--type", "ml.m5.large", "--plots", "models.csv"), "cannot be written"),
        (("plan", *LAW, "--type", "ml.m5.large", "--page", "models.csv/plan.html"), "cannot be written"),
        (("measure", "--archive", "models.csv", "--out", "models.csv/needs.json"), "needs.json cannot be written"),
        (("measure", "--archive", "models.csv", "--out", "."), ". cannot be written"),
        (("measure", *LAW), "--models is a flag of `capacity plan and simulate`, not of measure"),
        (("plan", *LAW, "--count", "3"), "--count is a flag of `capacity simulate`, not of plan"),
        (("plan", *LAW, "--at-least", "1.5"), "--at-least takes a whole number"),
        (("plan", *LAW, "--gaps"), "--gaps goes with --trace and --access-log"),
        (("plan", "--models", "models.csv", "--trace", "t.csv", "--hours", "5"), "--hours goes with --live and --zipf"),
        (("plan", "--models", "models.csv", "--trace", "t.csv", "--swing", "0.5"), "--swing goes with --zipf"),
        (
            ("simulate", *LAW, "--type", "ml.m5.large", "--count", "1", "--per-model", "--page", "x"),
            "--page is a flag of",
        ),
        (("simulate", *LAW, "--type", "ml.m5.large", "--count", "1", "--warm", "0.5"), "--warm takes a whole number"),
        (("plan", *LAW, "--prices", "tiny.toml"), "No type has memory for models"),
        (("simulate", *LAW, "--prices", "tiny.toml", "--type", "ml.m5.large", "--count", "1"), "no memory for models"),
        (("buy",), "There is no `capacity buy`"),
    ],
)
def test_mistakes_are_said_without_a_traceback(capacity: Any, words: tuple[str, ...], said: str) -> None:
    done = capacity(*words)
    assert done.code == 2, done.out + done.err
    assert said in done.err


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("ml.c7g.xlarge", "ml.c7g.xlarge has an Arm processor (Graviton), and nothing says how fast it is"),
        ("ml.t2.xlarge", "ml.t2.xlarge computes on credits"),
        ("ml.c5d.xlarge", "ml.c5d.xlarge has a disk of its own, whose size cannot be chosen"),
        ("ml.m6a.xlarge", "ml.m6a.xlarge is no type that SageMaker hosts models on"),
        ("ml.r5.xlarge", "ml.r5.xlarge has local_disk_gb in the price file, and no disk of its own"),
    ],
)
def test_a_type_that_the_simulation_does_not_know_is_refused_and_left_out(
    capacity: Any, tmp_path: Path, kind: str, said: str
) -> None:
    (tmp_path / "kinds.toml").write_text(KINDS)
    asked = capacity("plan", *LAW, "--prices", "kinds.toml", "--type", kind)
    assert asked.code == 2
    assert said in asked.err
    simulated = capacity("simulate", *LAW, "--prices", "kinds.toml", "--type", kind, "--count", "1")
    assert simulated.code == 2
    assert said in simulated.err
    rest = KINDS.splitlines(keepends=True)
    two = [line for line in rest if not line.startswith('"') or line.startswith(('"ml.m5.', f'"{kind}"'))]
    (tmp_path / "two.toml").write_text("".join(two))
    planned = capacity("plan", *LAW, "--prices", "two.toml", "--json")
    assert planned.code == 0, planned.err
    assert {one["type"] for one in planned.json["options"]} == {"ml.m5.xlarge"}
    assert any(line.startswith(f"Left out: {said}") for line in planned.json["assumptions"])


def test_an_arm_type_whose_speed_was_measured_is_planned_with_a_word_about_its_image(
    capacity: Any, tmp_path: Path
) -> None:
    measured = KINDS.replace('0.01 }\n"ml.t2', '0.01, speed = 1.2 }\n"ml.t2')
    (tmp_path / "kinds.toml").write_text(measured)
    done = capacity(
        "plan", *LAW, "--prices", "kinds.toml", "--type", "ml.c7g.xlarge", "--type", "ml.c7g.xlarge", "--json"
    )
    assert done.code == 0, done.err
    assert [one["type"] for one in done.json["options"]] == ["ml.c7g.xlarge"]
    assert any("ml.c7g.xlarge: Arm processors (Graviton). The image" in line for line in done.json["assumptions"])
    fleet = ("simulate", *LAW, "--prices", "kinds.toml", "--type", "ml.c7g.xlarge", "--count", "1", "--hours", "0.1")
    faster = capacity(*fleet, "--json")
    assert any("Arm processors" in line for line in faster.json["assumptions"])
    (tmp_path / "kinds.toml").write_text(measured.replace("speed = 1.2", "speed = 0.6"))
    assert capacity(*fleet, "--json").json["p99_seconds"] > faster.json["p99_seconds"]


def test_a_type_with_a_disk_of_its_own_has_no_volume_to_choose(capacity: Any, tmp_path: Path) -> None:
    (tmp_path / "kinds.toml").write_text(KINDS.replace('0.01 }\n"ml.m6a', '0.01, local_disk_gb = 100 }\n"ml.m6a'))
    done = capacity(
        "plan", *LAW, "--prices", "kinds.toml", "--type", "ml.c5d.xlarge", "--tfvars", "fleet.tfvars.json", "--json"
    )
    assert done.code == 0, done.err
    assert done.json["best"]["volume"] is None
    assert "volume_size_gb" not in json.loads((tmp_path / "fleet.tfvars.json").read_text())["variants"]["primary"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--type", "ml.m5.xlarge", "--routing", "random", "--at-least", "3"),
        ("--type", "ml.c5.large", "--routing", "least-outstanding", "--volume-gb", "500"),
        ("--type", "ml.m5.xlarge", "--routing", "sticky", "--swing", "0.9"),
        ("--type", "ml.c5d.xlarge", "--prices", "kinds.toml"),
    ],
)
def test_terraform_plans_the_module_with_what_the_task_writes(
    capacity: Any, tmp_path: Path, local_aws: LocalAws, flags: tuple[str, ...]
) -> None:
    """The real module, by ``terraform plan -var-file``: its validations hold, and the fleet is the planned one."""
    (tmp_path / "kinds.toml").write_text(KINDS.replace('0.01 }\n"ml.m6a', '0.01, local_disk_gb = 100 }\n"ml.m6a'))
    for source in PAGE.parents[1].glob("*.tf"):
        shutil.copy(source, tmp_path)
    done = capacity("plan", *LAW, *flags, "--tfvars", "fleet.tfvars.json", "--json")
    assert done.code == 0, done.err
    best = done.json["best"]
    with attached_provider.attached(local_aws.client_env()) as env:
        terraform.run(["init", "-input=false", "-backend=false", "-no-color"], tmp_path, env)
        words = ["-input=false", "-no-color", "-var-file=fleet.tfvars.json", "-var=name=planned", "-out=plan"]
        terraform.run(["plan", *words], tmp_path, env)
        planned = json.loads(terraform.run(["show", "-json", "plan"], tmp_path, env).stdout)
    made = {one["type"]: one["change"]["after"] for one in planned["resource_changes"]}
    (variant,) = made["aws_sagemaker_endpoint_configuration"]["production_variants"]
    assert variant["instance_type"] == best["type"]
    assert variant["initial_instance_count"] == best["instances"]
    assert variant.get("volume_size_in_gb") == (None if best["volume"] is None else math.ceil(best["volume"] / GB))
    routing = {one["routing_strategy"] for one in variant["routing_config"]}
    wanted = tfvars.ROUTING[flags[3]] if "--routing" in flags else "RANDOM"
    assert routing == ({wanted} if wanted else set())
    target = made["aws_appautoscaling_target"]
    swing = 0.9 if "--swing" in flags else 0.0
    assert target["min_capacity"] == max(
        3 if "--at-least" in flags else 1, math.ceil(best["instances"] * (1 - swing) / (1 + swing))
    )
    assert target["max_capacity"] == max(2, 2 * best["instances"])
    (tracking,) = made["aws_appautoscaling_policy"]["target_tracking_scaling_policy_configuration"]
    assert tracking["target_value"] == math.floor(40 * (1 + swing) * 60 / best["instances"])


def test_every_shipped_type_can_be_simulated() -> None:
    assert instances.load().left_out() == []


def test_needs_of_the_other_container_are_refused(capacity: Any, tmp_path: Path) -> None:
    keys = ("archive_bytes", "disk_bytes", "weights_bytes", "private_bytes", "parked_bytes", "load_seconds")
    sample = dict.fromkeys((*keys, "wake_seconds", "answer_seconds", "answer_cores"), 1)
    document = {"format": 1, "container": "stock", "models": {"m": sample}}
    (tmp_path / "needs.json").write_text(json.dumps(document))
    done = capacity("plan", *LAW, "--needs", "needs.json")
    assert done.code == 2
    assert "was measured with the container stock" in done.err


def test_models_of_a_catalogue_need_their_archives(capacity: Any, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    (tmp_path / "models.toml").write_text('[models.bert]\nsource = "folder:source"\nhandler = "embedding"\n')
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "other-0123456789ab.tar.gz").write_bytes(b"x")
    done = capacity("plan", "--catalog", "models.toml", "--zipf", "1", "--rate", "1")
    assert done.code == 2
    assert "There is no archive of bert in dist" in done.err


def test_of_a_catalogues_models_the_newest_archives_count_and_no_others(capacity: Any, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{}")
    (tmp_path / "models.toml").write_text('[models.bert]\nsource = "folder:source"\nhandler = "embedding"\n')
    (tmp_path / "dist").mkdir()
    names = ("bert-0123456789ab", "bert-aaaaaaaaaaaa", "bert-large-0123456789ab", "bert-note")
    for age, name in enumerate(names):
        archive = tmp_path / "dist" / f"{name}.tar.gz"
        archive.write_bytes(bytes(1000 * (age + 1)))
        os.utime(archive, (1e9 - age, 1e9 - age))
    keys = ("archive_bytes", "disk_bytes", "weights_bytes", "private_bytes", "parked_bytes", "load_seconds")
    sample = dict.fromkeys((*keys, "wake_seconds", "answer_seconds", "answer_cores"), 0.01)
    document = {"format": 1, "container": "ours", "models": {"bert-0123456789ab.tar.gz": sample}}
    (tmp_path / "needs.json").write_text(json.dumps(document))
    given = ("--catalog", "models.toml", "--needs", "needs.json", "--zipf", "1", "--rate", "1", "--type", "ml.m5.large")
    done = capacity("simulate", *given, "--count", "1", "--per-model", "--json")
    assert done.code == 0, done.err
    assert list(done.json["models"]) == ["bert-0123456789ab.tar.gz"]


def test_the_worked_example_is_what_the_page_says(capacity: Any, tmp_path: Path) -> None:
    """The commands between the marks run, and each line of figures that the page shows is printed."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- example: (\w+) -->\n```\w*\n(.*?)```", text, re.S)
    files = {name: body for name, body in blocks if name not in ("plan", "prints")}
    namespace: dict[str, Any] = {}
    exec(files["models"], namespace)  # the page's own three lines that write models.csv
    assert (tmp_path / "models.csv").read_text().count("\n") == 401
    (command,) = [body for name, body in blocks if name == "plan"]
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == ["invoke", "capacity"]
    done = capacity(*words[2:])
    assert done.code == 0, done.err
    (shown,) = [body for name, body in blocks if name == "prints"]
    printed = [" ".join(line.split()) for line in done.out.splitlines()]
    for line in shown.strip().splitlines():
        begins = " ".join(line.split())
        assert begins == "…" or any(one.startswith(begins) for one in printed), (line, done.out)
