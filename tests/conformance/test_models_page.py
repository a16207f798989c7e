"""docs/models.md is what the rows say, and they are enough."""

import page
from rows import all_rows

from mme.catalog.spec import TASKS

# Their processors need torchvision, which is not among what the tests install.
WITHOUT_A_ROW = {"mask-generation", "keypoint-matching"}


def test_the_page_is_made_of_the_rows() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.text(), "make it again: python tests/conformance/page.py"


def test_there_are_forty_architectures_and_every_task() -> None:
    rows = all_rows()
    assert len({row.architecture for row in rows}) >= 40
    tasks = {"translation" if row.task.startswith("translation") else row.task for row in rows}
    assert set(TASKS) - tasks <= WITHOUT_A_ROW


def test_each_task_is_tried_in_every_run_where_it_can_be() -> None:
    always = [row for row in all_rows() if row.everywhere]
    assert len({row.task for row in always}) >= 15
