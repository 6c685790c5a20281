"""What `penstock models list` shows, for those that may not import models themselves."""

from __future__ import annotations

import importlib
from typing import Any

_ROOT = __name__.split(".")[0]


def listed() -> list[dict[str, Any]]:
    """Name, stage, about, licence, gb and `here` of each checkpoint. Reads the disk."""
    registry: Any = importlib.import_module(f"{_ROOT}.models.registry")

    def is_here(name: str) -> bool:
        try:
            return bool(registry.held(name))
        except ValueError:  # damaged: `penstock models info` says how
            return False

    return [
        {
            "name": card.name,
            "stage": card.stage,
            "about": card.about,
            "licence": card.licence,
            "gb": card.gb,
            "here": is_here(card.name),
        }
        for card in registry.cards().values()
    ]
