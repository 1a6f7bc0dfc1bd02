"""Writes docs/results.md from the figures in benchmarks/results/.

    python benchmarks/results.py
"""

import json
from pathlib import Path

from nets import NETS  # noqa: F401, first: it makes the examples importable

import automatic_mu
import c_step
import error
import l_step

ROOT = Path(__file__).parents[1]

HEAD = """# Results

Written by `benchmarks/results.py` from `benchmarks/results/`, where the scripts of
[benchmarks](../benchmarks/README.md) leave their figures.
"""

ERROR = """
MNIST, % of the 10,000 test images. All contenders start from the same reference and see the same batches
of 256 in the same order for the same number of epochs, with SGD (Nesterov 0.9) whose learning rate falls
by 0.98^40. LC runs with its defaults. "gradual" (Zhu & Gupta) and "magnitude" (Han) share their budget
over all layers as LC does; TensorFlow's toolkit prunes each layer alike.
"""

AUTOMATIC = """
% of validation images, which the references were not trained on: 10,000 of MNIST for lenet300 and lenet5, 297
of scikit-learn's digits for a convolutional net with batch normalisation (where one image is 0.34). One
seed. The columns are ranges of `Geometric`; the learning rate is the reference's.
"""

SECTIONS = (
    ("error", "Error at each budget", ERROR, error.tables),
    ("automatic_mu", "The automatic μ beside fixed ranges", AUTOMATIC, automatic_mu.table),
    (
        "l_step",
        "What L steps and C steps cost",
        "\nBeside plain `fit`, batches of 256, medians.\n",
        l_step.table,
    ),
    ("c_step", "What the threshold of a C step costs", "\nAll take turns in each round.\n", c_step.table),
)


def main():
    text = HEAD
    for name, title, said, table in SECTIONS:
        content = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
        where = ", ".join(f"{key} {value}" for key, value in content["environment"].items())
        text += f"\n## {title}\n{said}\n```\n{table(content['rows'])}\n```\n\nOn: {where}.\n"
    (ROOT / "docs/results.md").write_text(text)


if __name__ == "__main__":
    main()
