"""Examples in docstrings are shown as code: the parser knows their section in the plural alone."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension


class ShownAsCode(Extension):
    """Reads ``Example:`` as ``Examples:``."""

    def on_object(self, *, obj: Any, **kwargs: Any) -> None:
        """Called for each class, function and module."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE
            )
