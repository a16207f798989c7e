"""The page in a real browser: what a person sees and does.

The browser is the Chromium of this machine, found on PATH (MME_CHROMIUM names another). Where there is none these tests
are skipped. `make browser` installs Debian's, and so does `make test` where CI is set.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from local_tools import Cloud, wait_for
from page_tools import ask
from PIL import Image

from mme import channels, releases
from mme.capacity import plots, published
from mme.local import LocalAws

playwright_api = pytest.importorskip("playwright.sync_api")
expect = playwright_api.expect

CHROMIUM = os.environ.get("MME_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is on PATH (make browser installs Debian's)")
PATIENCE = 30_000  # milliseconds; a machine with much to do is slow
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[*arguments, "--disable-dev-shm-usage"])
        yield started
        started.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab that fails the test on whatever the page complains of."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.complaints = complaints
    yield page
    context.close()
    assert complaints == []


PLOT = plots.plot("Cost & cold", plots.Axis("x"), plots.Axis("y"), [plots.Series("one", [(1, 1), (2, 3)])])
PLAN = published.Shown(
    "Goal: p99 under 300 ms.",
    [
        published.Table(
            "Instances", ("instances", "USD a month"), [("1 x ml.m5.large", "84"), ("2 x ml.m5.xlarge", "336")], 1
        ),
        published.Table(
            "Other ways", ("with", "in words"), [("int8", "<b>saves</b><script>document.title=1</script>")]
        ),
    ],
    [published.Picture("Cost", PLOT), published.Picture("Hits", PLOT.replace("</svg>", "<script>1</script></svg>"))],
    ["Prices: us-east-1."],
)


def look(tab: Any, aws: LocalAws, endpoint: str, section: str = "overview") -> None:
    """Opens the page at this endpoint's section."""
    tab.goto(f"{aws.page}?endpoint={endpoint}#{section}")
    expect(tab.locator("#endpoint")).to_have_value(endpoint)


def focused(place: Any) -> None:
    """Waits until what is at the place has the focus of its document."""
    wait_for(lambda: place.evaluate("node => node === document.activeElement"))


def publish_many(cloud: Cloud, count: int) -> list[str]:
    names = [f"model-{number:04d}" for number in range(count)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: cloud.publish(f"{name}-0123456789ab.tar.gz", b"no archive"), names))
    return names


def test_the_overview_follows_what_happens(cloud: Cloud, local_aws: LocalAws, tab: Any) -> None:
    endpoint = cloud.endpoint()
    look(tab, local_aws, endpoint)
    expect(tab.locator("#status")).to_have_text("in service")
    loaded = tab.locator(".tile", has_text="Loaded now").locator(".v")
    expect(loaded).to_have_text("0")
    target = cloud.publish("bert-00000000000c.tar.gz", times=3)
    cloud.invoke(endpoint, target)
    expect(loaded).to_have_text("1")  # without anybody touching the page
    expect(tab.locator(".tile", has_text="Requests, last hour").locator(".v")).to_have_text("1")
    expect(tab.locator(".chart", has_text="Requests a minute").locator("svg path")).to_have_count(1)
    expect(tab.locator("#exports pre")).to_contain_text(f"export AWS_ENDPOINT_URL={local_aws.url}")
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.locator("#exports").get_by_role("button", name="Copy").click()
    copied = tab.evaluate("navigator.clipboard.readText()")
    assert copied.splitlines()[0] == f"export AWS_ENDPOINT_URL={local_aws.url}"


def test_a_model_is_found_opened_tried_and_laid_beside_another_version(
    cloud: Cloud, local_aws: LocalAws, tab: Any
) -> None:
    endpoint = cloud.endpoint()
    cloud.publish("bert-00000000000a.tar.gz", times=2)
    cloud.publish("bert-00000000000b.tar.gz", times=3)
    cloud.publish("gpt2-00000000000c.tar.gz", times=5)
    store = releases.Store(cloud.bucket)
    channel = channels.read(cloud.s3, store, "bert@staging")
    channels.change(cloud.s3, store, channel, {"bert-00000000000a.tar.gz": 100.0}, author="me", action="promote")
    look(tab, local_aws, endpoint, "models")
    expect(tab.locator("#table tbody tr")).to_have_count(2)
    tab.locator("#search").fill("staging")
    expect(tab.locator("#table tbody tr")).to_have_count(1)
    tab.get_by_role("button", name="bert", exact=True).click()
    detail = tab.locator("#detail")
    expect(detail.locator("tbody tr")).to_have_count(2)
    expect(detail.locator("tr", has_text="00000000000a").locator(".chip")).to_have_text("bert@staging")
    detail.locator("tr", has_text="00000000000a").get_by_role("button", name="Compare").click()
    expect(tab.locator("#section-try")).to_be_visible()
    tab.get_by_label("JSON", exact=True).check()
    tab.locator("#input textarea").fill("7")
    tab.get_by_role("button", name="Run").click()
    answers = tab.locator("#results .answer")
    expect(answers.nth(0)).to_contain_text("14")
    expect(answers.nth(1)).to_contain_text("21")
    expect(answers.nth(0)).to_contain_text("cold")


def test_everything_by_keyboard(cloud: Cloud, local_aws: LocalAws, tab: Any) -> None:
    endpoint = cloud.endpoint()
    cloud.publish("bert-00000000000a.tar.gz", times=2)
    look(tab, local_aws, endpoint)
    tab.keyboard.press("Tab")
    focused(tab.locator(".skip"))
    expect(tab.locator(".skip")).to_be_in_viewport()
    tab.locator("nav a", has_text="Models").focus()
    tab.keyboard.press("Enter")
    expect(tab.locator("#table tbody button")).to_have_count(1)
    tab.keyboard.press("/")
    focused(tab.locator("#search"))
    tab.keyboard.type("ber")
    for _ in range(3):
        tab.keyboard.press("Tab")  # over the two selections, to the model
    focused(tab.get_by_role("button", name="bert", exact=True))
    tab.keyboard.press("Enter")
    expect(tab.locator("#detail tbody tr")).to_have_count(1)
    time.sleep(2.5)  # a round of asking: it draws the rows anew
    focused(tab.get_by_role("button", name="bert", exact=True))
    tab.keyboard.press("Tab")
    focused(tab.locator("#detail").get_by_role("button", name="Try"))
    tab.keyboard.press("Enter")
    tab.get_by_label("JSON", exact=True).focus()
    tab.keyboard.press("Space")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab")
    focused(tab.locator("#input textarea"))
    tab.keyboard.press("Control+A")
    tab.keyboard.type("21")
    tab.keyboard.press("Control+Enter")
    expect(tab.locator("#results .answer")).to_contain_text("42")


def test_a_plan_is_shown_with_its_tables_and_plots(cloud: Cloud, local_aws: LocalAws, tab: Any) -> None:
    endpoint = cloud.endpoint()
    look(tab, local_aws, endpoint, "plan")
    expect(tab.locator("#plan-none")).to_contain_text("invoke capacity plan")
    store = releases.Store(cloud.bucket)
    published.publish(cloud.s3, store, "first", PLAN, datetime(2026, 11, 26, tzinfo=timezone.utc))
    expect(tab.get_by_role("combobox", name="Which plan")).to_have_value("first")  # without anybody touching the page
    expect(tab.locator("#plan-shown")).to_contain_text("Goal: p99 under 300 ms.")
    expect(tab.locator("#plan-shown tr.marked")).to_have_text("2 x ml.m5.xlarge336")
    expect(tab.locator("#plan-shown tr.marked td.n")).to_have_text("336")
    images = tab.locator("#plan-shown img")
    expect(images).to_have_count(2)
    wait_for(lambda: images.evaluate_all("all => all.every(one => one.complete && one.naturalWidth === 640)"))
    assert tab.locator("main script, main b").count() == 0, "what stands in a plan is text"
    other = replace(PLAN, goal="Goal: none.", pictures=[])
    published.publish(cloud.s3, store, "second", other, datetime.now(timezone.utc))
    expect(tab.locator("#plan option")).to_have_count(2)
    tab.get_by_role("combobox", name="Which plan").select_option("second")
    expect(tab.locator("#plan-shown")).to_contain_text("Goal: none.")
    published.publish(cloud.s3, store, "second", replace(other, goal="Goal: another."), datetime.now(timezone.utc))
    expect(tab.locator("#plan-shown")).to_contain_text("Goal: another.")
    expect(tab.get_by_role("combobox", name="Which plan")).to_have_value("second")


def test_plots_are_as_dark_as_the_page(cloud: Cloud, local_aws: LocalAws, browser: Any) -> None:
    endpoint = cloud.endpoint()
    published.publish(cloud.s3, releases.Store(cloud.bucket), "first", PLAN, datetime.now(timezone.utc))
    for scheme, theme, light in (("light", "auto", True), ("dark", "auto", False), ("dark", "light", True)):
        context = browser.new_context(color_scheme=scheme)
        context.set_default_timeout(PATIENCE)
        tab = context.new_page()
        tab.add_init_script(f"localStorage.setItem('mme-theme', '{theme}')")
        look(tab, local_aws, endpoint, "plan")
        image = tab.locator("#plan-shown img").first
        wait_for(lambda: image.evaluate("one => one.complete && one.naturalWidth === 640"))  # noqa: B023
        with Image.open(io.BytesIO(image.screenshot())) as picture:
            shade = picture.convert("L").getpixel((picture.width - 30, 30))
        assert (shade > 200) == light, (scheme, theme, shade)
        context.close()


HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def test_what_models_logs_and_names_say_is_text(cloud: Cloud, local_aws: LocalAws, tab: Any) -> None:
    endpoint = cloud.endpoint()
    target = cloud.publish("odd-00000000000a.tar.gz", status=400, message=HOSTILE)
    logs = cloud.client("logs")
    group = f"/aws/sagemaker/Endpoints/{endpoint}"
    cloud.invoke(endpoint, cloud.publish("fine-00000000000b.tar.gz", times=1))
    if not logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"]:
        logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName="AllTraffic/i-1")
    line = json.dumps(
        {"level": "error", "event": "invoke", "target": HOSTILE, "status": 500, "total_ms": 1.5, "message": HOSTILE}
    )
    event = {"timestamp": int(time.time() * 1000), "message": line}
    logs.put_log_events(logGroupName=group, logStreamName="AllTraffic/i-1", logEvents=[event])
    look(tab, local_aws, endpoint, "log")
    expect(tab.locator("#lines .line.error")).to_contain_text("<img src=x onerror")
    look(tab, local_aws, endpoint, "requests")
    expect(tab.locator("#request-table tbody tr").first).to_contain_text("<img src=x onerror")
    look(tab, local_aws, endpoint, "models")
    tab.get_by_role("button", name="odd", exact=True).click()
    tab.locator("#detail").get_by_role("button", name="Try").click()
    tab.get_by_role("button", name="Run").click()
    expect(tab.locator("#results .answer")).to_contain_text("<img src=x onerror")
    expect(tab.locator("#results .badge.bad")).to_have_text("the model answered 400")
    assert target in tab.locator("#results").inner_text()
    assert tab.locator("main img[src=x], main script").count() == 0
    assert "owned" not in tab.title()


def test_an_image_goes_out_with_its_type_and_two_texts_come_back_as_their_similarity(
    cloud: Cloud, local_aws: LocalAws, tab: Any
) -> None:
    """The answers are made up here; what is tested is what the page sends and shows."""
    endpoint = cloud.endpoint()
    cloud.publish("clip-00000000000a.tar.gz", times=1)
    sent: list[tuple[str, bytes]] = []

    def answer(route: Any) -> None:
        request = route.request
        sent.append((request.headers["content-type"], request.post_data_buffer))
        text = json.dumps(
            [{"label": "cat", "score": 0.75}, {"label": "dog", "score": 0.25}]
            if request.headers["content-type"] == "image/png"
            else {"embeddings": [[1.0, 0.0], [0.6, 0.8]]}
        )
        values = {"target": "clip-00000000000a.tar.gz", "seconds": 0.01, "variant": "v", "bytes": 9, "text": text}
        route.fulfill(json={**values, "content_type": "application/json"})

    tab.route("**/api/predict*", answer)
    look(tab, local_aws, endpoint, "try")
    expect(tab.get_by_label("Model A")).to_have_value("clip")
    tab.get_by_label("Image or sound", exact=True).check()
    tab.get_by_role("button", name="Run").click()
    expect(tab.locator("#results .problem")).to_have_text("Choose a file first.")
    files = {"name": "cat.png", "mimeType": "image/png", "buffer": PIXEL}
    tab.locator("#input input[type=file]").set_input_files(files)
    expect(tab.locator("#input img")).to_be_visible()
    tab.get_by_role("button", name="Run").click()
    expect(tab.locator("#results .row")).to_have_count(2)
    expect(tab.locator("#results .row").first).to_contain_text("0.750")
    tab.get_by_label("Two texts", exact=True).check()
    tab.get_by_role("button", name="Run").click()
    expect(tab.locator("#results .big")).to_have_text("0.600")
    assert sent[0] == ("image/png", PIXEL)
    assert json.loads(sent[1][1]) == {"inputs": ["A cat sits on the mat.", "There is a kitten on the rug."]}


def test_a_sound_comes_back_and_can_be_played(cloud: Cloud, local_aws: LocalAws, tab: Any) -> None:
    """Asked for as a sound, the answer is one that this browser can play, and can be saved."""
    endpoint = cloud.endpoint()
    cloud.publish("tts-00000000000a.tar.gz", times=1)
    made = io.BytesIO()
    with wave.open(made, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(8000))
    asked: list[str] = []

    def answer(route: Any) -> None:
        asked.extend(parse_qs(urlsplit(route.request.url).query)["accept"])
        values = {"target": "tts-00000000000a.tar.gz", "seconds": 0.01, "variant": "v", "bytes": len(made.getvalue())}
        content = base64.b64encode(made.getvalue()).decode()
        route.fulfill(json={**values, "base64": content, "content_type": "audio/wav"})

    tab.route("**/api/predict*", answer)
    look(tab, local_aws, endpoint, "try")
    expect(tab.get_by_label("Model A")).to_have_value("tts")
    tab.get_by_label("Answer as").select_option("audio/wav")
    tab.get_by_role("button", name="Run").click()
    player = tab.locator("#results audio")
    expect(player).to_be_visible()
    wait_for(lambda: player.evaluate("sound => sound.readyState >= 1 && sound.error === null"))
    assert player.evaluate("sound => sound.duration") == 0.5
    with tab.expect_download() as saving:
        tab.get_by_role("link", name="Save the answer").click()
    assert saving.value.suggested_filename == "answer.wav"
    assert Path(saving.value.path()).read_bytes() == made.getvalue()
    assert asked == ["audio/wav"]


def test_the_charts_scales_are_not_cut_off(cloud: Cloud, local_aws: LocalAws, tab: Any) -> None:
    """The longest numbers that a scale has lie within the picture, in whatever letters this machine has."""
    look(tab, local_aws, cloud.endpoint())
    expect(tab.locator(".chart").first).to_be_visible()
    cut_off = tab.evaluate(
        """async () => {
            const { chart } = await import("./charts.js");
            const { bytes, time } = await import("./dom.js");
            const box = document.querySelector(".charts");
            const width = box.querySelector("svg").getBoundingClientRect().width;
            const outside = [];
            for (const [show, value] of [[bytes, 500e6], [bytes, 250e6], [time, 500], [time, 250], [bytes, 5e9]]) {
                const drawn = chart(width, "x", [{ name: "a", points: [[0, value], [60000, value]] }], show);
                box.append(drawn);
                const left = drawn.querySelector("svg").getBoundingClientRect().left;
                for (const text of drawn.querySelectorAll("svg text"))
                    if (text.getBoundingClientRect().left < left) outside.push(text.textContent);
                drawn.remove();
            }
            for (const value of [0, 1, 3, 5, 7, 12, 45, 250]) {
                const line = { name: "a", points: [[0, value], [60000, value]] };
                const counted = chart(width, "x", [line], String, 0, true);
                const scale = [...counted.querySelectorAll("text")].slice(0, 3).map((text) => Number(text.textContent));
                if (!scale.every(Number.isInteger) || scale[2] < value || new Set(scale).size < 3) outside.push(scale);
            }
            return outside;
        }"""
    )
    assert cut_off == []


@pytest.mark.parametrize("width", [360, 1200])
def test_what_is_read_aloud_has_names(cloud: Cloud, local_aws: LocalAws, tab: Any, width: int) -> None:
    """Also on a narrow screen, where some words are not to be seen: one heading of the page, every field and column
    with a name, headings that skip no step, and what scrolls reached by the keyboard."""
    tab.set_viewport_size({"width": width, "height": 800})
    endpoint = cloud.endpoint()
    cloud.invoke(endpoint, cloud.publish("bert-00000000000a.tar.gz", times=2))
    published.publish(cloud.s3, releases.Store(cloud.bucket), "first", PLAN, datetime.now(timezone.utc))
    for section in ("overview", "models", "try", "requests", "log", "plan"):
        look(tab, local_aws, endpoint, section)
        expect(tab.locator(f"#section-{section}")).to_be_visible()
        expect(tab.get_by_role("heading", level=1)).to_have_count(1)
        expect(tab.get_by_role("combobox", name="Endpoint")).to_have_count(1)
        if section == "overview":
            expect(tab.locator(".chart").first).to_be_visible()
        if section == "models":
            tab.get_by_role("button", name="bert", exact=True).click()
            expect(tab.locator("#detail tbody tr")).to_have_count(1)
        if section == "plan":
            expect(tab.locator("#plan-shown img")).to_have_count(2)
        report = tab.evaluate(
            """() => {
                const seen = (node) => node.checkVisibility();
                const every = (what) => [...document.querySelectorAll(what)].filter(seen);
                const levels = every("h1, h2, h3, h4").map((node) => +node.tagName[1]);
                return {
                    skipped: levels.filter((level, at) => at && level > levels[at - 1] + 1),
                    unnamed: every("th").filter((node) => !node.textContent.trim()).length,
                    unreached: every(".scroll").filter((n) => n.tabIndex < 0 && !n.querySelector("button")).length,
                    wider: document.documentElement.scrollWidth > document.documentElement.clientWidth,
                };
            }"""
        )
        assert report == {"skipped": [], "unnamed": 0, "unreached": 0, "wider": False}, section


def test_two_thousand_models_are_paged_searched_and_not_sent_again(cloud: Cloud, local_aws: LocalAws, tab: Any) -> None:
    endpoint = cloud.endpoint()
    publish_many(cloud, 2000)
    answers: list[tuple[str, int]] = []
    tab.on("response", lambda response: answers.append((response.url, response.status)))
    look(tab, local_aws, endpoint, "models")
    expect(tab.locator("#found")).to_contain_text("2,000 of 2,000 models")
    assert tab.locator("#table tbody tr").count() == 50, "no more rows than a page has"
    tab.get_by_role("button", name="model-0000", exact=True).click()
    expect(tab.locator("#detail .card")).to_be_in_viewport()
    tab.evaluate("document.getElementById('order').dispatchEvent(new Event('input'))")  # draws the rows anew, as a poll
    focused(tab.get_by_role("button", name="model-0000", exact=True))
    assert tab.evaluate("document.getElementById('detail').getBoundingClientRect().top < innerHeight"), "scrolled away"
    tab.get_by_role("button", name="Next").click()
    expect(tab.locator("#table tbody tr").first).to_contain_text("model-0050")
    tab.locator("#search").fill("1987")
    expect(tab.locator("#table tbody tr")).to_have_count(1)
    state = ask(local_aws.page, "api/state", endpoint=endpoint)
    assert len(state.body) < 20_000, "what is polled does not grow with what is released"
    before = len([url for url, _ in answers if "api/models" in url])
    wait_for(lambda: tab.wait_for_timeout(200) or len([url for url, _ in answers if "api/models" in url]) >= before + 2)
    # Where nothing has changed the browser asks and is told so; the body it has is not read again.
    renders = tab.evaluate("performance.getEntriesByName('models').map(entry => entry.duration)")
    assert renders
    assert not tab.evaluate("document.querySelectorAll('#names option').length > 60")


def test_the_page_says_when_the_server_is_gone_and_goes_on_when_it_is_back(
    cloud: Cloud, local_aws: LocalAws, tab: Any
) -> None:
    endpoint = cloud.endpoint()
    look(tab, local_aws, endpoint)
    expect(tab.locator("#live")).to_have_text("live")
    tab.context.set_offline(True)
    expect(tab.locator("#live")).to_have_text("not connected")
    expect(tab.locator("#problems")).to_contain_text("the server does not answer")
    tab.context.set_offline(False)
    expect(tab.locator("#live")).to_have_text("live")
    expect(tab.locator("#problems .problem")).to_have_count(0)
    tab.complaints[:] = [words for words in tab.complaints if "ERR_INTERNET_DISCONNECTED" not in words]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_on_a_phone_and_text_can_be_read(
    cloud: Cloud, local_aws: LocalAws, browser: Any, scheme: str
) -> None:
    endpoint = cloud.endpoint()
    cloud.publish(f"{'a-long-name-of-a-model-' * 3}x-00000000000a.tar.gz", times=2)
    published.publish(cloud.s3, releases.Store(cloud.bucket), "first", PLAN, datetime.now(timezone.utc))
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme, has_touch=True)
    context.set_default_timeout(PATIENCE)
    tab = context.new_page()
    for section in ("overview", "models", "try", "requests", "log", "plan"):
        look(tab, local_aws, endpoint, section)
        tab.wait_for_selector(".live.on")
        wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{section} is {wide} pixels too wide"
    weak = tab.evaluate(CONTRAST)
    assert weak == []
    context.close()


# Foreground and background of the page's colours, by WCAG's formula for contrast; 4.5 is its bound for text.
CONTRAST = """() => {
  const probe = document.body.appendChild(document.createElement('span'));
  const rgb = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map(Number);
  };
  const light = (name) => {
    const [r, g, b] = rgb(name).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const pairs = [['--ink', '--bg'], ['--ink', '--card'], ['--ink', '--soft'], ['--quiet', '--bg'],
    ['--quiet', '--card'], ['--quiet', '--soft'], ['--accent', '--card'], ['--on-accent', '--accent'],
    ['--good', '--good-bg'], ['--good', '--card'], ['--warn', '--warn-bg'], ['--warn', '--card'],
    ['--bad', '--bad-bg']];
  const ratios = pairs.map(([a, b]) => {
    const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
    return [a, b, (high + 0.05) / (low + 0.05)];
  }).filter(([, , ratio]) => ratio < 4.5);
  probe.remove();
  return ratios;
}"""


def test_without_an_endpoint_it_says_what_to_do(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    with LocalAws(tmp_path_factory.mktemp("empty") / "aws") as aws:
        context = browser.new_context()
        tab = context.new_page()
        tab.goto(aws.url)  # the server itself, as people type it
        expect(tab).to_have_url(f"{aws.page}")
        expect(tab.locator("#empty")).to_be_visible()
        expect(tab.locator("#empty")).to_contain_text("terraform")
        expect(tab.locator("#exports pre")).to_contain_text(aws.url)
        context.close()
