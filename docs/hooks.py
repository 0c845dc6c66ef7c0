"""MkDocs hook: publish linked files of the repository that are not in docs/.

Links in the documentation are relative paths in the repository, so they work in a checkout and on a code host. This
hook makes them work on the site, too: Markdown files in PAGES become pages, every other linked text file becomes a page
that shows its content, and the links are rewritten. A link to a missing file stays as it is and fails a strict build.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "config/README.md": "configuration.md",
    "examples/questions/README.md": "questions.md",
    "CHANGELOG.md": "changelog.md",
}
SOURCES = {page: path for path, page in PAGES.items()}
LINK = re.compile(r"(?<=\]\()([^()\s#:]+)(?=(?:#[^()\s]*)?\))")
LANGUAGES = {".json": "json", ".py": "python", ".sh": "bash", ".yaml": "yaml"}


def find_target(link: str, page: str) -> str:
    """Path in the repository that a link of a page points to."""
    source = SOURCES.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def find_page(path: str) -> str | None:
    """Page of the site that shows a file of the repository; None if there is none."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    is_text = (ROOT / path).is_file() and not path.endswith(".md")
    return f"repository/{path}.md" if is_text else None


def show_file(path: str) -> str:
    """A page with the content of a text file; it is not part of the search index."""
    text = (ROOT / path).read_text(encoding="utf-8")
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n~~~~{language}\n{text}\n~~~~\n"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    for file in list(files.documentation_pages()):
        for link in LINK.findall(file.content_string):
            path = find_target(link, file.src_uri)
            page = find_page(path)
            if page and page.startswith("repository/") and not files.get_file_from_path(page):
                level = InclusionLevel.NOT_IN_NAV
                files.append(File.generated(config, page, content=show_file(path), inclusion=level))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Point the links of a page to pages of the site."""
    uri = page.file.src_uri
    if uri.startswith("repository/"):
        return markdown

    def rewrite(match: re.Match[str]) -> str:
        target = find_page(find_target(match[0], uri))
        return posixpath.relpath(target, posixpath.dirname(uri) or ".") if target else match[0]

    return LINK.sub(rewrite, markdown)
