"""The pages are readable: no long line, no wall of text, no link to nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SETTINGS = sorted(ROOT.glob("conf/**/*.yaml"))
GENERATED = ("settings/index.md", "settings/groups.md", "settings/experiments.md")
GENERATED += ("api/index.md", "api/training.md", "api/optimizers.md", "api/attack.md")
COLUMNS, LINES = 100, 6
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def prose(text: str) -> list[str]:
    """The lines of a page, blank where there is a code block, a table or an embedded picture."""
    lines, fenced = [], False
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        apart = fence or fenced or line.startswith(("|", "    ", "<"))
        lines.append("" if apart else line)
    return lines


def paragraphs(lines: list[str]) -> list[list[str]]:
    """Lines that belong together; an item of a list is a paragraph of its own."""
    found: list[list[str]] = [[]]
    for line in lines:
        if not line.strip():
            found.append([])
        elif re.match(r"\s*([-*]|\d+\.) |#", line):
            found.append([line])
        else:
            found[-1].append(line)
    return found


def without_targets(line: str) -> str:
    """A line as a reader counts it: a link by its words."""
    return re.sub(r"\]\([^)]*\)", "]", line)


def links(text: str) -> list[str]:
    """Where the links and pictures of a page lead, but for those into the web."""
    targets = re.findall(r"\]\(([^)\s]+)\)", "\n".join(unfenced(text)))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def unfenced(text: str) -> list[str]:
    """Tables hold links too, code does not."""
    kept, fenced = [], False
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        if not (fence or fenced or line.startswith("    ")):
            kept.append(re.sub(r"`[^`]*`", "", line))
    return kept


def anchors(text: str) -> set[str]:
    """The anchors that the headings of a page get."""
    titles = re.findall(r"^#+ (.*)$", "\n".join(unfenced(text)), re.MULTILINE)
    words = [re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles]
    return {re.sub(r"[-\s]+", "-", word) for word in words}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_line_is_long(page):
    for number, line in enumerate(prose(page.read_text()), 1):
        assert len(without_targets(line)) <= COLUMNS, f"{page}:{number}: {len(line)} columns"


@pytest.mark.parametrize("file", SETTINGS, ids=[str(f.relative_to(ROOT)) for f in SETTINGS])
def test_no_line_of_a_settings_file_is_long(file):
    for number, line in enumerate(file.read_text().splitlines(), 1):
        assert len(line) <= COLUMNS, f"{file}:{number}: {len(line)} columns"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_paragraph_is_a_wall(page):
    for lines in paragraphs(prose(page.read_text())):
        assert len(lines) <= LINES, f"{page}: {len(lines)} lines from: {lines[0]}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page):
    for link in links(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        generated = target.parent.parent == ROOT / "docs" and link_name(target) in GENERATED
        assert generated or target.exists(), f"{page}: no {link}"
        if anchor and not generated and target.suffix == ".md":
            assert anchor in anchors(target.read_text()), f"{page}: no heading for {link}"


def link_name(target: Path) -> str:
    return f"{target.parent.name}/{target.name}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 90


@pytest.mark.parametrize(
    ("text", "why"),
    [("word " * 30, "columns"), ("\n".join(["short"] * 7), "wall"), ("[here](nowhere.md)", "link")],
)
def test_these_tests_find_what_they_look_for(text, why, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    checks = {
        "columns": test_no_line_is_long,
        "wall": test_no_paragraph_is_a_wall,
        "link": test_every_link_leads_somewhere,
    }
    with pytest.raises(AssertionError):
        checks[why](page)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_row_stands_apart_from_its_table(page):
    """A blank line before it makes prose of it."""
    blocks = page.read_text().split("\n\n")
    alone = [block for block in blocks if block.startswith("|") and "\n|" not in block]
    assert not alone
