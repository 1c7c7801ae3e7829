"""Self-contained HTML pages: style sheet, scripts and data in one file, with a content security policy."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

__all__ = ["concatenated_modules", "is_page", "script_hash", "self_contained_page"]

_START = 400  # bytes at the beginning of a page, which have its content security policy

MODULES = (  # in import order
    *("elements.js", "address.js", "axes.js", "export_figure.js", "chart.js", "run_series.js", "run_charts.js"),
    *("outcome_table.js", "run_status.js", "completions.js", "report.js"),
)


def is_page(path: Path) -> bool:
    """Whether a file is empty or a page of this package, which another page may replace.

    Args:
        path: The path of the file.

    Returns:
        Whether the file begins as a page does. True for a file that cannot be read; writing to it raises the error.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError:
        return True
    return not start or (start.startswith(b"<!doctype html>") and b"Content-Security-Policy" in start)


def self_contained_page(
    template: str,
    data: object,
    words: Mapping[str, str],
    *,
    images: bool = False,
    live: bool = False,
    more: tuple[str, ...] = (),
) -> str:
    """Fill a template of this package with the style sheet, the JavaScript modules, the data and the texts.

    The content security policy of the page forbids network access, and all scripts and styles except the scripts and
    styles of the page itself, which the policy identifies by their hashes.

    Args:
        template: The file name of the template. It contains `{{policy}}`, `{{style}}`, `{{script}}` (inside a
            `<script type="module">`), `{{data}}` (inside a `<script type="application/json">`) and the keys of `words`.
        data: The data for the script, as lists, dictionaries, strings, finite numbers and None.
        words: Texts for the markup by their names in the template, not yet escaped.
        images: Whether the page may show images that its data contains.
        live: Whether the page may send requests to the server that it was loaded from.
        more: Modules in addition to `MODULES`, in import order.

    Returns:
        The HTML document.

    Raises:
        ValueError: `data` contains nan or infinity, which JSON cannot represent.

    Example:
        >>> page = self_contained_page("report.html", {}, {"title": "a < b", "summary": ""})
        >>> "<title>a &lt; b</title>" in page
        True
    """
    text = _read_asset(template)
    style = _read_asset("style.css")
    modules = _minified(concatenated_modules(more))
    script = text.partition('<script type="module">')[2].partition("</script>")[0].replace("{{script}}", modules)
    image_source, connect_source = "img-src data:; " if images else "", "connect-src 'self'; " if live else ""
    parts = {
        "policy": "default-src 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; "
        f"{image_source}{connect_source}"
        f"style-src {_hash(style)}; script-src {_hash(script)}",
        "style": style,
        "script": modules,
        "data": _json_for_html(data),
        **{name: _escape(words[name]) for name in words},
    }
    # A single pass, so that a placeholder inside a substituted text is not replaced again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], text)


def concatenated_modules(more: tuple[str, ...]) -> str:
    """Return the modules `MODULES` and `more` as one script, without comments and indentation."""
    return "\n".join(_compact(_remove_imports(_read_asset(name))) for name in dict.fromkeys((*MODULES, *more)))


def script_hash(script: str) -> str:
    """Return the hash by which a minified script names its source."""
    return hashlib.sha256(script.encode()).hexdigest()


def _minified(script: str) -> str:
    """Return the minified form of a script if `make minify` has made it from this script, else the script itself."""
    source, _, minified = _read_asset("explorer.min.js").partition("\n")
    return minified if source == f"// {script_hash(script)}" else script


def _read_asset(name: str) -> str:
    return (files("kullback.explore") / "static" / name).read_text("utf-8")


def _remove_imports(module: str) -> str:
    """Remove the imports of other modules, because inline modules are concatenated instead of imported."""
    return re.sub(r'^import .* from "\./\w+\.js";\n', "", module, flags=re.MULTILINE)


def _compact(module: str) -> str:
    """Remove the indentation and the lines that have only a comment, which are a quarter of the size of a page."""
    without_blocks = re.sub(r"^\s*/\*\*.*?\*/\s*\n", "", module, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^[ \t]*(//.*)?\n|^[ \t]+", "", without_blocks, flags=re.MULTILINE)


def _json_for_html(value: object) -> str:
    """Serialise to ASCII JSON without the characters that open or close markup, for use inside a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _escape(text: str) -> str:
    """Escape text for HTML; lone surrogates, which UTF-8 cannot encode, become question marks."""
    return html.escape(text.encode("utf-8", "replace").decode())


def _hash(text: str) -> str:
    """Return the hash of an inline script or style for a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
