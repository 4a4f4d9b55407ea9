"""An HTML page that loads nothing, reads on a phone as on a screen, and is dark where the reader's
system is.
"""

from __future__ import annotations

import html

LIGHT = {
    "page": "#f6f7f9",
    "card": "#ffffff",
    "ink": "#1b1f24",
    "soft": "#5b6470",
    "line": "#e4e7eb",
    "accent": "#12805c",
    "second": "#b45309",
}
DARK = {
    "page": "#14171b",
    "card": "#1c2127",
    "ink": "#e8eaed",
    "soft": "#9aa4b0",
    "line": "#2c333b",
    "accent": "#3fbf90",
    "second": "#f0a04b",
}

RULES = """\
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif }
main { max-width: 1200px; margin: 0 auto; padding: 24px 16px 48px }
"""


def page(title: str, body: str, rules: str) -> str:
    """A whole document.

    Args:
        title: its name, as plain text; the headline too.
        body: HTML below the headline.
        rules: CSS, which may use the colours as ``var(--ink)``.
    """
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{name}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{colours()}{RULES}{rules}</style></head>\n"
        f"<body><main>\n<h1>{name}</h1>\n{body}\n</main></body>\n</html>\n"
    )


def colours() -> str:
    """CSS that names the colours: light, dark where the reader's system is, light on paper."""
    light, dark = (
        "; ".join(f"--{name}: {colour}" for name, colour in scheme.items())
        for scheme in (LIGHT, DARK)
    )
    return (
        f":root {{ color-scheme: light dark; {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )
