"""``python -m mme.container [serve]``: what the image's entry point runs."""

from __future__ import annotations

import sys

from mme.container.config import SettingsError, read


def run(arguments: list[str]) -> int:
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
