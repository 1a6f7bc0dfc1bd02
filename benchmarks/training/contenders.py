"""The contenders, each with what it is tuned by, and one way to run them all."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

import lc_keras
from benchmarks.nets import Net
from benchmarks.peers import peer
from examples import tradeoff
from lc_keras import (
    Codebook,
    Exponential,
    L0Constraint,
    L0Penalty,
    L1Constraint,
    L1Penalty,
    LearningCompression,
    LowRank,
    RankSelection,
    Sum,
    Task,
)
from lc_keras.baselines import GradualPruning, MagnitudePruning
from lc_keras.model import default_kernels


@dataclass(frozen=True)
class Contender:
    """A way to prune.

    Attributes:
        prune: Called with the fraction to keep, or with a strength and the reference's ℓ1 norm,
            and with settings; returns the callback. `None` for a peer.
        tries: Tuple of two settings of the contender's own option, which `tune.py` tries; the first is
            the default.
        rates: Tuple of three learning rates to try, as factors of the reference's.
        tuned_as: String, the contender whose tuned settings it takes; its own by default.
        peer: Dict, the `name` of the script in `peers/`, and its options; or `None`.
        strength: Float, where the search for the strength that keeps a given fraction begins.
            `None` if the fraction is given to the contender itself.
        slope: +1 if more strength keeps more, else −1.
        shrinks: Bool, whether the net that it leaves is shrunk before it is measured, as for low rank.
    """

    prune: Callable | None = None
    tries: tuple = ()
    rates: tuple = (1.0, 0.5, 2.0)
    tuned_as: str | None = None
    peer: dict | None = None
    strength: float | None = None
    slope: int = -1
    shrinks: bool = False

    def settings(self):
        """Returns the settings to tune first: each learning rate with each try."""
        return [{"rate": rate, **own} for own in self.tries for rate in self.rates]

    def regularized(self, settings, optimizer):
        """Returns the settings to tune next, given those that were found best."""
        decay = {"weight_decay": WEIGHT_DECAYS[optimizer]}
        smooth = {"label_smoothing": LABEL_SMOOTHING}
        return [{**settings, **more} for more in (decay, smooth, decay | smooth)]


# Decoupled from the gradient: in a batch, a weight decays by this times the learning rate.
WEIGHT_DECAYS = {"sgd": 1e-3, "adam": 0.1}
LABEL_SMOOTHING = 0.05
_OF_TRAINING = "rate", "weight_decay", "label_smoothing", "clip_norm", "shift", "dropout"


def _options(name, *values):
    return tuple({name: value} for value in values)


def _with_and_without(name, cost, **attributes):
    """Yields LC with a cost that has no budget, with and without multipliers."""
    for multipliers in (True, False):
        yield (
            name if multipliers else f"{name}, no multipliers",
            Contender(
                lambda strength, norm, multipliers=multipliers, **settings: LearningCompression(
                    cost(strength, norm), multipliers=multipliers, **settings
                ),
                tuned_as="LC",
                **attributes,
            ),
        )


CONTENDERS = {
    "LC": Contender(
        lambda keep, **settings: LearningCompression(L0Constraint(keep), **settings),
        # On MNIST, 29 batches in 20 epochs, and 15.
        _options("epochs_per_step", None, 0.0625),
    ),
    "LC per layer": Contender(
        lambda keep, **settings: LearningCompression(Task(L0Constraint(keep), per_layer=True), **settings),
        tuned_as="LC",
    ),
    "LC without multipliers": Contender(
        lambda keep, **settings: LearningCompression(L0Constraint(keep), multipliers=False, **settings),
        tuned_as="LC",
    ),
    **dict(_with_and_without("LC ℓ0 penalty", lambda alpha, norm: L0Penalty(alpha), strength=1e-5)),
    **dict(_with_and_without("LC ℓ1 penalty", lambda alpha, norm: L1Penalty(alpha), strength=1e-4)),
    **dict(
        # The strength is a fraction of the reference's norm.
        _with_and_without(
            "LC ℓ1 constraint", lambda part, norm: L1Constraint(part * norm), strength=0.1, slope=1
        )
    ),
    # Here the budget counts the weights that are kept or corrected, if it plays a part at all.
    "LC 2 values": Contender(lambda keep: LearningCompression(Codebook(2))),
    "LC 16 values": Contender(lambda keep: LearningCompression(L0Constraint(keep, values=Codebook(16)))),
    "LC 2 values of what is kept": Contender(
        lambda keep: LearningCompression(L0Constraint(keep, values=Codebook(2)))
    ),
    "LC 2 values, corrected": Contender(
        lambda keep: LearningCompression(Sum(Codebook(2), L0Constraint(keep)))
    ),
    "LC ranks that pay": Contender(lambda keep: LearningCompression(RankSelection(1e-6)), shrinks=True),
    # As in the authors' example, but for 60 epochs instead of 820.
    "LC ranks that pay, paper's μ": Contender(
        lambda keep: LearningCompression(
            RankSelection(1e-6), mu=Exponential(1e-3, 1.1), steps=40, epochs_per_step=1.5
        ),
        shrinks=True,
    ),
    # Another of the authors' examples.
    "LC sparse, rank 10, 2 values": Contender(
        lambda keep: LearningCompression(
            [
                Task(L0Constraint(5000), weights=r"\bdense/kernel"),
                Task(LowRank(10), weights="dense_1/kernel"),
                Task(Codebook(2), weights="dense_2/kernel"),
            ]
        ),
        shrinks=True,
    ),
    "gradual": Contender(
        lambda keep, **settings: GradualPruning(L0Constraint(keep), **settings),
        _options("until", 0.75, 0.5),
    ),
    "magnitude": Contender(
        lambda keep, **settings: MagnitudePruning(L0Constraint(keep), **settings),
        _options("rounds", 1, 5),
    ),
    "magnitude, 5 rounds": Contender(lambda keep: MagnitudePruning(L0Constraint(keep), rounds=5)),
    # In environments of their own, made when they are asked for.
    "TensorFlow's toolkit": Contender(peer={"name": "tfmot"}, tries=_options("until", 0.75, 0.5)),
    "PQuantML, PDP": Contender(
        # At the reference's learning rate it diverges.
        peer={"name": "pquant", "method": "pdp", "rate": 0.1},
        tries=_options("tuned", 1 / 6, 1 / 2),
        rates=(0.1, 0.03, 0.3),
    ),
    "PQuantML, Wanda": Contender(
        peer={"name": "pquant", "method": "wanda"}, tries=_options("seen", 100, 1000)
    ),
}
TUNABLE = [name for name, contender in CONTENDERS.items() if contender.tries]


@dataclass(frozen=True)
class Start:
    """What all contenders of a comparison start from.

    Attributes:
        net: `Net`.
        optimizer: String.
        validation: Bool, whether images are held out to measure on.
        reference: `keras.Model`.
        train: Tuple of arrays.
        measured: Tuple of arrays.
        seed: Int, for the order of the batches.
    """

    net: Net
    optimizer: str
    validation: bool
    reference: keras.Model
    train: tuple
    measured: tuple
    seed: int


def run(start, name, keep, epochs, settings, strength=None):
    """Prunes a copy of the reference.

    Args:
        start: `Start`.
        name: String, the contender.
        keep: Float, the fraction to keep.
        epochs: Int.
        settings: Dict, as in `Contender.settings`; empty for the defaults.
        strength: Float, for a contender that is not told what to keep.

    Returns:
        Dict of figures: `kept`, `density`, `error` in %, `kilobytes`, `density_by_layer` and `seconds`.
    """
    began = time.perf_counter()
    contender = CONTENDERS[name]
    if contender.peer:
        figures = peer.run(
            reference=start.reference,
            net=start.net.name,
            optimizer=start.optimizer,
            validation=start.validation,
            keep=keep,
            epochs=epochs,
            seed=start.seed,
            **contender.peer | settings,
        )
        figures["density"] = figures["kept"] / lc_keras.report(start.reference).weights
    else:
        own = {option: value for option, value in settings.items() if option not in _OF_TRAINING}
        norm = sum(float(np.abs(kernel.numpy()).sum()) for kernel in default_kernels(start.reference))
        callback = (
            contender.prune(keep, **own) if strength is None else contender.prune(strength, norm, **own)
        )
        model = tradeoff.copy_of(start.reference)
        keras.utils.set_random_seed(start.seed)
        label = f"{name} {100 * keep:g} %"
        start.net.fit(
            model,
            start.train,
            epochs,
            label,
            [callback],
            optimizer=start.optimizer,
            seed=start.seed,
            **{option: value for option, value in settings.items() if option in _OF_TRAINING},
            # An L step may be shorter than usual, but not shorter than an execution.
            executions=max(16, math.ceil(1 / settings.get("epochs_per_step", 1))),
        )
        shipped = lc_keras.shrink(model) if contender.shrinks else model
        point, report = tradeoff.measure(name, shipped, start.measured), lc_keras.report(model)
        densities = {row.path: row.density for row in report.rows}
        figures = {"kept": point.kept, "density": point.kept / report.weights, "error": point.error}
        figures |= {"kilobytes": point.kilobytes, "density_by_layer": densities}
    return figures | {"seconds": time.perf_counter() - began}
