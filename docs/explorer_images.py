"""Write the pictures of the explorer in `docs/images`: each question, wide and narrow, in light and dark.

python docs/explorer_images.py
"""

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from kullback.explore.explorer import explorer_page

IMAGES = Path(__file__).parent / "images"
SECTIONS = ("directions", "next-token", "policy", "demo")
VARIANTS = {"": (1280, "light"), "-dark": (1280, "dark"), "-phone": (390, "light"), "-phone-dark": (390, "dark")}
ADDRESS = "#directions?guess1=A&guessed=1&algorithm=ppo&budget=0.5"


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        path = Path(directory) / "page.html"
        path.write_text(explorer_page({}, live=False), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for suffix, (width, scheme) in VARIANTS.items():
            page = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
            ).new_page()
            page.goto(path.as_uri() + ADDRESS)
            page.wait_for_selector("body[data-ready]")
            page.click("#train")
            page.evaluate("document.querySelector('nav').style.position = 'static'")
            for section in SECTIONS:
                page.locator(f"#{section}").scroll_into_view_if_needed()
                page.wait_for_timeout(300)
                picture = Image.open(io.BytesIO(page.locator(f"#{section}").screenshot()))
                reduced = picture.convert("RGB").quantize(96, dither=Image.Dither.NONE)
                reduced.save(IMAGES / f"explore-{section}{suffix}.png", optimize=True)
        browser.close()


if __name__ == "__main__":
    main()
