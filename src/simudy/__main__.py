"""``python -m simudy`` is the command ``simudy``."""

from __future__ import annotations

from simudy.app.entry import simudy

if __name__ == "__main__":
    simudy()
