"""Writes the generated pages (API reference, families and pairs) into docs/generated before Sphinx reads them."""

from pathlib import Path
from typing import Any

import families_page
import reference

__all__ = ["write_pages"]


def setup(app: Any) -> dict[str, bool]:
    """Generate the pages when the builder starts."""
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir) / "generated"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write_pages(directory: Path) -> None:
    """Write every generated page; a file whose text has not changed is not written."""
    texts = {name: reference.page_text(page) for name, page in reference.PAGES.items()}
    texts = {f"api/{name}.rst": text for name, text in texts.items()}
    texts["api/index.rst"] = reference.index_text()
    texts["families.rst"] = families_page.page_text()
    for name, text in texts.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
