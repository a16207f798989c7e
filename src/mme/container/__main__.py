"""``python -m mme.container [serve]``: what the image's entry point runs."""

from __future__ import annotations

import sys

from mme.container.config import SettingsError, read

HELP = """\
usage: python -m mme.container [serve]

Serve models by SageMaker's multi-model contract until terminated: POST /models loads one, POST /models/NAME/invoke
asks it, GET /ping tells that the container is up, GET /metrics is for Prometheus.

Settings come from the environment alone: SAGEMAKER_BIND_TO_PORT (default 8080), SAGEMAKER_MULTI_MODEL, and the MME_*
variables that docs/container.md lists.
"""


def run(arguments: list[str]) -> int:
    if any(word in ("-h", "--help") for word in arguments):
        sys.stdout.write(HELP)
        return 0
    if arguments not in ([], ["serve"]):
        sys.stderr.write(f"usage: python -m mme.container [serve]   (got: {' '.join(arguments)})\n")
        return 2
    try:
        settings = read()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    from mme.container.front.routes import main

    return main(settings)


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[1:]))
