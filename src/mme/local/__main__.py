"""``python -m mme.local``: the local AWS from the command line."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mme.errors import MmeError
from mme.local.console import log
from mme.local.server import serve
from mme.local.settings import PAGE, Settings, exports
from mme.page import browser


def parse(argv: Sequence[str]) -> Settings:
    """The settings that the words ask for; exits with a usage message when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m mme.local",
        description="AWS on this machine: S3, IAM, STS, SageMaker with real multi-model endpoints, CloudWatch and "
        "what else Terraform needs, on one port of 127.0.0.1. Runs until interrupted.",
    )
    parser.add_argument("--port", type=int, default=0, help="the port; 0 (the default) takes a free one")
    parser.add_argument("--data-dir", type=Path, required=True, help="a folder of its own for everything it keeps")
    parser.add_argument(
        "--container",
        default="ours",
        metavar="ours|stock|COMMAND",
        help="what hosts the models: ours (mme.container), stock (multi-model-server with the Hugging Face toolkit), "
        "or a command that keeps SageMaker's contract on the port in SAGEMAKER_BIND_TO_PORT",
    )
    parser.add_argument(
        "--region", default="us-east-1", help="the region in the export lines; its partition is the account's"
    )
    parser.add_argument("--account", default="123456789012", help="the account's 12 digits")
    parser.add_argument(
        "--no-iam", dest="iam", action="store_false", help="do not hold identities and roles to their policies"
    )
    parser.add_argument(
        "--max-instances",
        type=int,
        default=2,
        metavar="N",
        help="how many containers run for one variant (default 2); more instances are counted, and the log says so",
    )
    parser.add_argument(
        "--minute",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long AWS's minute lasts here (default 60): of metrics, alarms, cool-downs and the waits of an update",
    )
    parser.add_argument(
        "--exit-with-parent", action="store_true", help="stop as soon as standard input closes (for programs)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser once it is up")
    words = parser.parse_args(argv)
    if not 0 <= words.port <= 65535:
        parser.error("--port is a number from 0 to 65535")
    if words.max_instances < 1:
        parser.error("--max-instances is 1 or more")
    if not 0.1 <= words.minute <= 60:
        parser.error("--minute is 0.1 to 60 seconds")
    if not (len(words.account) == 12 and words.account.isdigit()):
        parser.error("--account is 12 digits")
    if not re.fullmatch(r"[a-z]{2}(-gov)?-[a-z]+-\d", words.region) or words.region.startswith("cn-"):
        parser.error(f"--region {words.region} is none of AWS's, such as us-east-1 or us-gov-west-1, or is in China")
    return Settings(**vars(words))


def main(argv: Sequence[str]) -> int:
    settings = parse(argv)

    def ready(url: str) -> None:
        print("\n".join(exports(url, settings.region)), flush=True)
        log(f"ready at {url}; stop it with Ctrl-C")
        log(f"the page to look at: {url}{PAGE}")
        if settings.open and not browser.show(f"{url}{PAGE}"):
            log("no browser was found to open it in")

    try:
        serve(settings, ready)
    except MmeError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
