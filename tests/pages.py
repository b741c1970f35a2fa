"""The pages that a user reads, and the code in them."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted(path for path in ROOT.glob("docs/**/*.md") if "notebooks" not in path.parts),
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# The run of the quick start, which pages may load.
DEMO_RUN = Path("runs/demo")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> Iterator[tuple[str, int]]:
    """The fenced blocks of a page, each with the number of lines above its code."""
    text = path.read_text()
    for match in FENCE.finditer(text):
        if match[1] in languages:
            yield match[2], text.count("\n", 0, match.start(2))


PYTHON_PAGES = [path for path in PAGES if any(blocks(path, "python"))]


def run_python(path: Path) -> None:
    """Run the Python blocks of a page in order, in one namespace, in the current folder."""
    namespace = {"__name__": "__main__"}
    for code, above in blocks(path, "python"):
        exec(compile("\n" * above + code, name_of(path), "exec"), namespace)
