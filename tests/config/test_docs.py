"""The documentation: links and anchors lead somewhere, the README is short, and its configuration is valid."""

import re
from pathlib import Path

import pytest
import yaml

from distill.plan.schema import check_config

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted(ROOT.glob("*/README.md")), *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^(```|~~~).*?^\1", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", flags=re.MULTILINE)


def read_prose(path: Path) -> str:
    """The text of a page without its code blocks."""
    return FENCED.sub("", path.read_text(encoding="utf-8"))


def get_anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as code hosts and mkdocs.yml make them.

    A heading that occurs twice has the anchor of the first one only.
    """
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in find_headings(path)}


def find_headings(path: Path) -> list[str]:
    return HEADING.findall(read_prose(path))


def find_broken(page: Path) -> list[str]:
    """Links of a page, images included, whose file or anchor does not exist."""
    broken = []
    for link in LINK.findall(read_prose(page)):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_file() or (anchor and anchor not in get_anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert find_broken(page) == []


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `code` heading\n[a](#a-code-heading) [b](#b) ![c](c.svg)\n```\n[d](d.md)\n```\n")
    assert find_broken(page) == ["#b", "c.svg"]


def test_anchors_are_those_of_code_hosts(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# GRPO and SFT records\n## `topk`: k = 64?\n```\n# comment\n```\n")
    assert get_anchors(page) == {"grpo-and-sft-records", "topk-k--64"}


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    pages = set(re.findall(r": ([\w-]+\.md)$", navigation, flags=re.MULTILINE))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= pages


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_configuration_in_the_readme_is_valid():
    (text,) = re.findall(r"^```yaml\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    config = check_config(yaml.safe_load(text))
    assert list(config["students"]) == ["student_kd"]
