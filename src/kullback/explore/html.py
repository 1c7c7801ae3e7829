"""Web pages that hold everything they need in one file, and that foreign text cannot take over."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files

__all__ = ["self_contained_page"]

MODULES = ("axes.js", "chart.js", "report.js")  # in the order of their imports


def self_contained_page(
    template: str,
    data: object,
    words: Mapping[str, str],
    *,
    images: bool = False,
    live: bool = False,
    more: tuple[str, ...] = (),
) -> str:
    """Fill a template of this package with its style sheet, its modules, its data and its words.

    The page forbids itself the network and every script and style but its own two, named by their hashes.

    Args:
        template: The file name of the template. It may name `{{policy}}`, `{{style}}`, `{{script}}` (within its own
            `<script type="module">`), `{{data}}` (within a `<script type="application/json">`) and the keys of `words`.
        data: What the script draws: plain lists, dictionaries, strings, finite numbers, None.
        words: Text for the markup, not yet escaped.
        images: Whether its data holds images, which the page then may show.
        live: Whether it may ask the server that it came from.
        more: Modules after those of every page, in the order of their imports.

    Returns:
        The HTML.

    Raises:
        ValueError: `data` holds nan or infinity, which JSON cannot.

    Example:
        >>> page = self_contained_page("report.html", {}, {"title": "a < b", "summary": ""})
        >>> "<title>a &lt; b</title>" in page
        True
    """
    text = _asset(template)
    style = _asset("style.css")
    modules = "\n".join(_without_imports(_asset(name)) for name in (*MODULES, *more))
    script = text.partition('<script type="module">')[2].partition("</script>")[0].replace("{{script}}", modules)
    pictures, asks = "img-src data:; " if images else "", "connect-src 'self'; " if live else ""
    parts = {
        "policy": "default-src 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; "
        f"{pictures}{asks}"
        f"style-src {_hash(style)}; script-src {_hash(script)}",
        "style": style,
        "script": modules,
        "data": _json_for_html(data),
        **{name: _markup(words[name]) for name in words},
    }
    # One pass: a title that happens to read {{data}} stays a title.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], text)


def _asset(name: str) -> str:
    return (files("kullback.explore") / "static" / name).read_text("utf-8")


def _without_imports(module: str) -> str:
    """An inline module cannot import its neighbour by a relative address: the neighbour stands before it instead."""
    return re.sub(r'^import .* from "\./\w+\.js";\n', "", module, flags=re.MULTILINE)


def _json_for_html(value: object) -> str:
    """JSON that can stand inside a script element: pure ASCII, without the characters that open or end markup."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _markup(text: str) -> str:
    """Text for HTML; a lone surrogate, which UTF-8 cannot hold, becomes a question mark."""
    return html.escape(text.encode("utf-8", "replace").decode())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
