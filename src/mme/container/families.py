"""Which tokenizers and model structures loaded models have in common, and which of them the parent keeps ready."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mme.container.log import Log

if TYPE_CHECKING:
    from mme.container.link import ParentLink

MAX_SHARED = 128


class Families:
    """Counts models by recipe (see sharing.py) and tells the parent what is worth making before the fork."""

    def __init__(self, parent: ParentLink, log: Log) -> None:
        self._parent = parent
        self._log = log
        self._members: dict[str, set[int]] = {}  # numbers of the models that have a recipe
        self.shared: dict[str, bool] = {}  # asked of the parent: made already, or still being made
        self._refused: set[str] = set()

    def joined(self, number: int, recipes: list[dict[str, Any]]) -> None:
        """A model has been loaded with these recipes. The second of a family makes it worth sharing."""
        for recipe in recipes:
            key = recipe["key"]
            members = self._members.setdefault(key, set())
            members.add(number)
            wanted = len(members) > 1 and key not in self.shared and key not in self._refused
            if wanted and len(self.shared) < MAX_SHARED:
                self.shared[key] = False
                self._parent.share(recipe)

    def left(self, number: int) -> None:
        """A model has been unloaded. What nobody else has in common with it is let go of."""
        for key in [key for key, members in self._members.items() if number in members]:
            self._members[key].discard(number)
            if not self._members[key]:
                del self._members[key]
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
