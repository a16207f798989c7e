"""The tasks of this repository: `invoke --list` shows them. They live in mme.tasks."""

from invoke import Collection

import mme.tasks

ns = Collection.from_module(mme.tasks)
