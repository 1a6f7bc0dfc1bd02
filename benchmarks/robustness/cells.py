"""The cells of the matrix: a centre for each net, what lies around it, and chosen pairs."""

import itertools
from dataclasses import dataclass, replace

from benchmarks.robustness.nets import NETS
from benchmarks.robustness.optimizers import OPTIMIZERS

_FEWEST_IN_A_BATCH = 8
# The fewer batches in an epoch, the more epochs: otherwise only direct compression is possible.
_EPOCHS = {1: 60, 5: 40, 25: 20, 100: 6, 400: 3}
# A factor of the price of the centre: cells that cost more come last.
_DEAR = 3.0
# Chosen from all combinations of two or more changes.
_PAIRS = (
    {"optimizer": "Adam", "rate": 0.1, "epochs": 20},
    {"optimizer": "Adam", "rate": 0.1, "batches": 5, "epochs": 40},
    {"optimizer": "Lion", "rate": 0.1},
    {"optimizer": "Muon", "rate": 0.1},
    {"optimizer": "AdamW", "schedule": "warm-up, cosine"},
    {"optimizer": "ScheduleFreeAdamW", "schedule": "constant", "epochs": 20},
    {"optimizer": "RMSprop", "rate": 0.1},
    {"optimizer": "SGD", "rate": 0.1, "epochs": 20},
    {"optimizer": "Lion", "epochs": 20},
    {"optimizer": "Adam", "rate": 0.01, "epochs": 20},
    {"optimizer": "SGD", "schedule": "cosine", "epochs": 20},
)


@dataclass(frozen=True)
class Cell:
    """A net and everything that decides how it is pruned.

    Attributes:
        net: String, of `NETS`.
        optimizer: String, of `OPTIMIZERS`.
        rate: Float, a factor of the usual rate.
        schedule: String, of `SCHEDULES`.
        batches: Int, the batches in an epoch.
        epochs: Int.
        keep: Float, the fraction to keep.
        seed: Int, for the order of the batches and all that is drawn.
    """

    net: str
    optimizer: str
    rate: float
    schedule: str
    batches: int
    epochs: int
    keep: float
    seed: int = 0

    @classmethod
    def centre(cls, net):
        """Returns the cell around which the others of a `Net` lie."""
        return cls(net.name, net.optimizers[0], 1.0, "falling", net.batches, net.epochs, net.keep[0])

    @property
    def name(self):
        """All that decides how the net is pruned, such as `lenet300 SGD x0.1 falling 200x6 2% seed0`."""
        return f"{self.of_all_seeds} seed{self.seed}"

    @property
    def of_all_seeds(self):
        """The name without the seed."""
        return (
            f"{self.net} {self.optimizer} x{self.rate:g} {self.schedule} "
            f"{self.batches}x{self.epochs} {100 * self.keep:g}%"
        )

    @property
    def setting(self):
        """The optimizer, and what else differs from the centre of the net, such as `Adam ×0.1, 3 epochs`."""
        middle = Cell.centre(NETS[self.net])
        epochs = f"{self.epochs} epochs"
        lengths = {
            (False, True): [epochs],
            (True, False): [f"{self.batches} × {epochs}"],
            (True, True): [f"{self.batches} × {epochs}"],
        }
        return ", ".join(
            [self.optimizer + (f" ×{self.rate:g}" if self.rate != 1 else "")]
            + [self.schedule] * (self.schedule != middle.schedule)
            + lengths.get((self.batches != middle.batches, self.epochs != middle.epochs), [])
            + [f"{100 * self.keep:g} % kept"] * (self.keep != middle.keep)
        )


TINY = [
    Cell("tabular", optimizer, 1.0, "falling", batches=5, epochs=2, keep=0.05)
    for optimizer in ("SGD", "SignMomentum")
]


def cells(seeds=(0,)):
    """Returns the cells, those that say most first: nets take turns, and costly cells come last.

    Args:
        seeds: Sequence of ints; all cells with the first one come first.

    Returns:
        List of `Cell`, each once.
    """
    turns = itertools.zip_longest(*map(_of_net, NETS.values()))
    once = {cell.name: cell for turn in turns for cell in turn if cell}
    ordered = sorted(once.values(), key=lambda cell: max(_DEAR, _price(cell)))
    return [replace(cell, seed=seed) for seed in seeds for cell in ordered]


def _price(cell):
    """Returns how many examples a cell sees, as a factor of the centre's."""
    net = NETS[cell.net]
    return cell.epochs * net.batch(cell.batches)[1] / (net.epochs * net.examples)


def _of_net(net):
    """Returns the cells of one net, in which the things that are varied take turns."""
    middle = Cell.centre(net)
    turns = itertools.zip_longest(*_varied(net, middle))
    found = [middle, *(cell for turn in turns for cell in turn if cell)]
    return [cell for cell in found if net.examples // cell.batches >= _FEWEST_IN_A_BATCH]


def _varied(net, middle):
    """Returns a list of cells for each thing that is varied, each with the most telling first."""
    other = replace(middle, optimizer=net.optimizers[1])
    both = middle, other
    return [
        [other, *(replace(middle, optimizer=name) for name in OPTIMIZERS)],
        [replace(cell, rate=rate) for rate in (0.1, 0.01, 0.3) for cell in both],
        [
            replace(cell, batches=batches, epochs=_EPOCHS[batches])
            for batches in (5, 25, 1, 400, 100)
            if batches != net.batches
            for cell in both
        ],
        [replace(cell, keep=keep) for keep in net.keep[1:] for cell in both],
        [replace(cell, epochs=epochs) for epochs in (3, 20) for cell in both] + [replace(middle, epochs=60)],
        [replace(cell, schedule=schedule) for schedule in ("warm-up", "cosine", "constant") for cell in both],
        [replace(middle, **pair) for pair in _PAIRS],
    ]
