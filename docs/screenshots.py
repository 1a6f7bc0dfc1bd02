"""Takes pictures of the pages in site/ at the widths of a desktop and a phone, and says what is wrong with them.

    make docs
    python docs/screenshots.py            # writes outputs/screenshots/

It needs a Chromium: that of Playwright (`pip install playwright`, `playwright install chromium`), or one on the PATH.
"""

import argparse
import functools
import http.server
import shutil
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
WIDTHS = {"desktop": 1280, "phone": 390}
BROWSERS = "chromium", "chromium-browser", "google-chrome", "chrome", "msedge"

# What sticks out of the page and of no box that scrolls, and pictures that are not there.
FAULTS = """() => {
  const width = document.documentElement.clientWidth, found = [];
  const scrolls = e => e && e !== document.body &&
    (getComputedStyle(e).overflowX !== 'visible' || getComputedStyle(e).position === 'fixed' || scrolls(e.parentElement));
  for (const e of document.querySelectorAll('body *'))
    if (e.getBoundingClientRect().right > width + 1 && !scrolls(e)) found.push('sticks out: ' + e.outerHTML.slice(0, 80));
  for (const i of document.images)
    if (!i.naturalWidth) found.push('no picture: ' + i.src);
  return found;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--site", type=Path, default=ROOT / "site")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/screenshots")
    options = parser.parse_args()
    pages = sorted(options.site.rglob("*.html"))
    if not pages:
        sys.exit(f"Expected a site in {options.site}: run `make docs` first.")
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        sys.exit("Pictures need Playwright, which is not installed: pip install playwright.")
    server = http.server.ThreadingHTTPServer(
        ("localhost", 0), functools.partial(Quiet, directory=options.site)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options.output.mkdir(parents=True, exist_ok=True)
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    faults = 0
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=browser_path)
        except Error as error:
            sys.exit(f"No Chromium: playwright install chromium. {error.message.splitlines()[0]}")
        for device, width in WIDTHS.items():
            page = browser.new_page(viewport={"width": width, "height": 900})
            for path in pages:
                name = path.relative_to(options.site).as_posix()
                page.goto(f"http://localhost:{server.server_port}/{name}", wait_until="load")
                picture = options.output / f"{device}_{name.replace('/', '_').removesuffix('.html')}.png"
                page.screenshot(path=picture, full_page=True)
                for fault in page.evaluate(FAULTS):
                    faults += 1
                    print(f"{name}, {device}: {fault}")
    print(f"{len(pages)} pages, {faults} faults; the pictures are in {options.output}/.")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
