"""Fail for lines of code in the documentation that are too wide to be read without scrolling.

    python tools/check_docs_code.py [FILE ...]

Without files: README.md, CONTRIBUTING.md and the pages of docs/ and its folders. Code is what is in fenced blocks of
Markdown, and in ``code-block`` directives, literal blocks and doctests of reStructuredText. Prose, tables and math are
not code. The indentation of a whole block does not count, because pages do not show it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_WIDTH = 79

_WRITTEN_BY_BUILDS = {"_build", "_generated", "api", "auto_examples", "gen_modules"}

_FENCE = re.compile(r"(\s*)(`{3,}|~{3,})(.*)")
_LIST_MARKERS = re.compile(r"\s*(?:(?:[-*+]|\(?(?:\d+|[A-Za-z#])[.)])\s+)*")
_CODE_DIRECTIVE = re.compile(r"\.\. (?:code-block|code|sourcecode)::")
_OPTION = re.compile(r"\s+:[\w-]+:(?:\s|$)")
_COMMENT = re.compile(r"\.\.(?:$|\s+(?![_|[]|[\w:.+-]+::(?:\s|$)))")


def code_in_markdown(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the lines of fenced blocks with their indices, without the indentation of their fence."""
    fence, depth = "", 0
    for index, line in enumerate(lines):
        found = _FENCE.fullmatch(line)
        if not fence:
            if found and not (found[2][0] == "`" and "`" in found[3]):  # ```text``` on one line is not a fence
                fence, depth = found[2], len(found[1])
        elif found and found[2].startswith(fence) and not found[3].strip():
            fence = ""
        else:
            yield index, line[min(depth, _indentation(line)) :]


def code_in_rst(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yield the lines of code blocks, literal blocks and doctests with their indices, without their indentation."""
    index = 0
    while index < len(lines):
        line = lines[index]
        depth = len(_LIST_MARKERS.match(line)[0])  # type: ignore[index] - it matches every line
        text = line[depth:]
        index += 1
        if _COMMENT.match(text):
            index = _end_of_block(lines, index, depth)
        elif _CODE_DIRECTIVE.match(text):
            while index < len(lines) and _OPTION.match(lines[index]):
                index += 1
            end = _end_of_block(lines, index, depth)
            yield from _dedented(lines, index, end)
            index = end
        elif text.endswith("::") and not text.startswith(".. ") and not "".join(lines[index : index + 1]).strip():
            end = _end_of_block(lines, index, depth)
            yield from _dedented(lines, index, end)
            index = end
        elif text.startswith(">>> "):
            end = index
            while end < len(lines) and lines[end].strip():
                end += 1
            yield from _dedented(lines, index - 1, end)
            index = end


def too_wide(path: Path) -> list[tuple[int, int]]:
    """Return the number and the width, in characters, of every line of code in a file that is too wide.

    Parameters
    ----------
    path : Path
        Markdown if its suffix is ".md", otherwise reStructuredText; UTF-8.

    Returns
    -------
    list of (int, int)
        Line numbers count from 1.
    """
    lines = [line.rstrip().expandtabs() for line in path.read_text(encoding="utf-8").splitlines()]
    code = code_in_markdown(lines) if path.suffix == ".md" else code_in_rst(lines)
    return [(index + 1, len(text)) for index, text in code if len(text) > MAX_WIDTH]


def written_pages(folder: Path) -> list[Path]:
    """Return the pages of a folder and its subfolders that no build has written, in order."""
    return [page for page in sorted(folder.rglob("*.rst")) if not _WRITTEN_BY_BUILDS & set(page.parts)]


def main(argv: Sequence[str] | None = None) -> int:
    """Check the files; return 1 if a line is too wide, otherwise 0."""
    parser = argparse.ArgumentParser(description="Find lines of code in the documentation that are too wide.")
    parser.add_argument("files", nargs="*", type=Path, help="default: README.md, CONTRIBUTING.md and the pages of docs")
    files = parser.parse_args(argv).files
    files = files or [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *written_pages(ROOT / "docs")]
    found = [(path, number, width) for path in files for number, width in too_wide(path)]
    for path, number, width in found:
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        sys.stderr.write(f"{shown}:{number}: code of {width} characters; at most {MAX_WIDTH} are allowed\n")
    return int(bool(found))


def _indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def _end_of_block(lines: Sequence[str], start: int, depth: int) -> int:
    """Return the index of the first line from ``start`` on that is indented by ``depth`` or less."""
    for index in range(start, len(lines)):
        if lines[index] and _indentation(lines[index]) <= depth:
            return index
    return len(lines)


def _dedented(lines: Sequence[str], start: int, end: int) -> Iterator[tuple[int, str]]:
    block = lines[start:end]
    depth = min((_indentation(line) for line in block if line), default=0)
    return ((start + i, line[depth:]) for i, line in enumerate(block))


if __name__ == "__main__":
    sys.exit(main())
