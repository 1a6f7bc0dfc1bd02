"""A reduced case of the paper's experiment on CIFAR-10: LC and magnitude with retraining, at equal epochs.

python -m benchmarks.training.resnet              # ResNet-8, 10,000 images: an hour a seed
python -m benchmarks.training.resnet --depth 14   # other options go to examples.resnet_cifar10
python -m benchmarks.training.resnet --tiny       # one epoch of a few images
"""

import argparse
from pathlib import Path

from benchmarks import plots, record
from examples import resnet_cifar10

TINY = "--samples 128 --test-samples 100 --reference-epochs 1 --epochs 2 --retraining 0.5 --keep 0.1"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help=TINY)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/resnet.json"))
    own, others = parser.parse_known_args()
    args = resnet_cifar10.options(["--reduced", *(TINY.split() if own.tiny else []), *others])
    # What is done, and what was begun, stays beside the output.
    args.output = own.output.with_suffix("")
    for args.seed in own.seeds:
        rows = resnet_cifar10.run(args)
    record.write(own.output, rows)
    print(resnet_cifar10.table(rows))
    plots.errors(rows, own.output.with_suffix(""))


if __name__ == "__main__":
    main()
