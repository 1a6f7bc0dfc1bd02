"""All variables that a restart needs, and the checks before it goes on from them."""

import re
from collections.abc import Iterator

import keras
import tensorflow as tf
from keras.optimizers import Optimizer

from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.fit.averages import Averages
from lc_keras.fit.checkpoints import Checkpoint, Facts
from lc_keras.fit.optimizers import inner_optimizer, wrapped_optimizers_of
from lc_keras.fit.statistics import Statistics
from lc_keras.internals.keras import updated_by

_SHOWN = 5


class Saved:
    """Read and write all variables that a restart needs: of a model, its optimizers and its Lagrangian."""

    def __init__(
        self, model: keras.Model, lagrangian: Lagrangian, averages: Averages, statistics: Statistics
    ) -> None:
        self._model = model
        self._lagrangian = lagrangian
        self._averages = averages
        self._statistics = statistics
        self._optimizers = wrapped_optimizers_of(model)

    def tensors(self) -> dict[str, tf.Tensor]:
        """Return the values of all variables by name, while the model shows its compressed weights."""
        swapped: dict[int, keras.Variable] = {}
        for weight, average in self._averages.swapped():
            swapped |= {id(weight): average, id(average): weight}
        return {name: tf.convert_to_tensor(swapped.get(id(v), v)) for name, v in self._variables()}

    def description(self) -> Facts:
        """Return what the variables belong to, in a form that JSON can hold."""
        return {**self._model_and_tasks(), "optimizers": self._described_optimizers()}

    def restore(self, checkpoint: Checkpoint, description: Facts) -> None:
        """Give all variables the values of a checkpoint that was saved with this `description`.

        Raises:
            ValueError: If it is of another model, optimizer or task. In that case no value is changed.
        """
        received = dict(description)
        optimizers = received.pop("optimizers")
        check_same(self._model_and_tasks(), received, checkpoint)
        variables = self._model.variables
        with self._model.distribute_strategy.scope():
            for optimizer, described in zip(self._optimizers, optimizers, strict=False):
                if not optimizer.built and described["built_on"] is not None:
                    optimizer.build([variables[i] for i in described["built_on"]])
        check_same({"optimizers": self._described_optimizers()}, {"optimizers": optimizers}, checkpoint)
        self._averages.prepare()
        for name, variable in self._variables():
            variable.assign(checkpoint.read(name))

    def _variables(self) -> Iterator[tuple[str, keras.Variable | tf.Variable]]:
        groups = {
            "model": self._model.variables,
            **{f"optimizer_{i}": _variables_of(o) for i, o in enumerate(self._optimizers)},
            **self._lagrangian.saved(),
            "average": self._averages.trained,
            "statistics": self._statistics.trained,
        }
        for group, variables in groups.items():
            for i, variable in enumerate(variables):
                yield f"{group}/{i}", variable

    def _model_and_tasks(self) -> Facts:
        return {
            "model": [f"{_name(v)} {tuple(v.shape)} {v.dtype}" for v in self._model.variables],
            "tasks": [
                {"cost": repr(part.compression), "weights": [_name(v) for v in part.variables]}
                for part in self._lagrangian.shared
            ],
        }

    def _described_optimizers(self) -> list[Facts]:
        places = {id(v): i for i, v in enumerate(self._model.variables)}

        def place_of(variable: keras.Variable) -> int:
            if id(variable) not in places:
                raise ValueError(
                    "Expected the optimizer to train `model.variables` alone, which is what `checkpoint_dir` "
                    f"keeps. Received: {variable.name}"
                )
            return places[id(variable)]

        return [
            {
                "class": type(inner_optimizer(optimizer)).__name__,
                "built_on": [place_of(v) for v in updated_by(inner_optimizer(optimizer))]
                if optimizer.built
                else None,
                "variables": [f"{tuple(v.shape)} {v.dtype}" for v in _variables_of(optimizer)],
            }
            for optimizer in self._optimizers
        ]


def check_same(expected: Facts, received: Facts, checkpoint: Checkpoint) -> None:
    """Raise a ValueError that says what differs, if a checkpoint is not of the run to go on from it."""
    differences = list(_differences(expected, received))
    if differences:
        more = f"\n  … and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise ValueError(
            f"Expected the checkpoint '{checkpoint.path}' to be of this model and this run. To begin anew, "
            "delete it. Received: one that differs in\n  " + "\n  ".join(differences[:_SHOWN]) + more
        )


def _differences(expected: object, received: object, path: str = "") -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(received, dict):
        for key in {**expected, **received}:
            inside = f"{path}.{key}" if path else key
            yield from _differences(expected.get(key), received.get(key), inside)
    elif isinstance(expected, list) and isinstance(received, list):
        if len(expected) != len(received):
            yield f"{path}: expected {len(expected)} of them, received {len(received)}"
        for i, pair in enumerate(zip(expected, received, strict=False)):
            yield from _differences(*pair, f"{path}[{i}]")
    elif expected != received:
        yield f"{path}: expected {expected}, received {received}"


def _variables_of(optimizer: Optimizer) -> list[keras.Variable]:
    """Return all variables of an optimizer, and of the one inside it."""
    found = {id(v): v for v in optimizer.variables}
    while optimizer is not None:
        # Inside a LossScaleOptimizer Keras does not count Nadam's last variable.
        found |= {id(v): v for v in vars(optimizer).values() if isinstance(v, keras.Variable)}
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return list(found.values())


def _name(variable: keras.Variable) -> str:
    # Keras numbers the names that it makes up, and goes on counting within a process.
    return re.sub(r"_\d+", "", variable.path)
