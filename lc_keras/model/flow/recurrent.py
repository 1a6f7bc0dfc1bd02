"""Describe recurrent layers: a unit has a column in each gate, and a row that the gates of all units read."""

from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from lc_keras.model.flow.kinds import KINDS, Flow, describes
from lc_keras.model.flow.units import Along, Signal, Weight, is_elementwise, last


class Recurrent(Flow):
    """A layer of gates. A unit stays zero if its candidate is zero, since states start at zero."""

    width = "units"
    gates, candidate = 1, 0
    takes = 1  # no states

    @classmethod
    def fits(cls, layer: keras.Layer) -> bool:
        return not (layer.return_state or layer.stateful)

    def forward(self) -> list[Signal]:
        layer = self.layer
        self.weights = (
            Weight("cell.kernel", makes=Along(1, "out", self.gates), reads=Along(0, "in")),
            Weight("cell.recurrent_kernel", makes=Along(1, "out", self.gates), reads=Along(0, "out")),
            Weight("cell.bias", makes=Along(-1, "out", self.gates)),
        )
        gate = getattr(layer, "recurrent_activation", keras.activations.sigmoid)
        (self.x,) = (self.along(x, last(x.shape)) for x in self.inputs)
        self.kernel, self.recurrent = (
            self._by_gate(self.array(f"cell.{name}") != 0) for name in ("kernel", "recurrent_kernel")
        )
        given = self.x.constant & (self.x.value != 0)
        if self.optional("cell.bias") is None:
            self.hold(self.x, "has no bias for a constant", given)
        alive = self._candidates() != 0
        alive |= self.kernel[:, self.candidate][~self.x.constant].any(axis=0)
        steady = is_elementwise(layer.activation) and float(layer.activation(np.zeros(1, "float32"))[0]) == 0
        if not (steady and is_elementwise(gate)):
            alive[:] = True
        for _ in range(len(alive)):
            reached = alive | self.recurrent[alive, self.candidate].any(axis=0)
            if (reached == alive).all():
                break
            alive = reached
        out = self.fresh(self.shapes[0], last(self.shapes[0]), np.where(alive, np.nan, 0.0))
        if not is_elementwise(layer.activation):
            self.pin(out, "has an activation across units")
        self.ports = {"in": self.x.ids, "out": out.ids}
        return [out]

    def backward(self) -> None:
        out = self.outputs[0]
        needed = out.needed
        for _ in range(len(needed)):
            reached = needed | (self.recurrent[:, :, needed].any(axis=(1, 2)) & ~out.constant)
            if (reached == needed).all():
                break
            needed = reached
        out.read |= needed
        self.x.read |= self.kernel[:, :, needed].any(axis=(1, 2))

    def fold(self, kept: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        gone = ~kept["in"] & self.x.constant
        if not self.x.value[gone].any():
            return {}
        left = self._by_gate(self.x.value[gone] @ self.array("cell.kernel")[gone])[:, kept["out"]].ravel()
        bias = arrays["cell.bias"].copy()
        bias.reshape(-1, len(left))[0] += left
        return {"cell.bias": bias}

    def _by_gate(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(*array.shape[:-1], self.gates, -1)

    def _candidates(self) -> np.ndarray:
        """Return what the candidate of each unit is given that does not vary; zero only if all of it is."""
        given = np.nan_to_num(self.x.value)
        total = given @ self._by_gate(self.array("cell.kernel").astype("float64"))[:, self.candidate]
        bias = self.optional("cell.bias")
        if bias is None:
            return total
        first, *rest = self._by_gate(np.atleast_2d(bias.astype("float64")))[:, self.candidate]
        return np.abs(total + first) + sum(map(np.abs, rest))


@describes(layers.SimpleRNN)
class SimpleRNN(Recurrent):
    """A layer with no gates but the candidate."""


@describes(layers.GRU)
class GRU(Recurrent):
    gates, candidate = 3, 2


@describes(layers.LSTM)
class LSTM(Recurrent):
    gates, candidate = 4, 2


_MERGES = {"concat": layers.Concatenate, "sum": layers.Add, "ave": layers.Average, "mul": layers.Multiply}


@describes(layers.Bidirectional)
class Bidirectional(Flow):
    """Two recurrent layers of one input, whose units are tied in pairs, and a merge of their outputs."""

    takes = 1  # no states

    @classmethod
    def fits(cls, layer: keras.Layer) -> bool:
        both = layer.forward_layer, layer.backward_layer
        kinds = [KINDS.get(type(one), Flow) for one in both]
        pairs = zip(kinds, both, strict=True)
        known = all(issubclass(kind, Recurrent) and kind.fits(one) for kind, one in pairs)
        return known and both[0].units == both[1].units and layer.merge_mode in _MERGES

    def forward(self) -> list[Signal]:
        (x,) = self.inputs
        self.parts: dict[str, Flow] = {}
        for name in ("forward_layer", "backward_layer"):
            one = getattr(self.layer, name)
            self.parts[name] = KINDS[type(one)](one, [x], [one.compute_output_shape(x.shape)], self.units)
        merge = _MERGES[self.layer.merge_mode]()
        self.hidden = [part.outputs[0] for part in self.parts.values()]
        # Keras computes shapes as if both were as wide as the first.
        self.units.tie(*(signal.ids for signal in self.hidden))
        self.merge = KINDS[type(merge)](merge, self.hidden, self.shapes, self.units)
        for name, part in self.parts.items():
            self.ports |= {f"{name}.{port}": ids for port, ids in part.ports.items()}
        self.ports["out"] = self.merge.outputs[0].ids
        self.weights = tuple(
            Weight(f"{name}.{w.name}", _within(name, w.makes), _within(name, w.reads))
            for name, part in self.parts.items()
            for w in part.weights
        )
        return self.merge.outputs

    def backward(self) -> None:
        self.merge.backward()
        for part in self.parts.values():
            part.backward()

    def config(self, count: Callable[[str], int]) -> dict[str, object]:
        config: dict[str, object] = {}
        serialized = self.layer.get_config()
        for name, part in self.parts.items():
            key = "layer" if name == "forward_layer" else name

            def inside(port: str, name: str = name) -> int:
                return count(f"{name}.{port}")

            inner = serialized[key]["config"] | part.config(inside)
            # Without the sizes that it was built with.
            config[key] = serialized[key] | {"config": inner, "build_config": None}
        return config

    def fold(self, kept: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            f"{name}.{key}": value
            for name, part in self.parts.items()
            for key, value in part.fold(_of(name, kept), _of(name, arrays)).items()
        }


def _within(name: str, along: Along | None) -> Along | None:
    return along and along._replace(port=f"{name}.{along.port}")


def _of(name: str, entries: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    start = f"{name}."
    return {key.removeprefix(start): value for key, value in entries.items() if key.startswith(start)}
