"""`python tests/wattload/report/pictures.py RUN TARGET.png [SECTION ...]`: parts of a report as a picture.

The part before the first plot and the sections that are named (`power-over-time`, `estimates`), one under the
other, as headless Chromium shows them, with the pointer on the first plot.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2] / "support"))

from browser import Browser  # noqa: E402
from wattload.report import build  # noqa: E402

_WIDTH = 1000
_MARGIN = 12


def main(run: Path, target: Path, sections: list[str]) -> None:
    page = build(run)
    with tempfile.TemporaryDirectory() as folder, Browser(Path(folder) / "profile") as browser:
        browser.open(page, width=_WIDTH)
        browser.evaluate(
            "document.querySelectorAll('section > details').forEach((part) => { part.open = true; })"
        )
        browser.settle()
        height = browser.evaluate("document.documentElement.scrollHeight")
        size = {"width": _WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", **size)
        browser.settle()
        left, top, width, tall = browser.box(".chart .u-over")
        browser.pointer("mouseMoved", left + width * 0.55, top + tall / 2)
        browser.pointer("mouseMoved", left + width * 0.6, top + tall / 2)
        whole = Path(folder) / "whole.png"
        browser.screenshot(whole)
        head = browser.evaluate("document.querySelector('.figures').getBoundingClientRect().top")
        rows = [(0.0, head - 2 * _MARGIN)]
        for section in sections:
            _, top, _, tall = browser.box(f":is(figure, section):has(> #{section}, > details #{section})")
            rows.append((top, top + tall))
        parts = [(max(0, int(a) - _MARGIN), int(b) + _MARGIN) for a, b in rows]
        picture = Image.new("RGB", (_WIDTH, sum(b - a for a, b in parts)), "white")
        with Image.open(whole) as page_image:
            for number, (a, b) in enumerate(parts):
                picture.paste(page_image.crop((0, a, _WIDTH, b)), (0, sum(d - c for c, d in parts[:number])))
        picture.quantize(96).save(target, optimize=True)
        assert not browser.errors, browser.errors


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
