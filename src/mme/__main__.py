"""The command ``mme``, and ``python -m mme``: the Invoke tasks, without a tasks.py beside the catalogue."""

from __future__ import annotations

import sys

from invoke import Collection, ParseError, Program

import mme.tasks
from mme import __version__
from mme.chain import Executor
from mme.tasks.command import print_error, reader_gone


class Command(Program):  # type: ignore[misc]
    """Invoke's program. With --json, a mistake on the command line (an unknown flag) is printed as JSON too."""

    def parse_tasks(self) -> None:
        try:
            super().parse_tasks()
        except ParseError as error:
            if "--json" in self.argv:
                print_error("UsageError", str(error), "See mme --list, and mme --help TASK.", 1)
            raise


program = Command(
    name="mme",
    version=__version__,
    binary="mme",
    binary_names=["mme"],
    namespace=Collection.from_module(mme.tasks),
    executor_class=Executor,
)


def main() -> None:
    """Run the tasks that the command line names; does not return."""
    try:
        program.run()
    except BrokenPipeError:  # in what Invoke prints itself, such as the list of tasks
        sys.exit(reader_gone())


if __name__ == "__main__":
    main()
