"""Minify the script of the explorer with terser, which npm downloads: `make minify`.

The first line of the result names the source by its hash. A page whose modules have changed since uses the modules.
"""

import subprocess
from importlib.resources import files
from pathlib import Path

from kullback.explore import explorer, html

TERSER = "terser@5.51.4"


def main() -> None:
    source = html.concatenated_modules(explorer.MODULES)
    command = ["npx", "--yes", TERSER, "--module", "--compress", "--mangle"]
    minified = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    if "</script" in minified.lower() or "<!--" in minified:
        raise SystemExit("expected a script that can stand in HTML, got one with </script or <!--")
    target = Path(str(files("kullback.explore"))) / "static" / "explorer.min.js"
    target.write_text(f"// {html.script_hash(source)}\n{minified.strip()}\n", encoding="utf-8")
    print(target, len(minified))


if __name__ == "__main__":
    main()
