"""What MkDocs does besides: pages that live elsewhere in the repository join the site, and links follow them.

So a link written for the repository (``../../clients/README.md``) works there and in the site. A link to a file that
has no page, source code for one, is its text alone in the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "CHANGELOG.md": "reference/changelog.md",
    "clients/README.md": "reference/client.md",
    "backends/CONFORMANCE.md": "reference/backends.md",
    **{
        f"checkpoints/{card.parent.name}/README.md": f"reference/model-cards/{card.parent.name}.md"
        for card in sorted(ROOT.glob("checkpoints/*/README.md"))
    },
}
"""File of the repository => page of the site."""
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside ``docs/``."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository => links of the site."""
    return _LINK.sub(lambda link: site_link(link, page.file.src_uri), markdown)


def site_link(link: re.Match[str], page: str) -> str:
    """A link as it stands in the page ``page`` of the site; one that leads nowhere is left for ``--strict`` to find."""
    text, target, anchor = link[1], link[2], link[3] or ""
    sources = {page_of: source for source, page_of in PAGES.items()}
    written_in = sources.get(page, f"docs/{page}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(written_in), target))
    leads_to = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
    if leads_to is not None:
        return f"[{text}]({posixpath.relpath(leads_to, posixpath.dirname(page) or '.')}{anchor})"
    return text if (ROOT / path).exists() else link[0]
