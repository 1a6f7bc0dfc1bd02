"""Describe a kind of layer in one entry: its kernels, and how units pass through it.

An entry is a subclass of `Flow` that is registered with `describes`. What it says of kernels holds for
subclasses of the layer, too: a user's layer that derives from `Dense` has the weights of a dense layer. What
it says of units does not, since the `call` of the subclass may do anything with them.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import keras
import numpy as np

from lc_keras.model.flow.units import Shape, Signal, Units, Weight, find, last, name_of


class Flow:
    """Describe a kind of layer; an object is one call of it, in which units flow from inputs to outputs.

    A subclass describes the layer once for all that is done with kernels and units. `kernel_axes` are the
    axes of its kernels that number output units; `weights` are those of its weights that have an axis along
    units.

    Args:
        layer: The layer.
        inputs: List of `Signal`.
        shapes: List of shapes of the outputs.
        units: `Units` of the graph.
        arguments: Dict of the arguments of the call by name, with `Signal`s in place of tensors, in the order
            of the layer's signature.

    Attributes:
        ports: Dict from a name to the units by which weights and arguments of the layer are numbered.
        hidden: List of `Signal` that never leave the layer, such as heads.
        is_shared: Bool, whether the layer is called again.
    """

    kernel_axes: tuple[int, ...] = (-1,)
    weights: tuple[Weight, ...] = ()
    # The argument that gives the number of units at the port "out", if there is one.
    width: str | None = None
    # The ways in which two layers of its class can replace it if its kernel is of low rank: for each way, the
    # axes of the kernel's window along which the first of the two goes.
    ways: tuple[tuple[int, ...], ...] = ()
    # The class that it is rebuilt as, if that is not its own.
    made_as: type[keras.Layer] | None = None
    # How many inputs it describes; `None`: any number.
    takes: int | None = None
    # Whether it describes calls with arguments that are neither tensors nor masks.
    takes_arguments = False

    # Kernels.

    @staticmethod
    def is_kernel(variable: keras.Variable) -> bool:
        """Return whether a variable is a kernel; if its layer is of an unknown kind, the name decides."""
        return variable.name.endswith("kernel") and len(variable.shape) >= 2

    @classmethod
    def output_axes(cls, layer: keras.Layer | None, variable: keras.Variable) -> tuple[int, ...]:
        """Return the axes of a variable that number output units, counted from the last."""
        if not cls.is_kernel(variable):
            return (-1,)
        return (-2, -1) if variable.name == "depthwise_kernel" else cls.kernel_axes

    # Units.

    def __init__(
        self,
        layer: keras.Layer,
        inputs: list[Signal],
        shapes: list[Shape],
        units: Units,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        self.layer, self.inputs, self.shapes, self.units = layer, inputs, shapes, units
        self.arguments = arguments or {}
        self.ports: dict[str, np.ndarray] = {}
        self.hidden: list[Signal] = []
        self.is_shared = False
        self.outputs = self.forward()

    @property
    def made(self) -> list[Signal]:
        """Return the signals that come out, and those that never do."""
        return [*self.outputs, *self.hidden]

    @property
    def all_signals(self) -> list[Signal]:
        """Return all signals, those of the inputs first."""
        return [*self.inputs, *self.made]

    @property
    def is_sized(self) -> bool:
        """Return whether the layer itself changes with the number of its units."""
        return bool(self.weights) or type(self).config is not Flow.config

    @classmethod
    def fits(cls, layer: keras.Layer) -> bool:
        """Return whether this describes the layer as it is configured."""
        return True

    def forward(self) -> list[Signal]:
        """Find the outputs' units and constants; tie and pin where necessary."""
        raise NotImplementedError

    def backward(self) -> None:
        """Mark what is read of the inputs, given that the outputs are already marked."""
        raise NotImplementedError

    def config(self, count: Callable[[str], int]) -> dict[str, object]:
        """Return the arguments of the layer that change.

        Args:
            count: Function from a port to the number of its units that stay.
        """
        return {self.width: count("out")} if self.width else {}

    def bypasses(self, kept: dict[str, np.ndarray]) -> bool:
        """Return whether some of the inputs are not even needed, given the units that stay."""
        return False

    def called(self, made: Any, kept: dict[str, np.ndarray]) -> Any:
        """Return what is called in place of the rebuilt layer, on the same arguments."""
        return made

    def fold(self, kept: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Fold what removed units leave behind into the weights.

        Args:
            kept: Dict of bool arrays by port: which units stay.
            arrays: Dict of the weights that stay, by name, already cut.

        Returns:
            Dict of arrays by name: the weights that change, or that the layer did not have.
        """
        return {}

    # What subclasses use to describe these things.

    def along(self, signal: Signal, axis: int) -> Signal:
        """Return the signal with its units on an axis; if they are on another, pin them."""
        if signal.axis == axis:
            return signal
        why = "has units on another axis than it expects"
        self.pin(signal, why)
        return self.fresh(signal.shape, axis, pinned=why)

    def fresh(
        self, shape: Shape, axis: int, value: np.ndarray | None = None, pinned: str | None = None
    ) -> Signal:
        """Return a signal of new units, or of no units if the size of the axis is not known."""
        signal = Signal(shape, axis, self.units.new(shape[axis] or 0 if shape else 0))
        if value is not None:
            signal.value = value
        if pinned:
            self.pin(signal, pinned)
        return signal

    def closed(self, why: str) -> list[Signal]:
        """Return outputs of new units, with all units that go in and come out made to stay."""
        for signal in self.inputs:
            self.pin(signal, why)
        return [self.fresh(shape, last(shape), pinned=why) for shape in self.shapes]

    def pin(self, signal: Signal, why: str) -> None:
        """Make units stay, since the layer depends on them in a way that does not follow them."""
        self.units.pin(signal.ids, f"'{self.layer.name}' {why}")
        signal.read[:] = True

    def hold(self, signal: Signal, why: str, where: np.ndarray) -> None:
        """Make units stay, because they are constants that the layer cannot fold."""
        self.units.hold(signal.ids[where], f"'{self.layer.name}' {why}")
        signal.read[where] = True

    def array(self, name: str) -> np.ndarray:
        """Return a weight's value by name."""
        return self._value(name, find(self.layer, name))

    def optional(self, name: str) -> np.ndarray | None:
        """Return a weight's value by name, `None` if the layer has none."""
        variable = find(self.layer, name)
        return None if variable is None else self._value(name, variable)

    def _value(self, name: str, variable: keras.Variable) -> np.ndarray:
        if self.units.dead and variable.trainable and any(w.name == name and w.makes for w in self.weights):
            return np.zeros(variable.shape, "float32")
        return keras.ops.convert_to_numpy(variable)


class Wall(Flow):
    """A layer of which nothing is known: all units that go in and come out stay."""

    def forward(self) -> list[Signal]:
        return self.closed("is of a kind whose units are not known")

    def backward(self) -> None:
        pass


F = TypeVar("F", bound=Flow)
KINDS: dict[type | str, type[Flow]] = {}


def describes(*layers: type | str) -> Callable[[type[F]], type[F]]:
    """Register an entry for kinds of layers: classes, or the `name_of` classes that may be missing."""

    def register(flow: type[F]) -> type[F]:
        KINDS.update(dict.fromkeys(layers, flow))
        return flow

    return register


def exact_kind_of(layer: keras.Layer) -> type[Flow]:
    """Return the entry of a layer's own class, the only one that holds for its units."""
    return KINDS.get(type(layer)) or KINDS.get(name_of(type(layer)), Wall)


def kind_of(layer: keras.Layer | None) -> type[Flow]:
    """Return the entry of a layer's class, or of the nearest one that it derives from; not for units."""
    return next((KINDS[c] for c in type(layer).__mro__ if c in KINDS), Wall)


def is_altered(layer: keras.Layer) -> bool:
    """Return whether a layer does not multiply by its kernel itself: quantised, or under LoRA."""
    return bool(getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False))
