"""The pages for readers, and the commands of emu that they show."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "emu/demo/README.md", "examples/README.md")]
    + list((ROOT / "docs").rglob("*.md"))
)
_FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.S | re.M)
_INLINE = re.compile(r"`([^`\n]*(?:\n[^`\n]+)?)`")


@dataclass(frozen=True)
class Shown:
    """A command in a fence of a page, and what the page says it prints."""

    page: Path
    arguments: tuple[str, ...]
    printed: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}: emu {' '.join(self.arguments)}"


def commands(page: Path) -> list[Shown]:
    """The commands of emu in the page's fences, in their order."""
    found = []
    for fence in _FENCE.finditer(page.read_text("utf-8")):
        lines = re.sub(r" *\\\n", " ", fence[2]).splitlines()
        for index, line in enumerate(lines):
            if match := re.match(r" *(?:\$ )?emu (.*)", line):
                printed = "\n".join(lines[index + 1 : index + 2])
                found.append(Shown(page, tuple(shlex.split(match[1], comments=True)), printed))
    return found


def inline_commands(page: Path) -> Iterator[str]:
    """Commands of emu in the page's running text, such as `emu rewrite --faults faults.npz`."""
    for text in _inline(page):
        if re.match(r"emu [a-z]", text):
            yield text


def inline_options(page: Path) -> Iterator[str]:
    """Long options in the page's running text, such as `--only`."""
    for text in _inline(page):
        if not re.match(r"(python|pip|make|docker|valgrind|\.venv) ?", text):
            yield from re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)


def _inline(page: Path) -> Iterator[str]:
    for match in _INLINE.finditer(_FENCE.sub("", page.read_text("utf-8"))):
        yield " ".join(match[1].split()).replace("\\|", "|")


def links(page: Path) -> Iterator[str]:
    """Relative links of the page, pictures too."""
    for match in re.finditer(r"\]\(([^)\s]+)\)", _FENCE.sub("", page.read_text("utf-8"))):
        if not re.match(r"[a-z]+:", match[1]):
            yield match[1]


def anchors(page: Path) -> set[str]:
    """What a link to the page may name: headings, as GitHub and the site write them, and anchors of its own."""
    text = _FENCE.sub("", page.read_text("utf-8"))
    named = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    headings = re.findall(r"^#+ +(.+)$", text, re.M)
    return named | {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}
