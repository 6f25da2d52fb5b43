"""Files, headings and functions that the documents name exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_PLACES = (".", "docs", "projects", "configs", "csrc", "benchmarks")
DOCUMENTS = sorted(
    path
    for place in _PLACES
    for path in (ROOT / place).glob("*.md" if place == "." else "**/*.md")
    if path.name != "CHANGELOG.md"  # it names what is gone
)

_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", flags=re.MULTILINE | re.DOTALL)
_FOLDERS = r"(?:configs|scripts|projects|benchmarks|docs|tests|csrc|detnas_d2|\.ci)"
# A path of the repository, possibly with * in it; a placeholder such as <op> or $X ends it.
_PATH = re.compile(rf"(?<![\w./-])(?:(?:\.\.?/)*{_FOLDERS}/[\w./*-]*)")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def missing_paths(document: Path, root: Path) -> list[str]:
    """The paths in code, commands and links of a Markdown file that do not exist."""
    text = document.read_text(encoding="utf-8")
    named = [path for code in _CODE.findall(text) for path in _PATH.findall(code)]
    links = [link for link in _LINK.findall(text) if "://" not in link and "@" not in link]
    # Commands are run from the root of the repository, links are relative to the document.
    places = {path.rstrip("."): (root, document.parent) for path in named}
    places.update(dict.fromkeys(links, (document.parent,)))
    return [
        path
        for path, folders in sorted(places.items())
        if not any(_exists(folder, path) for folder in folders)
    ]


def _exists(folder: Path, path: str) -> bool:
    if "*" in path:
        return any(folder.glob(path))
    return (folder / path).exists()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_paths_exist(document: Path) -> None:
    assert missing_paths(document, ROOT) == []


def missing_headings(document: Path) -> list[str]:
    """The links of a Markdown file to headings that are not there."""
    links = re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", document.read_text(encoding="utf-8"))
    return [f"{file}#{name}" for file, name in links if name not in _headings(document, file)]


def _headings(document: Path, file: str) -> set[str]:
    """The anchors that GitHub makes of the headings of a document."""
    text = (document.parent / file if file else document).read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_linked_headings_exist(document: Path) -> None:
    assert missing_headings(document) == []


def test_missing_heading_is_found(tmp_path: Path) -> None:
    document = tmp_path / "A.md"
    document.write_text("# It's (a) title\n[x](A.md#its-a-title), [y](#its-a-title), [z](#gone)\n")
    assert missing_headings(document) == ["#gone"]


def test_missing_path_is_found(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "test.sh").touch()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "A.md").touch()
    document = tmp_path / "README.md"
    document.write_text(
        "Run `scripts/test.sh` or `scripts/gone.sh`, not prose/scripts/x.py, see [a](docs/A.md),\n"
        "[b](docs/B.md#part), [the web](https://example.org/docs/C.md), `scripts/*.sh`, "
        "`configs/*.yaml`.\n\n"
        "```bash\npython projects/DetNAS/train_net.py --config-file scripts/test.sh\n```\n",
        encoding="utf-8",
    )
    assert missing_paths(document, tmp_path) == [
        "configs/*.yaml",
        "docs/B.md",
        "projects/DetNAS/train_net.py",
        "scripts/gone.sh",
    ]


SOURCES = sorted(
    path
    for place in ("detnas_d2", "projects", "scripts", "benchmarks", "csrc")
    for ending in ("py", "h", "cpp", "cu", "cuh", "sh")
    for path in (ROOT / place).glob(f"**/*.{ending}")
)
_FILE = re.compile(rf"(?<![\w./-]){_FOLDERS}/[\w./-]*\.(?:py|md|h|cpp|cu|cuh|sh|yaml)\b")
_REFERENCE = re.compile(r":\w+:`~?(detnas_d2(?:\.\w+)+)`")


def stale_references(text: str, root: Path) -> list[str]:
    """Files and ``:class:`detnas_d2...``` that the comments of a source name and that are gone."""
    stale = [file for file in _FILE.findall(text) if not (root / file).exists()]
    for reference in _REFERENCE.findall(text):
        module, names = root, reference.split(".")
        while names and (module / names[0]).is_dir():
            module /= names.pop(0)
        if names and (module / f"{names[0]}.py").exists():
            module /= f"{names.pop(0)}.py"
        else:
            module /= "__init__.py"
        words = set(re.findall(r"\w+", module.read_text(encoding="utf-8")))
        if not module.exists() or not words.issuperset(names):
            stale.append(reference)
    return stale


def test_sources_name_what_exists() -> None:
    found = {
        str(path.relative_to(ROOT)): stale_references(path.read_text(encoding="utf-8"), ROOT)
        for path in SOURCES
    }
    assert {file: stale for file, stale in found.items() if stale} == {}


def test_stale_reference_is_found() -> None:
    good = (
        "# see detnas_d2/utils/io.py\n:mod:`detnas_d2.utils.io`, :class:`detnas_d2.data.DataState`"
    )
    bad = "# see detnas_d2/gone.py\n:mod:`detnas_d2.utils.gone`, :class:`detnas_d2.data.Gone`"
    assert stale_references(good, ROOT) == []
    assert stale_references(bad, ROOT) == [
        "detnas_d2/gone.py",
        "detnas_d2.utils.gone",
        "detnas_d2.data.Gone",
    ]


_TOUR = re.compile(r"^### (.+)\n\n((?:\d\..*\n(?:   .*\n)*)+)", flags=re.MULTILINE)
_STOP = re.compile(r"\d\. `([\w/]+\.py)`, `([\w.]+)`: \S")


def tours(text: str) -> dict[str, list[tuple[str, str]]]:
    """Title -> (file, name in it) of every stop of the tours through the code."""
    found = {}
    for title, block in _TOUR.findall(text):
        lines = [line for line in block.splitlines() if line[0].isdigit()]
        stops = [_STOP.match(line) for line in lines]
        assert all(stops), f"{title}: expected '1. `file`, `name`: what' in each of {lines}"
        found[title] = [(stop[1], stop[2]) for stop in stops]
    return found


def defines(file: Path, name: str) -> bool:
    """Whether a module defines a function, a class, or ``Class.method`` of that name."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for part in name.split("."):
        named = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [node for node in body if isinstance(node, named) and node.name == part]
        if not found:
            return False
        body = found[0].body
    return True


def test_stops_of_the_tours_exist() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    found = tours(text)
    assert len(found) == text.count("\n### ") >= 4
    for title, stops in found.items():
        assert 3 <= len(stops) <= 6, title
        for file, name in stops:
            assert (ROOT / file).exists(), f"{title}: {file}"
            assert defines(ROOT / file, name), f"{title}: {file} has no {name}"


def test_stop_that_is_gone_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("class A:\n    def run(self): ...\n", encoding="utf-8")
    text = "### A thing\n\n1. `a.py`, `A.run`: does\n   it.\n2. `b.py`, `f`: more.\n\nText\n"
    assert tours(text) == {"A thing": [("a.py", "A.run"), ("b.py", "f")]}
    assert defines(tmp_path / "a.py", "A.run") and not defines(tmp_path / "a.py", "A.gone")
