"""Takes pictures of the pages in site/ at the widths of a desktop and a phone, and says what is wrong with them.

    make docs
    pip install PySide6
    python docs/screenshots.py            # writes outputs/screenshots/

PySide6 brings QtWebEngine, which is Chromium.
"""

import argparse
import functools
import http.server
import itertools
import json
import os
import sys
import threading
from pathlib import Path

# No window, and no sandbox, which a container does not allow.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--no-sandbox --disable-gpu --hide-scrollbars")

ROOT = Path(__file__).parents[1]
WIDTHS = {"desktop": 1280, "phone": 390}
HEIGHT, TALLEST = 900, 6000
# Until what scripts of the page draw is there, and until a view that has grown is painted.
WAIT_MS = 900

# The height of the page; what sticks out of it and of no box that scrolls, and pictures that are not there.
FAULTS = """(() => {
  const width = document.documentElement.clientWidth, found = [document.documentElement.scrollHeight];
  const scrolls = e => e && e !== document.body &&
    (getComputedStyle(e).overflowX !== 'visible' || getComputedStyle(e).position === 'fixed' || scrolls(e.parentElement));
  for (const e of document.querySelectorAll('body *'))
    if (e.getBoundingClientRect().right > width + 1 && !scrolls(e)) found.push('sticks out: ' + e.outerHTML.slice(0, 80));
  for (const i of document.images)
    if (!i.naturalWidth) found.push('no picture: ' + i.src);
  return JSON.stringify(found);
})()"""


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
    pages = sorted(path.relative_to(options.site).as_posix() for path in options.site.rglob("*.html"))
    if not pages:
        sys.exit(f"Expected a site in {options.site}: run `make docs` first.")
    server = http.server.ThreadingHTTPServer(
        ("localhost", 0), functools.partial(Quiet, directory=options.site)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options.output.mkdir(parents=True, exist_ok=True)
    faults = visit(pages, f"http://localhost:{server.server_port}", options.output)
    for name, device, fault in faults:
        print(f"{name}, {device}: {fault}")
    print(f"{len(pages)} pages, {len(faults)} faults; the pictures are in {options.output}/.")
    sys.exit(bool(faults))


def visit(pages, address, output):
    """Takes a picture of each page at each width.

    Args:
        pages: List of strings, their paths below the address.
        address: String.
        output: Path, the folder of the pictures.

    Returns:
        List of tuples `(page, device, fault)`.
    """
    try:
        from PySide6.QtCore import QEventLoop, Qt, QTimer, QUrl
        from PySide6.QtWebEngineWidgets import QWebEngineView
        from PySide6.QtWidgets import QApplication
    except ImportError as error:
        sys.exit(f"Pictures need QtWebEngine (pip install PySide6). {error}")
    app = QApplication(sys.argv[:1])  # noqa: F841, as long as this name lives, there are windows
    view, faults = QWebEngineView(), []

    def until(begin):
        """Runs the event loop until what `begin` was given is called; returns what that was called with."""
        loop, found = QEventLoop(), []

        def done(value=None):
            found.append(value)
            loop.quit()

        begin(done)
        loop.exec()
        return found[0]

    for (device, width), name in itertools.product(WIDTHS.items(), pages):
        view.resize(width, HEIGHT)
        view.show()
        view.load(QUrl(f"{address}/{name}"))
        until(lambda done: view.loadFinished.connect(done, Qt.ConnectionType.SingleShotConnection))
        until(lambda done: QTimer.singleShot(WAIT_MS, done))
        height, *found = json.loads(until(lambda done: view.page().runJavaScript(FAULTS, done)))
        faults += [(name, device, fault) for fault in found]
        view.resize(width, min(int(height), TALLEST))
        until(lambda done: QTimer.singleShot(WAIT_MS, done))
        view.grab().save(str(output / f"{device}_{name.replace('/', '_').removesuffix('.html')}.png"))
    return faults


if __name__ == "__main__":
    main()
