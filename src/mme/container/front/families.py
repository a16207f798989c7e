"""Which tokenizers and model structures loaded models have in common, and which of them the parent keeps ready."""

from __future__ import annotations

from typing import Any, Protocol

from mme.container.front.log import Log

MAX_SHARED = 128


class Parent(Protocol):
    """The parent, as far as it makes things before the fork and releases them."""

    def share(self, recipe: dict[str, Any]) -> None: ...

    def unshare(self, key: str) -> None: ...


class Families:
    """Counts models by recipe (see recipes.py) and tells the parent what is worth making before the fork."""

    def __init__(self, parent: Parent, log: Log) -> None:
        self._parent = parent
        self._log = log
        self._members: dict[str, set[int]] = {}  # numbers of the models that have a recipe
        self._recipes: dict[str, tuple[dict[str, Any], str]] = {}  # as its first model had it, and that model's folder
        self.shared: dict[str, bool] = {}  # asked of the parent: made already, or still being made
        self._refused: set[str] = set()
        # What handlers have compared with transformers' own answers: their keys for it, the newest last.
        self.checked: list[str] = []

    def alone(self) -> list[tuple[dict[str, Any], str]]:
        """The recipes that nothing has been made for yet, each with the folder of a model that has it."""
        return [recipe for key, recipe in self._recipes.items() if key not in self.shared and key not in self._refused]

    def expected(self, number: int, recipes: list[dict[str, Any]]) -> None:
        """A model is about to be loaded that will most likely have these recipes, as a model before it does."""
        for recipe in recipes:
            if recipe["key"] in self._members:
                self._add(number, recipe)

    def joined(self, number: int, path: str, recipes: list[dict[str, Any]]) -> None:
        """A model has been loaded from the folder ``path`` with these recipes."""
        keys = {recipe["key"] for recipe in recipes}
        for key in [key for key, members in self._members.items() if number in members and key not in keys]:
            self._remove(number, key)  # it asked for something else than expected
        for recipe in recipes:
            self._recipes.setdefault(recipe["key"], (recipe, path))
            self._add(number, recipe)

    def compared(self, key: str) -> None:
        """A handler has compared what this key stands for, or knew of it; workers forked from now on need not."""
        if key in self.checked:
            self.checked.remove(key)
        self.checked = [*self.checked, key][-MAX_SHARED:]

    def _add(self, number: int, recipe: dict[str, Any]) -> None:
        """A recipe is carried out once a second model has it."""
        key = recipe["key"]
        members = self._members.setdefault(key, set())
        members.add(number)
        wanted = len(members) > 1 and key not in self.shared and key not in self._refused
        if wanted and len(self.shared) < MAX_SHARED:
            self.shared[key] = False
            self._parent.share(recipe)

    def left(self, number: int) -> None:
        """A model has been unloaded. What no two models share any more is released."""
        for key in [key for key, members in self._members.items() if number in members]:
            self._remove(number, key)

    def _remove(self, number: int, key: str) -> None:
        self._members[key].discard(number)
        if not self._members[key]:
            del self._members[key]
            self._recipes.pop(key, None)
            self._refused.discard(key)
            if self.shared.pop(key, None) is not None:
                self._parent.unshare(key)

    def made(self, key: str, error: str | None) -> None:
        """The parent has made what it was asked for, or says why it could not."""
        if error is not None:
            self.shared.pop(key, None)
            self._refused.add(key)
            self._log("info", "not shared", key=key, message=error)
        elif key in self.shared:
            self.shared[key] = True
            self._log("debug", "shared", key=key)

    def forget(self) -> None:
        """The parent is a new one and has nothing. Families are shared again as their models come back."""
        self.shared.clear()
