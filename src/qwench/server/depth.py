"""How deeply JSON may be nested: half as deeply as Python's recursion can take, which has to render and to write it."""

from __future__ import annotations

MOST_LEVELS = 500


def is_deep(value: object) -> bool:
    """Whether JSON has more than MOST_LEVELS."""
    level = [value]
    for _ in range(MOST_LEVELS):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        level = [value for values in inner for value in values]
        if not level:
            return False
    return True
