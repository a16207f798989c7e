"""/metrics: the same number of series for ten models and for two thousand, and each of them by its target."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from container_process import Container
from front_parts import model, worker
from prometheus_client.parser import text_string_to_metric_families

from mme.container.front.counters import MAX_STATUSES, Totals
from mme.container.front.exposition import Exposition
from mme.container.front.models import Model

DOCS = Path(__file__).resolve().parents[3] / "docs" / "container.md"
STAGES = {"queue": 0.01, "decode": 0.01, "predict": 0.2, "encode": 0.01, "total": 0.23}


class Fleet:
    parent_starts = 1
    threads = 4

    def __init__(self, count: int) -> None:
        self.models: dict[str, Model] = {}
        self.totals = Totals()
        for number in range(count):
            self.load(f"m{number}", number)

    def load(self, name: str, number: int) -> Model:
        entry = self.models[name] = model(name, number)
        entry.target = f"{name}.tar.gz"
        entry.metrics.loads += 1
        return entry

    def answer(self, name: str, times: int = 1, status: int = 200) -> None:
        for _ in range(times):
            self.totals.observe(STAGES, status, 1)
            self.models[name].metrics.observe(STAGES, status, 1, 7)


def series(text: bytes) -> dict[str, float]:
    """``name{label="value"}`` -> value, of text that Prometheus's own parser reads; each once."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            key = f"{sample.name}{{{labels}}}"
            assert key not in values, f"{key} twice"
            values[key] = sample.value
    return values


def answers(text: bytes) -> dict[str, float]:
    """Answers by target."""
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            if sample.name == "mme_model_answers_total":
                target = sample.labels["target"]
                counts[target] = counts.get(target, 0) + sample.value
    return counts


def test_two_thousand_models_have_as_many_series_as_fifty_one() -> None:
    sizes = []
    for count in (51, 2000):
        fleet = Fleet(count)
        exposition = Exposition(fleet, cap=50)
        for number in range(count):
            fleet.answer(f"m{number}", times=1 + (number % 1000 > count - 40))
        sizes.append(len(series(exposition.render())))
    assert sizes[0] == sizes[1] < 1000
    bounds = [line for line in series(exposition.render()) if "_bucket" in line and 'stage="predict"' in line]
    assert len(bounds) <= 8


def test_the_busiest_are_named_and_the_rest_is_other() -> None:
    fleet = Fleet(2000)
    exposition = Exposition(fleet, cap=50)
    busy = [f"m{number}" for number in range(1000, 1050)]
    for name in fleet.models:
        fleet.answer(name, times=5 if name in busy else 1)
    seen = answers(exposition.render())
    assert {f"{name}.tar.gz" for name in busy} | {"other"} == seen.keys()
    assert (seen["m1000.tar.gz"], seen["other"]) == (5, 1950)


def test_counters_never_fall_while_models_come_and_go() -> None:
    fleet = Fleet(30)
    exposition = Exposition(fleet, cap=3)
    before: dict[str, float] = {}
    for turn in range(40):
        name = f"m{(turn * 7) % 30}"
        if name in fleet.models:
            fleet.answer(name, times=turn % 5 + 1)
        if turn % 9 == 8:
            exposition.gone(fleet.models.pop(f"m{turn % 30}"))
        seen = answers(exposition.render())
        assert len(seen) <= 4
        assert all(seen[target] >= value for target, value in before.items() if target in seen), turn
        before = seen


def test_what_an_unnamed_model_counted_before_it_went_is_not_lost() -> None:
    fleet = Fleet(3)
    exposition = Exposition(fleet, cap=1)
    fleet.answer("m0", times=10)
    exposition.render()
    fleet.answer("m2", times=4)
    exposition.gone(fleet.models.pop("m2"))
    assert answers(exposition.render()) == {"m0.tar.gz": 10, "other": 4}


def test_no_model_has_series_of_its_own_where_none_is_wanted() -> None:
    fleet = Fleet(5)
    fleet.answer("m1", times=2)
    assert answers(Exposition(fleet, cap=0).render()) == {"other": 2}


def test_a_model_called_other_is_none_of_the_others() -> None:
    fleet = Fleet(3)
    fleet.load("other", 99).target = "other"
    fleet.answer("other", times=9)
    fleet.answer("m0", times=1)
    seen = series(Exposition(fleet, cap=1).render())
    assert seen['mme_model_answers_total{model="other",status="200"}'] == 9
    assert seen['mme_model_answers_total{model="other",status="200",target="other"}'] == 1


def test_a_handler_cannot_make_series_without_end() -> None:
    fleet = Fleet(1)
    for status in range(200, 600):
        fleet.answer("m0", status=status)
    text = Exposition(fleet, cap=50).render()
    rows = [row for row in series(text) if row.startswith("mme_model_answers_total")]
    assert len(rows) == MAX_STATUSES + 1
    assert answers(text) == {"m0.tar.gz": 400}


@pytest.mark.parametrize("name", ['q"uote', "back\\slash", "line\nbreak", "{}", "ünïcode 日本", "\ud800"])
def test_any_name_is_text_that_prometheus_reads(name: str) -> None:
    fleet = Fleet(0)
    fleet.load(name, 1).target = name
    fleet.answer(name)
    (target,) = answers(Exposition(fleet, cap=50).render())
    assert target == name or not name.isprintable()


def test_what_a_handler_says_of_its_engine_is_a_label_whatever_it_is() -> None:
    async def work() -> None:
        fleet = Fleet(1)
        worker(fleet.models["m0"]).notes = {"engine": 'a\n"\\ \ud800', "reason": "x" * 10}
        rows = series(Exposition(fleet, 1).render())
        assert [row for row in rows if row.startswith("mme_model_engine") and "reason" in row]

    asyncio.run(work())


def test_each_series_is_named_in_the_documentation() -> None:
    fleet = Fleet(2)
    fleet.answer("m0")
    fleet.answer("m1", status=500)
    entry = fleet.models["m0"]
    entry.worker = None
    names = {family.name for family in text_string_to_metric_families(Exposition(fleet, 1).render().decode())}
    text = DOCS.read_text(encoding="utf-8")
    assert len(names) > 25
    assert [name for name in sorted(names) if f"`{name}" not in text] == []
    assert "MME_METRICS_MODELS" in text


def test_the_target_is_known_by_the_manifest_then_by_the_request(
    container: Container, handler: Callable[..., Path]
) -> None:
    source = "def model_fn(d): return 1\ndef predict_fn(data, m): return m"
    digest = "0123456789abcdef" * 4
    manifest = json.dumps({"format": 1, "name": "bert", "digest": digest, "files": []})
    folder = handler("hash", source)
    (folder / "mme-manifest.json").write_text(manifest)
    for name, broken in (("a", "["), ("b", "{}"), ("c", '{"name": 1, "digest": []}')):
        other = handler(name, source)
        (other / "mme-manifest.json").write_text(broken)
        assert container.load(name, other).status == 200
    assert container.load("5a1f", folder).status == 200
    assert container.metric('mme_model_loads_total{model="5a1f",target="bert-0123456789ab.tar.gz"}') == 1
    assert container.metric('mme_model_loads_total{model="a"}') == 1
    named = {"X-Amzn-SageMaker-Target-Model": "team/bert-0123456789ab.tar.gz"}
    for target in (named, {"X-Amzn-SageMaker-Target-Model": "another"}):
        assert container.call("POST", "/models/5a1f/invoke", "1", target).status == 200
    rows = container.call("GET", "/metrics").body.decode()
    assert 'mme_model_answers_total{model="5a1f",status="200",target="team/bert-0123456789ab.tar.gz"} 2.0' in rows
    assert "another" not in rows
