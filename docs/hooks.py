"""Draws the formulas of the site as it is built, so that a page needs no script and no network for them."""

import html
import logging
import re
from pathlib import Path

import matplotlib
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.textpath import TextPath

# What LaTeX has and matplotlib writes in another way.
OTHERWISE = {
    "lVert": r"\|",
    "rVert": r"\|",
    "tfrac": r"\frac",
    "le": r"\leq",
    "ge": r"\geq",
    "Bigl": "",
    "Bigr": "",
    "bigl": "",
    "bigr": "",
}
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
# Letters of matplotlib's path codes in SVG, and how many points each takes.
SEGMENTS = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
EM = 100
# What a notebook would load to draw formulas, of which it has none.
MATHJAX = re.compile(r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->", re.DOTALL)
LOG = logging.getLogger("mkdocs.hooks")

# A list of fonts that another environment left behind has not these, and others draw θ as µ.
for font in Path(matplotlib.get_data_path(), "fonts/ttf").glob("cm*.ttf"):
    fontManager.addfont(font)


def on_page_content(content, **_):
    content = MATHJAX.sub("", content)
    if '$<span class="arithmatex"' in content:
        LOG.warning("A formula between $$ must stand by itself, four spaces in where it is of a list.")
    return FORMULA.sub(lambda found: drawn(html.unescape(found[2]), found[1]), content)


def drawn(latex, tag):
    """Returns a formula as an SVG in the color and the size of the text around it, on its baseline."""
    latex = " ".join(latex.split())
    text = re.sub(r"\\([A-Za-z]+)", lambda name: OTHERWISE.get(name[1], name[0]), latex)
    text = re.sub(
        r"\\text\{(.*?)\}", lambda words: rf"\mathrm{{{words[1].replace(' ', chr(92) + ' ')}}}", text
    )
    text = re.sub(r"\\frac(\w)(\w)", r"\\frac{\1}{\2}", text).replace(r"\;", r"\ ")
    try:
        path = TextPath((0, 0), f"${text}$", size=EM, prop=FontProperties(math_fontfamily="cm"))
    except ValueError as error:
        unknown = str(error).splitlines()[-1]
        LOG.warning(
            "A formula that matplotlib cannot draw; see OTHERWISE in docs/hooks.py: %s: %s", latex, unknown
        )
        return f"<code>{html.escape(latex)}</code>"
    box = path.get_extents()
    lines = "".join(
        SEGMENTS[code] + ("" if code == 79 else " ".join(f"{x:.0f}" for x in points))
        for points, code in path.iter_segments(curves=True, simplify=False)
    )
    label = html.escape(latex, quote=True)
    return (
        f'<{tag} class="formula"><svg role="img" aria-label="{label}" '
        f'viewBox="{box.x0:.0f} {-box.y1:.0f} {box.width:.0f} {box.height:.0f}" '
        f'style="width:{box.width / EM:.2f}em;height:{box.height / EM:.2f}em;'
        f'vertical-align:{box.y0 / EM:.2f}em"><path transform="scale(1,-1)" d="{lines}"/></svg></{tag}>'
    )
