"""The command ``mme``, and ``python -m mme``: the Invoke tasks, without a tasks.py beside the catalogue."""

from __future__ import annotations

from invoke import Collection, Program

import mme.tasks
from mme import __version__
from mme.chain import Executor

program = Program(
    name="mme",
    version=__version__,
    binary="mme",
    binary_names=["mme"],
    namespace=Collection.from_module(mme.tasks),
    executor_class=Executor,
)


def main() -> None:
    """Run the tasks that the command line names; does not return."""
    program.run()


if __name__ == "__main__":
    main()
