"""The task that the catalogue suggests for a class of models is the one that the container would infer."""

from __future__ import annotations

from mme.catalog.suggestion import TASKS_OF_CLASSES
from mme.container.workers.pipeline import ARCHITECTURE_TASKS


def test_both_say_the_same_of_a_class() -> None:
    both = TASKS_OF_CLASSES.keys() & ARCHITECTURE_TASKS.keys()
    assert "ForSequenceClassification" in both
    assert {name: TASKS_OF_CLASSES[name] for name in both} == {name: ARCHITECTURE_TASKS[name] for name in both}
