"""The search, the other ways, what would change it, and the forms in which a plan is handed on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from mme.capacity import instances, plots, report, tfvars, trace
from mme.capacity.fleets import GB, Settings
from mme.capacity.needs import OURS, STOCK, Models, models
from mme.capacity.plan import Goal, Plan, Search, adapters, busiest, int8, plan
from mme.capacity.simulate import Requests
from mme.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
PRICES = instances.load()
MB = 1_000_000


def tenants(count: int, **needs: float) -> Models:
    given = {"disk": 90 * MB, "active": 105 * MB, "load": 0.06, "wake": 0.05, "answer": 0.012, "cores": 1.3, **needs}
    return models([f"tenant-{n}" for n in range(count)], **given)  # type: ignore[arg-type]


def made(
    listed: Models,
    rate: float,
    goal: Goal,
    settings: Settings | None = None,
    types: tuple[str, ...] = (),
) -> Plan:
    asked, rates = trace.busiest_of(trace.Law(rate, 0.9, 3600), len(listed), 8000)
    return plan(listed, asked, rates, PRICES, goal, settings or Settings(), types, changes=False)


@pytest.fixture(scope="module")
def typical() -> Plan:
    asked, rates = trace.busiest_of(trace.Law(200, 0.9, 3600), 400, 12_000)
    return plan(tenants(400), asked, rates, PRICES, Goal(0.3, 0.01), Settings())


def test_the_cheapest_that_meets_the_goal_is_first(typical: Plan) -> None:
    assert typical.best is typical.options[0]
    assert typical.best.meets
    assert typical.best.p99 <= 0.3
    assert typical.best.cold <= 0.01
    met = [option for option in typical.options if option.meets]
    assert [option.usd_month for option in met] == sorted(option.usd_month for option in met)
    for name, usd in typical.skipped.items():
        assert usd >= typical.best.usd_month or len(met) >= 12, name


def test_one_instance_less_would_not_do(typical: Plan) -> None:
    best = typical.best
    assert best is not None
    asked, rates = trace.busiest_of(trace.Law(200, 0.9, 3600), 400, 12_000)
    search = Search(tenants(400), asked, rates, PRICES, Goal(0.3, 0.01), Settings())
    assert best.instances > 1
    assert not search.trial(PRICES.types[best.type], best.instances - 1).meets
    assert best.usd_month == pytest.approx(best.instances * PRICES.types[best.type].usd_per_hour * 730)


def test_more_traffic_costs_more() -> None:
    months = []
    for rate in (100, 800):
        best = made(tenants(50), rate, Goal(0.3, 0.01), types=("ml.m5.large",)).best
        assert best is not None
        months.append(best.usd_month)
    assert months[1] >= 3 * months[0]


def test_a_slower_processor_needs_more_instances() -> None:
    counts = []
    for factor in (1.0, 3.0):
        best = made(tenants(50), 100, Goal(0.5, 0.01), Settings(processor_factor=factor), ("ml.c5.xlarge",)).best
        assert best is not None
        counts.append(best.instances)
    assert counts[1] > counts[0]


def test_a_goal_that_nothing_meets_says_what_is_in_the_way() -> None:
    """Random routing: each instance has its own disk, so that more of them hold no more models."""
    nothing = made(tenants(2000), 50, Goal(0.3, 0.01), Settings(volume=20 * GB), ("ml.m5.large",))
    assert nothing.best is None
    assert "cold" in nothing.options[0].missed
    assert nothing.options[0].limit


def test_one_model_and_one_request_can_be_planned() -> None:
    one = Requests(np.array([0.0]), np.array([0], np.int32))
    planned = plan(tenants(1), one, np.array([1e-6]), PRICES, Goal(None, None), Settings(), ("ml.m5.large",))
    assert planned.best is not None
    assert planned.best.instances == 1


def test_no_fewer_than_asked_for() -> None:
    best = made(tenants(5), 1, Goal(), Settings(at_least=2), ("ml.m5.large",)).best
    assert best is not None
    assert best.instances == 2


@pytest.mark.parametrize(
    ("types", "words"), [(("ml.x9.large",), "has no price of 'ml.x9.large'"), (("ml.m5",), "has no price")]
)
def test_a_type_without_a_price_is_refused(types: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        made(tenants(5), 1, Goal(), types=types)


def test_a_type_with_a_gpu_is_refused(tmp_path: Path) -> None:
    text = instances.SHIPPED.read_text() + '"ml.g5.xlarge" = { vcpus = 4, memory_gib = 16, usd_per_hour = 1.41 }\n'
    (tmp_path / "prices.toml").write_text(text)
    prices = instances.load(tmp_path / "prices.toml")
    asked, rates = trace.busiest_of(trace.Law(1, 0.9, 60), 5, 100)
    with pytest.raises(UsageError, match="has a GPU"):
        plan(tenants(5), asked, rates, prices, Goal(), Settings(), ("ml.g5.xlarge",))
    assert all("ml.g5" not in o.type for o in plan(tenants(5), asked, rates, prices, Goal(), Settings()).options)


def test_goals_that_make_no_sense_are_refused() -> None:
    for goal in (Goal(0.0), Goal(-1.0), Goal(0.1, 2.0)):
        with pytest.raises(UsageError):
            goal.check()


def test_the_busiest_part_of_a_trace_is_what_is_planned_for() -> None:
    time = np.concatenate([np.arange(0, 100, 1.0), np.arange(100, 110, 0.01), np.arange(110, 200, 1.0)])
    part = busiest(Requests(time, np.zeros(len(time), np.int32)), 500)
    assert len(part) == 500
    assert part.seconds == pytest.approx(4.99)


# ---- the other ways


def test_the_other_ways_are_priced_by_hand() -> None:
    """Ten models of 105 MB, a request a second each: one of the cheapest type each; 3 GB serverless."""
    asked = Requests(np.arange(0, 100, 0.1), np.tile(np.arange(10), 100).astype(np.int32))
    planned = plan(tenants(10), asked, np.full(10, 1.0), PRICES, Goal(), Settings(), ("ml.m5.large",), changes=False)
    single, serverless, components = planned.alternatives
    cheapest = min(kind.usd_per_hour for kind in PRICES.types.values())
    assert single.usd_month == pytest.approx(10 * cheapest * 730)
    assert serverless.usd_month == pytest.approx(10 * 0.012 * 730 * 3600 * 0.00006)
    assert components.usd_month is not None
    assert components.usd_month < single.usd_month


def test_serverless_without_a_price_for_the_size_is_not_guessed() -> None:
    asked, rates = trace.busiest_of(trace.Law(1, 0.9, 60), 5, 100)
    big = tenants(5, disk=8 * GB, active=8 * GB)
    planned = plan(big, asked, rates, PRICES, Goal(None, None), Settings(), ("ml.r5.2xlarge",), changes=False)
    assert planned.alternatives[1].usd_month is None
    assert "5 models (such as tenant-0) need more than the 3 GB of memory" in planned.alternatives[1].words
    without = replace(PRICES, serverless={})
    planned = plan(big, asked, rates, without, Goal(None, None), Settings(), ("ml.r5.2xlarge",), changes=False)
    assert "no price" in planned.alternatives[1].words


def test_serverless_has_a_disk_of_5_gb() -> None:
    """Weights that take little memory (mapped from the disk as they are asked for, say) still have to lie somewhere."""
    asked, rates = trace.busiest_of(trace.Law(1, 0.9, 60), 2, 100)
    for disk, words in ((5 * GB, ""), (5 * GB + 1, "2 models (such as tenant-0) need more than the 5 GB of disk")):
        large = tenants(2, disk=disk, active=GB)
        planned = plan(large, asked, rates, PRICES, Goal(None, None), Settings(), ("ml.r5.2xlarge",), changes=False)
        offer = planned.alternatives[1]
        assert (offer.usd_month is None) == bool(words)
        assert words in offer.words


# ---- what would change it


def test_changes_name_what_they_save(typical: Plan) -> None:
    changes = {change.name: change for change in typical.changes}
    assert typical.best is not None
    assert changes["int8"].instances is not None
    assert changes["int8"].instances < typical.best.instances
    less = typical.best.instances - changes["int8"].instances
    assert f"saves {less} of {typical.best.instances} instances" in changes["int8"].words
    assert "adapters on one shared base" in changes
    assert any("stock container" in name for name in changes)
    assert any("warm list" in name for name in changes)


def test_a_plan_for_the_stock_container_says_what_ours_would_save() -> None:
    asked, rates = trace.busiest_of(trace.Law(20, 0.9, 3600), 60, 6000)
    stock = tenants(60, active=500 * MB, load=4.0, answer=0.02, cores=1.0)
    planned = plan(stock, asked, rates, PRICES, Goal(2.0, 0.05), Settings(serving=STOCK), ("ml.m5.xlarge",))
    assert any(change.name == "our container instead of the stock one" for change in planned.changes)


def test_int8_is_faster_on_processors_that_have_instructions_for_it_alone() -> None:
    asked, rates = trace.busiest_of(trace.Law(20, 0.9, 3600), 60, 6000)
    for kind, words in (("ml.m5.xlarge", "for ml.m5.xlarge has no VNNI"), ("ml.c7i.xlarge", "0.49 of the seconds")):
        planned = plan(tenants(60), asked, rates, PRICES, Goal(0.3, 0.01), Settings(), (kind,))
        assert words in next(change.words for change in planned.changes if change.name == "int8")


def test_a_small_volume_is_worth_a_larger_one() -> None:
    asked, rates = trace.busiest_of(trace.Law(50, 0.9, 3600), 400, 6000)
    settings = Settings(volume=20 * GB)
    planned = plan(tenants(400), asked, rates, PRICES, Goal(0.3, 0.01), settings, ("ml.m5.xlarge",))
    assert planned.best is None
    volume = next(change for change in planned.changes if change.name == "a volume of 512 GB")
    assert "meets the goal with" in volume.words


def test_what_a_warm_list_changes_is_said_of_the_time_that_is_left_of_the_trace() -> None:
    """A live endpoint's requests may begin late in their first hour: a hundred, a second apart, after 50 minutes."""
    asked = Requests(3000.0 + np.arange(100), (np.arange(100) % 5).astype(np.int32))
    planned = plan(tenants(5), asked, np.full(5, 0.2), PRICES, Goal(None, None), Settings(), ("ml.m5.large",))
    warm = next(change for change in planned.changes if "warm list" in change.name)
    assert warm.name == "a warm list of the most popular"
    assert warm.words.startswith("in the 74 seconds after a deployment ")


def test_where_more_instances_do_not_help_the_caches_are_what_limits() -> None:
    """Ten thousand models of which a volume holds a tenth: few instances do little but download, and more do not have
    more of the models each."""
    many = tenants(10_000)
    asked, rates = trace.busiest_of(trace.Law(100, 0.5, 3600), len(many), 8000)
    settings = Settings(volume=90 * GB)
    planned = plan(many, asked, rates, PRICES, Goal(0.3, 0.2), settings, ("ml.m5.xlarge",), changes=False)
    assert planned.best is None
    assert "cold" in planned.options[0].missed
    assert "models do not stay" in planned.options[0].limit


@pytest.mark.parametrize(
    ("needs", "factor", "limit"),
    [
        ({"answer": 0.5}, None, "processor (an answer alone takes 0.5 seconds)"),
        ({"answer": 70.0}, None, "processor (answers that take more than 60 seconds alone)"),
        ({}, 100.0, "processor (an answer alone takes 1.2 seconds)"),
        ({"active": 100 * GB}, None, "memory (too little for m0 alone)"),
        ({"disk": 600 * GB, "active": GB}, None, "disk (too little for m0 alone)"),
    ],
)
def test_what_one_request_alone_needs_too_much_of_is_said_and_not_searched_for(
    needs: dict[str, float], factor: float | None, limit: str
) -> None:
    given: dict[str, Any] = {"disk": 90 * MB, "active": 105 * MB, "load": 0.06, "answer": 0.012, **needs}
    asked, rates = trace.busiest_of(trace.Law(5, 0.9, 3600), 1, 2000)
    if factor is not None:
        asked = replace(asked, factor=np.full(len(asked), factor, np.float32))
    planned = plan(models(["m0"], **given), asked, rates, PRICES, Goal(), Settings(), ("ml.m5.xlarge",), changes=False)
    assert planned.best is None
    (option,) = planned.options
    assert option.limit == limit
    assert len(planned.trials) == 1


def test_overload_is_distinguished_from_a_window_in_which_queues_have_only_begun_to_grow() -> None:
    """A tenth more than two cores do, for twelve seconds: nobody has waited for long yet."""
    needs = models([f"m{n}" for n in range(50)], disk=1, active=1, answer=0.01, cores=1.0)
    settings = Settings(serving=replace(OURS, batch_limit=1, batch_shared=0.0))
    rate = 2 * 1.1 / 0.01
    asked, rates = trace.busiest_of(trace.Law(rate, 0.0, 3600), len(needs), int(rate * 12))
    search = Search(needs, asked, rates, PRICES, Goal(5.0, 0.1), settings)
    two = PRICES.type("ml.m5.large")
    over = search.trial(two, 1)
    assert over.p99 < 5.0
    assert over.missed == ("steady queues",)
    assert search.trial(two, 2).meets
    many, rates = trace.busiest_of(trace.Law(1e6, 0.0, 3600), len(needs), 20_000)
    planned = plan(needs, many, rates, PRICES, Goal(10.0, 0.1), settings, ("ml.m5.large",), changes=False)
    assert planned.best is None
    assert planned.options[0].limit.startswith("processor (5,0")
    assert planned.options[0].limit.endswith(" instances have enough, 200 are tried)")


def test_int8_and_adapters_have_the_bytes_that_the_documents_say() -> None:
    listed = tenants(4)
    smaller = int8(listed)
    assert smaller.disk.tolist() == [22_500_000] * 4
    assert smaller.active.tolist() == [105 * MB - 67_500_000] * 4
    assert smaller.answer.tolist() == pytest.approx([0.012 * 0.49] * 4)
    shared = adapters(listed)
    assert shared.active.tolist() == [105 * MB, *[15 * MB] * 3]
    assert shared.disk.tolist() == [90 * MB, *[1_800_000] * 3]


# ---- handed on


def test_the_json_has_everything_and_no_nan(typical: Plan) -> None:
    document = report.plan_json(
        typical, tenants(400), PRICES, report.assumptions(tenants(400), PRICES, Settings(), "by hand")
    )
    again = json.loads(json.dumps(document, allow_nan=False))
    assert again["best"]["instances"] == typical.best.instances if typical.best else None
    assert again["prices"]["day"] == PRICES.day
    assert any(PRICES.day in line for line in again["assumptions"])


def test_the_page_stands_alone(typical: Plan) -> None:
    svg = report.cost_and_cold(typical.trials, typical.best, typical.goal)
    shown = report.shown(typical, ["a <note>"], {"cost-and-cold": svg})
    page = report.page(shown)
    assert "a &lt;note&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") == 1
    assert "class=best" in page
    assert typical.best is not None
    rows = shown.tables[0].rows
    assert rows[shown.tables[0].marked or 0][0] == f"{typical.best.instances} x {typical.best.type}"
    assert [one.title for one in shown.pictures] == ["Cost against cold requests"]


def test_plots_are_well_formed_and_leave_out_what_is_no_number() -> None:
    nan = float("nan")
    svg = plots.plot(
        "A & B",
        plots.Axis("x", logarithmic=True),
        plots.Axis("y", " ms"),
        [
            plots.Series("one", [(1, 1), (10, nan), (100, 3), (0, 5)], marked=[(100, 3, "best <1>")]),
            plots.Series("two", [(5, 2)]),
        ],
    )
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text == "A & B"  # type: ignore[union-attr]
    assert len(root.findall(f"{space}circle")) == 4
    assert "nan" not in svg.replace("A & B", "")
    for circle in root.findall(f"{space}circle"):
        assert 0 <= float(circle.attrib["cx"]) <= 640
        assert 0 <= float(circle.attrib["cy"]) <= 400
    ElementTree.fromstring(plots.plot("empty", plots.Axis("x"), plots.Axis("y", logarithmic=True), []))


def test_axes_have_labels_that_fit_beside_them() -> None:
    """Slow answers in seconds; no half instances, of one to three or of two hundred."""

    def labels(svg: str) -> list[str]:
        return [one.text or "" for one in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]

    slow = plots.plot(
        "t", plots.Axis("x"), plots.Axis("y", " ms", logarithmic=True), [plots.Series("a", [(1, 5), (2, 3e5)])]
    )
    assert [one for one in labels(slow) if one.endswith("s")] == [
        "1 ms",
        "10 ms",
        "100 ms",
        "1 s",
        "10 s",
        "100 s",
        "1,000 s",
    ]
    for most in (1, 2, 3, 7, 12, 200):
        drawn = report.hits_and_instances([("random", [(1.0, 0.5), (float(most), 0.9)])], "ml.m5.large")
        across = [one for one in labels(drawn) if one.replace(",", "").isdigit()]
        assert len(across) >= 2
        assert not [one for one in labels(drawn) if one[:1].isdigit() and "." in one and "%" not in one]


def test_variants_scale_with_the_traffic(typical: Plan) -> None:
    assert typical.best is not None
    value = tfvars.variants(replace(typical.best, instances=6), "least-outstanding", peak=120.0, trough=40.0)
    fewest = tfvars.variants(replace(typical.best, instances=6), "random", peak=120.0, trough=1.0, at_least=3)
    assert fewest["primary"]["autoscaling"]["min_capacity"] == 3
    assert value["primary"]["instance_count"] == 6
    assert value["primary"]["routing_strategy"] == "LEAST_OUTSTANDING_REQUESTS"
    assert value["primary"]["autoscaling"] == {
        "min_capacity": 2,
        "max_capacity": 12,
        "invocations_per_instance": 1200,
    }
    assert value["primary"]["volume_size_gb"] * GB >= 400 * 90 * MB
