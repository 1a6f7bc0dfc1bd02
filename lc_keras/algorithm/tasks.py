"""Tasks: a cost, and the weights of a model that share it."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import keras

from lc_keras.algorithm.neurons import Makers
from lc_keras.algorithm.times import timed
from lc_keras.arguments import keras_model, switch, warn
from lc_keras.costs import Compression
from lc_keras.costs.layout import Layout
from lc_keras.costs.serialization import Serializable
from lc_keras.model.flow.graph import is_graph
from lc_keras.model.kernels import bytes_of, is_kernel, is_table, output_axes, owners_of
from lc_keras.model.macs import count_uses
from lc_keras.model.signatures import Structure, named
from lc_keras.showing import listed

Single: TypeAlias = (
    "str | re.Pattern[str] | keras.Layer | keras.Variable | Callable[[keras.Variable], object] | None"
)
Selector: TypeAlias = "Single | Iterable[Single]"


@dataclass(frozen=True)
class SharedCost:
    """Variables whose weights share one cost, as a `Task` found them in a model.

    Attributes:
        task: The `Task` they come from.
        variables: List of `keras.Variable`.
        layouts: List of `Layout`, one for each variable.
    """

    task: "Task"
    variables: list[keras.Variable]
    layouts: list[Layout]

    @property
    def compression(self) -> Compression:
        return self.task.compression


class Task(Serializable):
    r"""A compression and the weights it applies to.

    Args:
        compression: `Compression`, such as `L0Constraint(keep=0.05)`.
        weights: The trainable variables to compress. `None` (default): the kernels of dense, convolution,
            attention and recurrent layers, and what is named a kernel in others, however deeply nested. A
            string or compiled pattern: the variables whose `path` the regular expression matches anywhere,
            such as `r"\bdense/kernel"`; `"dense"` also matches the paths of `dense_1` and of biases. A layer:
            its kernels or, if it has none by that name, all its weights with two or more axes. A variable:
            that variable. A layer or variable of a copy of the model stands for the one with the same path
            and shape. A function of a variable: the variables for which it returns true. An iterable of
            these: their union.
        per_layer: Bool, default `False`: one budget over all the weights, so that training finds how much
            each layer keeps. `True`: the same budget for each layer separately. A budget of neurons then
            applies to each set of layers that make neurons together, and not to layers whose neurons must
            all stay.
        input_signature: List of `tf.TensorSpec` or of structures of these, one for each positional argument
            of the model: the inputs for which a budget of multiply-adds counts them, if the model leaves
            their sizes open or has not recorded them. `None` (default): as the model was built.
        embeddings: Bool, default `False`. `True`: the tables of embeddings are compressed, too. A table that
            a layer is tied to counts once. With `Neurons()`, the groups are the table's columns; with
            `Blocks((1, columns))`, its rows.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If `weights` is an empty list, the regular expression does not compile, or
            `input_signature` is empty or has two inputs of the same name.

    Example:

    ```python
    # 3 % of all convolution kernels jointly, half of the neurons of one layer.
    tasks = [
        lc_keras.Task(lc_keras.L0Constraint(0.03), weights=r"conv.*/kernel"),
        lc_keras.Task(
            lc_keras.L0Constraint(0.5, groups=lc_keras.Neurons()),
            weights=model.get_layer("dense"),
        ),
    ]
    ```
    """

    def __init__(
        self,
        compression: Compression,
        weights: Selector = None,
        per_layer: bool = False,
        input_signature: list[Structure] | None = None,
        embeddings: bool = False,
    ) -> None:
        if not isinstance(compression, Compression):
            is_layer = isinstance(compression, keras.Layer)
            hint = "; no model is wrapped: the callback goes into `model.fit(..., callbacks=[...])`"
            raise TypeError(
                "Expected `compression` to be a compression such as L0Constraint(keep=0.05). "
                f"Received: {compression!r} (of type {type(compression).__name__}){hint if is_layer else ''}"
            )
        self.compression = compression
        if isinstance(weights, Iterable) and not isinstance(weights, (str, keras.Layer, keras.Variable)):
            weights = list(weights)
        self.weights = weights
        self.per_layer = switch("per_layer", per_layer)
        self.embeddings = switch("embeddings", embeddings)
        self.input_signature = input_signature
        if input_signature is not None:
            named(input_signature)
        if isinstance(weights, list) and not weights:
            raise ValueError("Expected `weights` to name at least one selector. Received: an empty list.")
        for selector in self._selectors():
            _check_selector(selector)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, with a compiled pattern as its text.

        Raises:
            TypeError: If `weights` contains a layer or a variable, which belong to one model, or if there is
                an `input_signature`, which Keras cannot serialize.
        """
        if self.input_signature is not None:
            raise TypeError(f"Expected a task without `input_signature`, to serialize it. Received: {self!r}")
        selectors = [_written(selector) for selector in self._selectors()]
        weights = selectors if isinstance(self.weights, list) else selectors[0]
        options = {"per_layer": self.per_layer, "embeddings": self.embeddings}
        return {"compression": self.compression, "weights": weights, **options}

    def __repr__(self) -> str:
        shown = [repr(self.compression)]
        if self.weights is not None:
            shown.append(f"weights={', '.join(map(_describe, self._selectors()))}")
        if self.per_layer:
            shown.append("per_layer=True")
        if self.embeddings:
            shown.append("embeddings=True")
        return f"Task({', '.join(shown)})"

    def _selectors(self) -> list[Single]:
        return self.weights if isinstance(self.weights, list) else [self.weights]

    def select(self, model: keras.Model) -> list[keras.Variable]:
        """Find this task's variables in a built model, in model order, each once even if layers share it.

        Raises:
            TypeError: If `model` is not a `keras.Model`.
            ValueError: If the model is not built, or a selector matches nothing that can be trained.
        """
        candidates = _trainable_variables(model, self)
        owners = owners_of(model)
        tables = {id(v) for v in candidates if self.embeddings and is_table(v)}
        kernels = {id(v) for v in candidates if is_kernel(v, owners.get(id(v)))}
        selected = set(tables)
        for selector in self._selectors():
            matched = _matches(selector, candidates, kernels)
            if not matched and not (selector is None and tables):
                raise ValueError(
                    f"{self}: {_describe(selector)} matches no trainable weights of model '{model.name}'"
                    f"{_of_another(selector, model)}. Its trainable weights are:\n{_listing(candidates)}"
                )
            selected |= {id(variable) for variable in matched}
        if self.embeddings and not tables:
            raise ValueError(
                f"{self}: model '{model.name}' has no embeddings that can be trained. Its trainable "
                f"weights are:\n{_listing(candidates)}"
            )
        return [variable for variable in candidates if id(variable) in selected]

    def bind(self, model: keras.Model) -> list[SharedCost]:
        """Find the variables that share a cost in a built model: all of this task's, or those of each layer.

        Raises:
            TypeError: If `model` is not a `keras.Model`.
            ValueError: As in `select`, if the budget is out of range for the weights, or if it is a budget of
                neurons of which none can be removed and `weights` names no layers.
        """
        selected, owners, cost = self.select(model), owners_of(model), self.compression
        parts = _by_layer(selected, owners) if self.per_layer else [selected]
        uses = count_uses(model, self.input_signature).uses if cost.needs_macs else {}
        makers = Makers(model, uses) if cost.needs_units and is_graph(model) else None
        if makers and self.per_layer:
            parts = makers.by_units(parts)
        shared, spared = [], list[str]()
        for variables in parts:
            layouts = [
                Layout(
                    v.shape,
                    output_axes(owners.get(id(v)), v),
                    macs=uses.get(id(v), 0 if is_table(v) else None),
                    bytes=bytes_of(v),
                )
                for v in variables
            ]
            if makers:
                variables, layouts = makers.with_companions(variables, layouts)
                if makers.none_goes and self.weights is None:
                    raise ValueError(
                        f"{self}: Expected a model in which `shrink` can remove neurons. Received: "
                        f"'{model.name}', of which none can be removed: {makers.reasons}. Prune "
                        "single weights instead, as L0Constraint(0.1) does, or name layers in `weights`, "
                        "to have their neurons zeroed all the same."
                    )
            if cost.needs_time:
                layouts = timed(cost.needs_time, model, variables, layouts)
            try:
                cost.check(layouts)
            except ValueError as error:
                why = str(error).rstrip(".")
                raise ValueError(f"{self}: {why}. Its weights are:\n{_listing(variables)}") from error
            pairs = zip(variables, layouts, strict=True)
            spared += [v.path for v, layout in pairs if cost.spares(layout)]
            shared.append(SharedCost(self, variables, layouts))
        held = [v.path for part in parts for v in part if v.constraint is not None]
        if held and cost.has_budget and not (cost.keeps_values or cost.shrinks):
            warn(
                f"{self}: the constraints of {listed(held)} hold in training, not for the weights that ship."
            )
        if spared:
            warn(
                f"{self}: {listed(spared)} will keep more than the pattern says, since the number of inputs "
                "is not a multiple of its length. Name other weights in `weights`, or accept this."
            )
        if makers and (makers.kept_by or makers.none_goes):
            warn(
                f"{self}: some neurons cannot be removed, {_BUDGETS[makers.none_goes]}: "
                f"{makers.reasons}. `shrink_report` lists the layers that neurons cannot pass.",
            )
        if cost.needs_units and not makers:
            warn(
                f"{self}: model '{model.name}' is not a graph of layers, so `shrink` cannot remove its "
                "neurons: they are zeroed and stay.",
            )
        return shared


_BUDGETS = {
    False: "and the budget chooses among the others",
    True: "and the budget is spent on them all the same, since there are no others",
}

Tasks: TypeAlias = Compression | Task | Sequence[Compression | Task]


def as_tasks(tasks: Tasks) -> list[Task]:
    """Return a list of `Task`s from what a user passes: a compression, a task, or a list of these."""
    given = list(tasks) if isinstance(tasks, (list, tuple)) else [cast(Task, tasks)]
    if not given:
        raise ValueError("Expected at least one task. Received: an empty list.")
    return [task if isinstance(task, Task) else Task(task) for task in given]


def bind_tasks(tasks: Sequence[Task], model: keras.Model) -> list[SharedCost]:
    """Find the variables of all tasks in a model.

    Raises:
        TypeError: If `model` is not a `keras.Model`.
        ValueError: As in `Task.bind`, or if two tasks claim the same variable.
    """
    shared: list[SharedCost] = []
    claimed: dict[int, Task] = {}
    for task in tasks:
        for part in task.bind(model):
            for variable in part.variables:
                if id(variable) in claimed:
                    raise ValueError(
                        f"Weight '{variable.path}' belongs to two tasks, {claimed[id(variable)]} "
                        f"and {task}; expected each weight in one task at most. The second "
                        f"task's weights are:\n{_listing(part.variables)}"
                    )
                claimed[id(variable)] = task
            shared.append(part)
    return shared


def _check_selector(selector: Single) -> None:
    is_of_bytes = isinstance(selector, re.Pattern) and isinstance(selector.pattern, bytes)
    if isinstance(selector, str):
        try:
            re.compile(selector)
        except re.error as error:
            raise ValueError(
                f"Expected `weights` to be a regular expression. Received: {selector!r} ({error})"
            ) from error
    elif is_of_bytes or not (
        selector is None
        or isinstance(selector, (re.Pattern, keras.Layer, keras.Variable))
        or (callable(selector) and not isinstance(selector, type))
    ):
        raise TypeError(
            "Expected `weights` to be None, a regular expression, a layer, a variable, a "
            "function of a variable, or a list of these. "
            f"Received: {selector!r} (of type {type(selector).__name__})"
        )


def _matches(selector: Single, candidates: list[keras.Variable], kernels: set[int]) -> list[keras.Variable]:
    if selector is None:
        return [v for v in candidates if id(v) in kernels]
    if isinstance(selector, (str, re.Pattern)):
        return [v for v in candidates if re.search(selector, v.path)]
    if isinstance(selector, keras.Variable):
        return _counterparts([selector], candidates)
    if isinstance(selector, keras.Layer):
        inside = _counterparts(selector.trainable_variables, candidates)
        return [v for v in inside if id(v) in kernels] or [v for v in inside if len(v.shape) >= 2]
    return [v for v in candidates if selector(v)]


def _counterparts(given: list[keras.Variable], candidates: list[keras.Variable]) -> list[keras.Variable]:
    """Return which of the given variables are in a model or, if they are of a copy, those in their place."""
    ids = {id(v) for v in given}
    if own := [v for v in candidates if id(v) in ids]:
        return own
    copies = [v for old in given for v in _in_place_of(old, candidates)]
    return copies if len(copies) == len(given) else []


def _in_place_of(old: keras.Variable, candidates: list[keras.Variable]) -> list[keras.Variable]:
    """Return the variables that a variable of a copy may stand for."""
    alike = [v for v in candidates if old.trainable and old.shape == v.shape]
    # A copy of a layer has lost the names of the models around it.
    return [v for v in alike if v.path == old.path] or [v for v in alike if v.path.endswith(f"/{old.path}")]


def _trainable_variables(model: keras.Model, task: Task) -> list[keras.Variable]:
    variables = keras_model(model).trainable_variables
    if not variables:
        why, advice = "is not built", "call the model on data, or `model.build(input_shape)`, first"
        if model.built:
            why, advice = "has no trainable weights", "set `trainable = True` on the layers to prune"
        raise ValueError(
            f"{task}: model '{model.name}' {why}, expected a built model with trainable weights. "
            f"Found 0 weights; {advice}."
        )
    return variables


def _by_layer(variables: list[keras.Variable], owners: dict[int, keras.Layer]) -> list[list[keras.Variable]]:
    """Return the variables as lists, one for each layer."""
    found: dict[int, list[keras.Variable]] = {}
    for variable in variables:
        found.setdefault(id(owners.get(id(variable), variable)), []).append(variable)
    return list(found.values())


def _written(selector: Single) -> Single:
    if isinstance(selector, (keras.Layer, keras.Variable)):
        raise TypeError(
            "Expected a task whose `weights` are named by regular expressions or functions, to serialize it. "
            f"Received: {_describe(selector)}"
        )
    if isinstance(selector, re.Pattern):
        flags = "".join(letter for letter in "aimsx" if selector.flags & getattr(re, letter.upper()))
        return f"(?{flags}){selector.pattern}" if flags else selector.pattern
    return selector


def _describe(selector: Single) -> str:
    if isinstance(selector, keras.Layer):
        return f"layer '{selector.name}'"
    if isinstance(selector, keras.Variable):
        return f"variable '{selector.path}'"
    if isinstance(selector, re.Pattern):
        return repr(selector.pattern)
    if callable(selector):
        return f"predicate {getattr(selector, '__name__', selector)!s}"
    return "the default selection (kernels)" if selector is None else repr(selector)


def _of_another(selector: Single, model: keras.Model) -> str:
    """Return what to say about a layer or variable that is not the model's own; empty if it is."""
    variables = [selector] if isinstance(selector, keras.Variable) else getattr(selector, "variables", [])
    own = {id(v) for v in model.variables}
    return "" if not variables or any(id(v) in own for v in variables) else ", as it is of another model"


def _listing(variables: Iterable[keras.Variable]) -> str:
    return "\n".join(f"  {v.path} {tuple(v.shape)}" for v in variables)
