"""The examples of the documentation run, in order, one page at a time."""

import re
from pathlib import Path

import pytest
import yaml

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted((DOCS / "extending").glob("*.md"))


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language: (line of its first line, text)."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


def execute(page: Path) -> dict:
    """Run all Python blocks of a page in one namespace, which is returned."""
    names: dict = {"__name__": page.stem}
    for line, code in blocks(page, "python"):
        # Empty lines in front, so that a traceback gives the line of the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
    return names


@pytest.fixture(scope="module", params=PAGES, ids=lambda page: page.stem)
def page(request):
    """A page and the names that its examples define."""
    return request.param, execute(request.param)


def test_there_is_a_page_for_each_extension_point():
    points = {"aggregation", "churn", "compressor", "coordinator", "strategy", "task", "topology"}
    assert {page.stem for page in PAGES} == points


def test_yaml_of_a_page_constructs_what_its_code_defines(page):
    path, names = page
    for _, text in blocks(path, "yaml"):
        arguments = yaml.safe_load(text)
        target = names[arguments.pop("_target_").removeprefix("mylab.")]
        assert target(**arguments) is not None


def test_yaml_of_a_page_lies_in_the_folder_of_its_slot(page):
    path, _ = page
    first_lines = [text.splitlines()[0] for _, text in blocks(path, "yaml")]
    assert first_lines
    assert all(line.startswith(f"# mylab/conf/{path.stem}/") for line in first_lines)


def test_links_between_pages_lead_somewhere():
    for path in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path}: {target}"
