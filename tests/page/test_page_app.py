"""The page's application on the local AWS: who is answered, and what is."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from local_tools import Cloud, wait_for
from page_tools import OURS, ask

import mme.page
from mme import channels, releases
from mme.local import LocalAws

STATIC = Path(mme.page.__file__).parent / "static"


# -- its files


def test_the_files_come_with_a_policy_that_lets_nothing_in_from_elsewhere(local_aws: LocalAws) -> None:
    for path, kind in [
        ("", "text/html"),
        ("page.css", "text/css"),
        ("page.js", "text/javascript"),
        ("try.js", "text/"),
    ]:
        reply = ask(local_aws.page, path, headers={})
        assert reply.status == 200
        assert reply.headers["content-type"].startswith(kind)
        policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert not any(name.startswith("access-control") for name in reply.headers)


def test_nothing_in_the_files_is_fetched_from_elsewhere_or_run_as_markup() -> None:
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8")
        addresses = set(re.findall(r"https?://[^\s\"'<>]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path.name  # a name, which nobody fetches
        for words in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            " onclick=",
        ):
            assert words not in text, (path.name, words)
    assert not re.search(r"<script(?![^>]*src=)|\sstyle=|<style", (STATIC / "index.html").read_text(encoding="utf-8"))


def test_every_file_that_the_page_asks_for_is_there(local_aws: LocalAws) -> None:
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    scripts = [path.read_text(encoding="utf-8") for path in STATIC.glob("*.js")]
    wanted = set(re.findall(r'(?:src|href)="([\w.]+)"', html))
    wanted |= {name for text in scripts for name in re.findall(r'from "\./([\w.]+)"', text)}
    assert wanted >= {"page.css", "page.js", "icon.svg", "dom.js", "charts.js", "log.js", "try.js"}
    for name in wanted:
        assert ask(local_aws.page, name, headers={}).status == 200, name


def test_a_file_that_the_browser_has_is_not_sent_again(local_aws: LocalAws) -> None:
    first = ask(local_aws.page, "page.js", headers={})
    again = ask(local_aws.page, "page.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    packed = ask(local_aws.page, "page.js", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.body == first.body


def test_a_browser_that_asks_for_the_server_is_sent_to_the_page(local_aws: LocalAws) -> None:
    for path in ("/", "/_mme"):
        reply = ask(local_aws.url, path, headers={"Sec-Fetch-Mode": "navigate"})
        assert (reply.status, reply.headers["location"]) == (302, "/_mme/")
    assert ask(local_aws.url, "/", headers={}).status == 403  # as before: a request to AWS that nobody signed


# -- who is answered


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"X-Mme-Page": "1", "Origin": "https://example.com"}, id="a page of another site"),
        pytest.param({"X-Mme-Page": "1", "Origin": "http://127.0.0.1:9"}, id="a page of another local server"),
        pytest.param({"X-Mme-Page": "1", "Origin": "null"}, id="a page without an origin, such as a file"),
        pytest.param({"X-Mme-Page": "1", "Host": "evil.example.com"}, id="a name of others that points to loopback"),
        pytest.param({"X-Mme-Page": "1", "Host": "127.0.0.1.evil.example.com"}, id="a name that begins like loopback"),
        pytest.param({"X-Mme-Page": "1", "Host": "evil.example.com:80"}, id="the same with a port"),
        pytest.param({"X-Mme-Page": "1", "Sec-Fetch-Site": "cross-site"}, id="asked for by another site"),
        pytest.param({"X-Mme-Page": "1", "Sec-Fetch-Site": "same-site"}, id="asked for by another port"),
        pytest.param({"Sec-Fetch-Site": "same-origin"}, id="without our header"),
        pytest.param({}, id="a form or an image of another page"),
    ],
)
def test_pages_from_elsewhere_get_nothing_and_change_nothing(
    cloud: Cloud, local_aws: LocalAws, headers: dict[str, str]
) -> None:
    endpoint = cloud.endpoint()
    target = cloud.publish("secret-000000000000.tar.gz", times=2)
    for path in ("api/state", "api/models", "api/log", "api/series"):
        reply = ask(local_aws.page, path, headers=headers, endpoint=endpoint)
        assert reply.status == 403
        assert endpoint.encode() not in reply.body
    reply = ask(
        local_aws.page, "api/predict", method="POST", body=b"1", headers=headers, endpoint=endpoint, target=target
    )
    assert reply.status == 403
    state = ask(local_aws.page, "api/state", endpoint=endpoint).json
    assert [one["models"] for one in state["endpoint"]["instances"]] == [[]], "the model was loaded all the same"


def test_the_question_whether_another_page_may_ask_is_answered_with_no(local_aws: LocalAws) -> None:
    headers = {
        "Origin": "https://example.com",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-mme-page",
    }
    reply = ask(local_aws.page, "api/predict", method="OPTIONS", headers=headers)
    assert reply.status == 403
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_another_site_may_link_to_the_page_but_not_take_its_parts(local_aws: LocalAws) -> None:
    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert ask(local_aws.page, "", headers=linked).status == 200
    taken = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert ask(local_aws.page, "page.js", headers=taken).status == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_what_is_read_is_only_read(local_aws: LocalAws, method: str) -> None:
    for path in ("", "page.js", "api/state", "api/models"):
        assert ask(local_aws.page, path, method=method).status == 405
    assert ask(local_aws.page, "api/predict").status == 405


def test_an_image_or_a_link_of_another_site_changes_nothing_in_the_local_aws(cloud: Cloud, local_aws: LocalAws) -> None:
    """Such a request has no Origin, IAM takes a GET, and the local AWS's key is known to everybody."""
    key = local_aws.env["AWS_ACCESS_KEY_ID"]
    query = {
        "Action": "CreateUser",
        "Version": "2010-05-08",
        "UserName": f"{cloud.name}-mallory",
        "X-Amz-Credential": f"{key}/20260101/us-east-1/iam/aws4_request",
    }
    for mode in ("no-cors", "navigate"):
        headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode}
        reply = ask(local_aws.url, "/", headers=headers, **query)
        assert reply.status == 403, mode
        assert reply.body == b"The local AWS does not answer web pages.\n"
    assert f"{cloud.name}-mallory" not in [user["UserName"] for user in cloud.iam.list_users()["Users"]]
    assert ask(local_aws.url, "/", headers={}, **query).status == 200, "the same, signed by a program, is answered"


# -- what is answered


def test_an_endpoint_made_since_the_list_was_read_is_in_it(cloud: Cloud, local_aws: LocalAws) -> None:
    """The list is kept for some seconds; who asks for an endpoint by its name sees it at once."""
    ask(local_aws.page, "api/state")
    endpoint = cloud.endpoint()
    state = ask(local_aws.page, "api/state", endpoint=endpoint).json
    names = [one["name"] for one in state["endpoints"]]
    assert endpoint in names
    assert names == sorted(names)


def test_state_says_what_runs_and_what_is_loaded(cloud: Cloud, local_aws: LocalAws) -> None:
    endpoint = cloud.endpoint()
    target = cloud.publish("bert-000000000001.tar.gz", times=3)
    cloud.invoke(endpoint, target, b"2")
    state = ask(local_aws.page, "api/state", endpoint=endpoint).json
    assert state["where"] == "local"
    assert state["can_predict"] is True
    assert state["exports"][0] == f"export AWS_ENDPOINT_URL={local_aws.url}"
    assert endpoint in [one["name"] for one in state["endpoints"]]
    shown = state["endpoint"]
    assert (shown["name"], shown["status"]) == (endpoint, "InService")
    (variant,) = shown["variants"]
    assert (variant["name"], variant["current"]) == ("AllTraffic", 1)
    (instance,) = shown["instances"]
    assert (instance["variant"], instance["state"]) == ("AllTraffic", "InService")
    assert [model[:3] for model in instance["models"]] == [[target, "loaded", 0]]
    assert instance["disk"] > 0
    assert instance["memory"] is None or instance["memory"] > 1_000_000
    assert state["unknown"] == {}

    def figures() -> bool:
        seen = ask(local_aws.page, "api/state", endpoint=endpoint).json["endpoint"]["variants"][0]["figures"]
        return seen["requests"] == 1 and seen["load"]["count"] == 1 and seen["loaded"] == 1

    wait_for(figures)  # they are kept for some seconds
    series = ask(local_aws.page, "api/series", endpoint=endpoint).json
    rows = series["variants"]["AllTraffic"]
    assert sum(filter(None, rows["requests"])) == 1
    assert next(value for value in rows["load_ms"] if value is not None) > 0
    assert {len(row) for row in rows.values()} == {180}


def test_models_are_those_of_the_bucket_with_what_their_names_mean(cloud: Cloud, local_aws: LocalAws) -> None:
    endpoint = cloud.endpoint()
    for digest in ("00000000000a", "00000000000b"):
        cloud.publish(f"bert-{digest}.tar.gz", times=1)
    store = releases.Store(cloud.bucket)
    channel = channels.read(cloud.s3, store, "bert")
    channels.change(cloud.s3, store, channel, {"bert-00000000000a.tar.gz": 100.0}, author="me", action="promote")
    reply = ask(local_aws.page, "api/models", endpoint=endpoint)
    listing = reply.json
    assert (listing["bucket"], listing["prefix"], listing["versions"]) == (cloud.bucket, "models/", 2)
    (model,) = listing["models"]
    assert model["name"] == "bert"
    assert sorted(version[0] for version in model["versions"]) == ["00000000000a", "00000000000b"]
    (named,) = listing["channels"]
    assert (named["name"], named["targets"]) == ("bert", {"bert-00000000000a.tar.gz": 100.0})
    again = ask(
        local_aws.page, "api/models", endpoint=endpoint, headers={**OURS, "If-None-Match": reply.headers["etag"]}
    )
    assert (again.status, again.body) == (304, b"")
    answer = ask(local_aws.page, "api/predict", method="POST", body=b"5", endpoint=endpoint, name="bert").json
    assert answer["target"] == "bert-00000000000a.tar.gz", "the name means what its channel says"


def test_predict_gives_the_answer_as_it_came(cloud: Cloud, local_aws: LocalAws) -> None:
    endpoint = cloud.endpoint()
    target = cloud.publish("times-000000000003.tar.gz", times=3)
    answer = ask(
        local_aws.page,
        "api/predict",
        method="POST",
        body=b"14",
        headers={**OURS, "Content-Type": "application/json"},
        endpoint=endpoint,
        target=target,
    ).json
    assert (answer["target"], answer["variant"]) == (target, "AllTraffic")
    assert "42" in answer["text"]
    assert answer["seconds"] > 0
    assert "error" not in answer


def test_a_model_that_fails_is_an_answer_that_says_so(cloud: Cloud, local_aws: LocalAws) -> None:
    endpoint = cloud.endpoint()
    target = cloud.publish("odd-000000000004.tar.gz", status=400, message="<img src=x onerror=alert(1)>")
    answer = ask(local_aws.page, "api/predict", method="POST", body=b"1", endpoint=endpoint, target=target).json
    assert (answer["error"]["code"], answer["error"]["status"]) == ("ModelError", 400)
    assert "<img src=x" in answer["error"]["message"], "text is text; the page writes it as such"
    missing = ask(local_aws.page, "api/predict", method="POST", body=b"1", endpoint=endpoint, target="no.tar.gz").json
    assert missing["error"]["code"] == "ValidationError"
    assert "no.tar.gz" in missing["error"]["message"]


@pytest.mark.parametrize(
    ("query", "headers", "status", "words"),
    [
        ({"endpoint": "E"}, {}, 400, "either a name or a target"),
        ({"endpoint": "E", "name": "a", "target": "b"}, {}, 400, "either a name or a target"),
        ({"target": "a.tar.gz"}, {}, 400, "an endpoint"),
        ({"endpoint": "nobody", "target": "a.tar.gz"}, {}, 502, "There is no endpoint nobody"),
        ({"endpoint": "E", "name": "no-such"}, {}, 502, "no-such has no released version"),
        ({"endpoint": "E", "name": "No Name"}, {}, 400, "not the name of a model"),
        ({"endpoint": "E", "target": "a.tar.gz"}, {"Content-Type": "nonsense"}, 400, "not a content type"),
        ({"endpoint": "E", "target": "a.tar.gz", "accept": "x\r\ny: z/a"}, {}, 400, "not a content type"),
    ],
)
def test_a_request_that_cannot_be_is_refused_with_the_reason(
    cloud: Cloud, local_aws: LocalAws, query: dict[str, str], headers: dict[str, str], status: int, words: str
) -> None:
    endpoint = cloud.endpoint()
    asked = {key: endpoint if value == "E" else value for key, value in query.items()}
    reply = ask(local_aws.page, "api/predict", method="POST", body=b"1", headers={**OURS, **headers}, **asked)
    assert reply.status == status
    assert words in reply.json["error"]


def test_a_body_that_no_endpoint_takes_is_refused_before_it_is_read(cloud: Cloud, local_aws: LocalAws) -> None:
    endpoint = cloud.endpoint()
    big = bytes(6_291_457)
    reply = ask(local_aws.page, "api/predict", method="POST", body=big, endpoint=endpoint, target="a.tar.gz")
    assert reply.status == 413
    assert "at most 6,291,456" in reply.json["error"]


@pytest.mark.parametrize("since", ["-1", "1e9", "٣", "9" * 16, "abc"])
def test_a_time_that_is_none_is_refused(cloud: Cloud, local_aws: LocalAws, since: str) -> None:
    reply = ask(local_aws.page, "api/log", endpoint=cloud.endpoint(), since=since)
    assert reply.status == 400


def test_the_log_comes_once_however_often_it_is_asked_for(cloud: Cloud, local_aws: LocalAws) -> None:
    endpoint = cloud.endpoint()
    logs = cloud.client("logs")
    group, stream = f"/aws/sagemaker/Endpoints/{endpoint}", "AllTraffic/i-1"
    wait_for(lambda: logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"] or make(logs, group))
    logs.create_log_stream(logGroupName=group, logStreamName=stream)
    now = int(time.time() * 1000)
    hostile = "<script>alert(1)</script> \x1b[31m"
    ours = json.dumps(
        {"level": "info", "event": "invoke", "target": "t.tar.gz", "status": 200, "total_ms": 5.5, "cold": True}
    )
    events = [{"timestamp": now, "message": text} for text in ("same", "same", hostile, ours, "x" * 10_000)]
    logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)

    def mine(log: dict[str, object]) -> list[dict[str, object]]:
        return [line for line in log["lines"] if line["stream"] == stream]  # type: ignore[attr-defined, index]

    first = ask(local_aws.page, "api/log", endpoint=endpoint).json
    lines = mine(first)
    assert [line["text"] for line in lines][:3] == ["same", "same", hostile]
    assert len({line["id"] for line in lines}) == 5, "equal lines of one moment are two lines"
    assert (lines[3]["target"], lines[3]["total_ms"], lines[3]["cold"]) == ("t.tar.gz", 5.5, True)
    assert len(str(lines[4]["text"])) == 4_000
    second = ask(local_aws.page, "api/log", endpoint=endpoint, since=str(first["next"])).json
    assert {line["id"] for line in mine(second)} <= {line["id"] for line in lines}


def make(logs: object, group: str) -> bool:
    logs.create_log_group(logGroupName=group)  # type: ignore[attr-defined]
    return True


def test_an_endpoint_that_is_not_there_is_said_to_be_so(local_aws: LocalAws) -> None:
    state = ask(local_aws.page, "api/state", endpoint="nobody").json
    assert state["endpoint"] is None
    assert "There is no endpoint nobody" in state["unknown"]["endpoint nobody"]
    for path in ("api/models", "api/series", "api/log"):
        reply = ask(local_aws.page, path, endpoint="nobody")
        assert (reply.status, "There is no endpoint" in reply.json["error"]) == (502, True)
