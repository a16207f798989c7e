"""scikit-learn stays out of the workers' parent until assisted generation draws a curve, which it then does."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # torch and transformers are imported

SOURCE = """
import sys

from mme.container.workers import curves, parent

parent.warm(["torch", "transformers"])
assert "transformers.generation.utils" in sys.modules
assert not [name for name in sys.modules if name.partition(".")[0] == "sklearn"], "imported for nothing"

from transformers.generation import candidate_generator

assert candidate_generator.is_sklearn_available(), "what transformers does otherwise without it"
matches, chances = [0, 1, 1, 0, 1], [0.1, 0.9, 0.4, 0.35, 0.8]
curve = candidate_generator.roc_curve(matches, chances)

from sklearn import metrics

assert metrics.__file__
assert [part.tolist() for part in curve] == [part.tolist() for part in metrics.roc_curve(matches, chances)]
try:
    candidate_generator.roc_curve([0, 1], [0.1])
except ValueError as error:
    assert "inconsistent numbers of samples" in str(error)
else:
    raise AssertionError("an error of scikit-learn's is its caller's")
print("all is well")
"""


def run(source: str) -> str:
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_imported_when_a_curve_is_drawn_and_answers_as_itself() -> None:
    pytest.importorskip("sklearn.metrics")
    assert run(SOURCE) == "all is well\n"


def test_without_it_transformers_is_imported_as_ever() -> None:
    source = """
import importlib.util, sys

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "sklearn" else find(name, package)

from mme.container.workers import curves

curves.import_generation()
from transformers.generation import candidate_generator

assert not candidate_generator.is_sklearn_available()
assert not hasattr(candidate_generator, "roc_curve")
print("sklearn" in sys.modules)
"""
    assert run(source) == "False\n"


def test_one_that_was_imported_before_is_left_as_it_is() -> None:
    pytest.importorskip("sklearn.metrics")
    source = """
import sklearn.metrics, sys

from mme.container.workers import curves

curves.import_generation()
from transformers.generation import candidate_generator

print(candidate_generator.roc_curve is sklearn.metrics.roc_curve, sys.modules["sklearn"] is sklearn)
"""
    assert run(source) == "True True\n"
