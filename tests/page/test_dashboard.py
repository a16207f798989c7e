"""What docs/page.md says to type: `invoke dashboard` for an endpoint on AWS, `invoke local --open` on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from local_tools import Cloud, wait_for
from page_tools import OURS, ask

from mme.local import LocalAws

REPOSITORY = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MME_"))}
    return {**inherited, **more}


@contextmanager
def task(*words: str, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A task that goes on until it is interrupted."""
    started = subprocess.Popen(
        [sys.executable, "-m", "mme", *words],
        cwd=REPOSITORY,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.communicate()


@pytest.fixture
def env(local_aws: LocalAws) -> dict[str, str]:
    return environment(**local_aws.env, AWS_EC2_METADATA_DISABLED="true")


def browser_that_notes(folder: Path) -> str:
    """A program for BROWSER that writes the address down."""
    program = folder / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" > "{folder}/opened.new" && mv "{folder}/opened.new" "{folder}/opened"\n')
    program.chmod(0o755)
    return str(program)


def test_it_shows_an_endpoint_read_only_to_whoever_has_the_address(
    cloud: Cloud, env: dict[str, str], tmp_path: Path
) -> None:
    endpoint = cloud.endpoint()
    other = cloud.endpoint()
    target = cloud.publish("bert-00000000000a.tar.gz", times=2)
    cloud.invoke(endpoint, target)
    env = {**env, "BROWSER": browser_that_notes(tmp_path)}
    with task("dashboard", "--endpoint", endpoint, "--open", "--json", env=env) as started:
        assert started.stdout is not None
        said = "".join(iter(lambda: started.stdout.readline(), "}\n"))  # type: ignore[union-attr]
        shown = json.loads(said + "}")
        assert (shown["endpoint"], shown["region"]) == (endpoint, env["AWS_REGION"])
        parts = urlsplit(shown["url"])
        assert parts.hostname == "127.0.0.1"
        base, token = f"http://{parts.netloc}/", parse_qs(parts.query)["token"][0]
        assert len(token) >= 20
        wait_for((tmp_path / "opened").exists)
        assert (tmp_path / "opened").read_text().strip() == shown["url"]

        ours = {**OURS, "X-Mme-Page": token}
        assert ask(base, "", headers={}).status == 200
        for headers in (OURS, {**OURS, "X-Mme-Page": token[:-1]}, {}, {**ours, "Host": "evil.example.com"}):
            assert ask(base, "api/state", headers=headers).status == 403
        state = ask(base, "api/state", headers=ours).json
        assert [one["name"] for one in state["endpoints"]] == [endpoint]
        assert (state["where"], state["can_predict"], state["exports"]) == ("aws", False, [])
        assert (state["endpoint"]["status"], state["endpoint"]["instances"]) == ("InService", None)
        assert state["endpoint"]["variants"][0]["figures"]["requests"] == 1
        assert [model["name"] for model in ask(base, "api/models", headers=ours, endpoint=endpoint).json["models"]] == [
            "bert"
        ]
        assert ask(base, "api/log", headers=ours, endpoint=endpoint).status == 200
        assert ask(base, "api/series", headers=ours, endpoint=endpoint).json["variants"]["AllTraffic"]
        for path in ("api/models", "api/log", "api/series"):
            assert "only" in ask(base, path, headers=ours, endpoint=other).json["error"]
        reply = ask(base, "api/predict", method="POST", headers=ours, body=b"1", endpoint=endpoint, target=target)
        assert (reply.status, reply.json["error"]) == (403, "This page is read only.")

        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=30)
        assert (started.returncode, out, err) == (0, "", "")


def test_what_may_not_be_read_is_said_and_the_rest_is_shown(cloud: Cloud, env: dict[str, str]) -> None:
    endpoint = cloud.endpoint()
    keys = cloud.user(
        {"Effect": "Allow", "Action": ["sagemaker:Describe*", "cloudwatch:GetMetricData"], "Resource": "*"}
    )
    env = {**env, "AWS_ACCESS_KEY_ID": keys["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"]}
    with task("dashboard", "--endpoint", endpoint, env=env) as started:
        assert started.stdout is not None
        parts = urlsplit(started.stdout.readline().strip())
        ours = {**OURS, "X-Mme-Page": parse_qs(parts.query)["token"][0]}
        state = ask(f"http://{parts.netloc}/", "api/state", headers=ours).json
        assert state["endpoint"]["variants"][0]["figures"] is not None
        assert set(state["unknown"]) == {"autoscaling", "alarms"}
        assert "no permission" in state["unknown"]["alarms"]
        reply = ask(f"http://{parts.netloc}/", "api/log", headers=ours, endpoint=endpoint)
        assert (reply.status, "no permission" in reply.json["error"]) == (502, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--endpoint", "nobody"], 1, "There is no endpoint nobody."),
        ([], 2, "No endpoint is known."),
        (["--endpoint", "e", "--port", "70000"], 2, "they end at 65535"),
        (["--endpoint", "e", "--port", "x"], 2, "--port takes a whole number"),
    ],
)
def test_what_cannot_be_is_an_error_at_once(env: dict[str, str], words: list[str], code: int, said: str) -> None:
    from mme.errors import EndpointError, UsageError

    expected = {1: EndpointError.exit_code, 2: UsageError.exit_code}[code]
    done = subprocess.run(
        [sys.executable, "-m", "mme", "dashboard", *words], cwd=REPOSITORY, env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (expected, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_an_error(cloud: Cloud, env: dict[str, str], local_aws: LocalAws) -> None:
    words = ["--endpoint", cloud.endpoint(), "--port", str(urlsplit(local_aws.url).port)]
    done = subprocess.run(
        [sys.executable, "-m", "mme", "dashboard", *words], cwd=REPOSITORY, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "cannot be used" in done.stderr


def test_local_opens_its_page(tmp_path: Path) -> None:
    env = environment(BROWSER=browser_that_notes(tmp_path))
    words = ["--port", "0", "--data-dir", str(tmp_path / "aws"), "--open"]
    with task("local", *words, env=env) as started:
        assert started.stdout is not None
        url = started.stdout.readline().removeprefix("export AWS_ENDPOINT_URL=").strip()
        wait_for((tmp_path / "opened").exists)
        assert (tmp_path / "opened").read_text().strip() == f"{url}/_mme/"
        assert b"page.js" in ask(f"{url}/_mme/", headers={}).body
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=60)
        assert f"the page to look at: {url}/_mme/" in said


def test_where_there_is_no_browser_the_address_is_enough(tmp_path: Path) -> None:
    env = environment(DISPLAY="", WAYLAND_DISPLAY="", BROWSER="")
    with task("local", "--port", "0", "--data-dir", str(tmp_path / "aws"), "--open", env=env) as started:
        assert started.stdout is not None
        started.stdout.readline()
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=60)
        if sys.platform.startswith("linux"):
            assert "no browser was found" in said
