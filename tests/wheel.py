"""Does the wheel hold what the package needs? ``python tests/wheel.py dist``, as ``make package``.

It is unpacked beside nothing else, and its files are compared with those of the checkout.
"""

from __future__ import annotations

import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]


def expected() -> set[str]:
    """Every module, setting and marker, as the wheel names them."""
    source, conf = ROOT / "src" / "simudy", ROOT / "conf"
    modules = {f"simudy/{path.relative_to(source)}" for path in source.rglob("*.py")}
    settings = {f"simudy/conf/{path.relative_to(conf)}" for path in conf.rglob("*.yaml")}
    layout = {
        f"simudy/{path.relative_to(source)}"
        for suffix in ("j2", "css")
        for path in source.rglob(f"*.{suffix}")
    }
    return {*layout, *modules, *settings, "simudy/py.typed", "simudy/conf/__init__.py"}


def main(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    held = set(ZipFile(wheel).namelist())
    if missing := sorted(expected() - held):
        sys.exit(f"{wheel.name} lacks {', '.join(missing)}")
    print(f"{wheel.name}: {len(held)} files, none missing")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
