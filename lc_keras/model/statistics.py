"""Estimate what training updates besides weights, such as the statistics of batch normalisation."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lc_keras.arguments import keras_model, whole
from lc_keras.internals.keras import global_seed, layers_in, replaced, states_of
from lc_keras.internals.tensorflow import compiled
from lc_keras.model.train_steps import TrainStep, inputs_of

BATCHES = 20

_MOVING = ("moving_mean", "moving_variance", "moving_stddev")


def estimate_statistics(model: keras.Model, data: Iterable[Any], batches: int = BATCHES) -> int:
    r"""Estimate the statistics of batch normalisation anew, for a model's current weights.

    Each moving mean and variance becomes the plain mean over the batches,

    $$\bar m = \frac{1}{K} \sum_{k=1}^{K} m_k,$$

    of the statistics that training takes from them (Izmailov et al., Averaging Weights Leads to Wider Optima
    and Better Generalization, UAI 2018, section 3.2). No weight changes, and frozen layers stay as they are.
    Layers of other kinds that training updates, such as `SpectralNormalization`, see the batches as in
    training and keep the resulting values. Everything else is left as it was: random seeds, counters,
    metrics, the states of RNNs.

    Use it after weights were changed without training, as by `lc_keras.baselines.compress_directly` or by
    averaging, and after `fit` on a Python generator or a `PyDataset`. Under a `tf.distribute` strategy, each
    batch is divided among the replicas of this process; with several workers, each needs data of the same
    length.

    Args:
        model: Built `keras.Model`.
        data: `tf.data.Dataset`, `keras.utils.PyDataset`, or another iterable of batches as `fit` takes them:
            inputs, or a tuple of inputs, targets and weights. The batches should be as in training, in random
            order. The model itself is called on the inputs: if a `train_step` changes them first, pass them
            as changed.
        batches: Int ≥ 1, default 20: the largest number of batches to use.

    Returns:
        Int, the number of batches used; 0 if the model has no such layer, in which case nothing was run.

    Raises:
        TypeError: If `model` is not a Keras model, `data` is not an iterable of batches, or `batches` is not
            a number.
        ValueError: If the model is not built, `batches` is out of range, there is no batch, or the result has
            NaN or infinite values. The statistics are then left as they were.

    Example:

    ```python
    lc_keras.estimate_statistics(model, train)
    ```
    """
    if not keras_model(model).built:
        raise ValueError("Expected a model that is built. Received: one that has no weights yet.")
    count, given = whole("batches", batches), _batches_of(data)
    estimator = Estimator(model)
    return estimator.estimate((part for b in given for part in _split(b, estimator.replicas)), count)


class Estimator:
    """Estimate the statistics of one model as often as needed; its passes are traced once.

    Args:
        model: Built `keras.Model`.
        by_train_step: Bool, default `False`. `True`: the model is called on what its `train_step` calls it
            on; see `TrainStep`.

    Attributes:
        variables: List of `keras.Variable`, those that training updates besides the weights; may be empty.
        replicas: Int, the number of replicas in this process.
    """

    def __init__(self, model: keras.Model, by_train_step: bool = False) -> None:
        self._model = model
        self._train_step = TrainStep(model) if by_train_step else None
        self._restored: Sequence[keras.Variable] = ()
        strategy = model.distribute_strategy
        several = strategy.num_replicas_in_sync > 1
        self.replicas = len(strategy.extended.worker_devices) if several else 1
        layers = [layer for layer in layers_in(model) if layer.trainable and layer.built]
        self.variables = list({id(v): v for layer in layers for v in _moved_in(layer)}.values())
        with strategy.scope():
            normalized = keras.layers.BatchNormalization
            self._means = [_Means(layer) for layer in layers if isinstance(layer, normalized)]
        self._step = self._pass if model.run_eagerly else compiled(self._pass, reduce_retracing=True)

    def estimate(self, data: Iterable[Any], batches: int) -> int:
        """Estimate the statistics, and return the number of batches used; errors as in `estimate_statistics`.

        Args:
            data: Iterable of what one replica takes at a time: inputs, or a tuple that begins with them. The
                replicas take turns. A rest that is too small for all replicas is not used, as some would get
                none.
            batches: Int, the largest number of batches to use; each consists of one for each replica.
        """
        if not self.variables:
            return 0
        # A tensor that was read from a variable shares its memory until the variable is assigned to.
        before = _values(self.variables)
        moved = {id(v) for v in self.variables}
        with self._model.distribute_strategy.scope():
            others = [*self._model.variables, *self._model.metrics_variables, global_seed()]
        others = [v for v in others if id(v) not in moved]
        kept, self._restored = _values(others), [*self.variables, *others]
        used = 0
        try:
            for means in self._means:
                means.begin()
            for batch in itertools.islice(self._shared(data), batches):
                self._step(batch)
                used += 1
            if not used:
                raise ValueError(
                    "Expected data to estimate statistics on. Received: no batch with an example for each "
                    f"of {self.replicas} replica(s)."
                )
            for means in self._means:
                means.end()
            bad = [v.path for v in self.variables if not np.all(np.isfinite(keras.ops.convert_to_numpy(v)))]
            if bad:
                raise ValueError(
                    "Expected statistics that are finite. Received: NaN or infinite values in "
                    f"{', '.join(bad)}. They are as they were."
                )
        except BaseException:
            _assign(self.variables, before)
            raise
        finally:
            _assign(others, kept)
        return used

    def _shared(self, data: Iterable[Any]) -> Iterator[Any]:
        """Yield what `_forward` takes, with one value for each replica if there are several."""
        parts = (_tensors(batch if self._train_step else inputs_of(batch)) for batch in data)
        while len(group := list(itertools.islice(parts, self.replicas))) == self.replicas:
            if all(map(_examples, group)):
                yield self._distributed(group)

    def _distributed(self, group: Sequence[Any]) -> Any:
        if self._model.distribute_strategy.num_replicas_in_sync == 1:
            return group[0]
        return self._model.distribute_strategy.experimental_distribute_values_from_function(
            lambda context: group[context.replica_id_in_sync_group % self.replicas]
        )

    def _pass(self, batch: Any) -> None:
        # Around all replicas, whose traces take turns.
        with replaced(method for means in self._means for method in means.instead()):
            self._model.distribute_strategy.run(self._forward, (batch,))

    def _forward(self, batch: Any) -> None:
        inputs = self._train_step.inputs(batch, self._restored) if self._train_step else batch
        self._model(inputs, training=True)


class _Means:
    """Average what one batch normalisation takes from each batch, over all of its calls."""

    def __init__(self, layer: keras.layers.BatchNormalization) -> None:
        self._layer = layer
        self._variables = [getattr(layer, name) for name in _MOVING if hasattr(layer, name)]
        self._sums = [_zeros(v.shape, v.value.dtype) for v in self._variables]
        self._calls = _zeros((), tf.float32)

    def begin(self) -> None:
        """Forget earlier batches."""
        for variable, total in zip(self._variables, self._sums, strict=True):
            # The layer multiplies them by zero, which leaves NaN as it is.
            value = tf.convert_to_tensor(variable)
            variable.assign(tf.where(tf.math.is_finite(value), value, tf.zeros_like(value)))
            total.assign(tf.zeros_like(total))
        self._calls.assign(0.0)

    def instead(self) -> Iterator[tuple[keras.Layer, str, Any]]:
        """Yield what to replace in the layer during a pass; see `lc_keras.internals.keras.replaced`."""
        call = self._layer.call

        def counted(*args: Any, **options: Any) -> Any:
            outputs = call(*args, **options)
            if options.get("training", True):
                self._add()
            return outputs

        yield self._layer, "call", counted
        # The moving statistics are then those of the latest batch.
        yield self._layer, "momentum", 0.0

    def end(self) -> None:
        """Replace the layer's statistics by the means, if the layer was called."""
        calls = float(self._calls.numpy())
        for variable, total in zip(self._variables, self._sums, strict=True):
            if calls:
                variable.assign(tf.cast(total / calls, variable.value.dtype))

    def _add(self) -> None:
        for variable, total in zip(self._variables, self._sums, strict=True):
            total.assign_add(tf.cast(tf.convert_to_tensor(variable), total.dtype))
        self._calls.assign_add(1.0)


def _moved_in(layer: keras.Layer) -> list[keras.Variable]:
    """Return what training may update in a layer, besides its weights."""
    if isinstance(layer, keras.layers.Normalization):
        return []
    # States that are carried over from the batch before, as with `stateful=True`.
    carried = {id(v) for v in tf.nest.flatten(layer.states)} if isinstance(layer, keras.layers.RNN) else ()
    return [v for v in states_of(layer) if v.value.dtype.is_floating and id(v) not in carried]


def _zeros(shape: Sequence[int], dtype: tf.DType) -> tf.Variable:
    wide = dtype if dtype == tf.float64 else tf.float32
    # As Keras aggregates moving statistics of several replicas.
    mean = tf.VariableAggregation.MEAN
    return tf.Variable(tf.zeros(shape, wide), trainable=False, aggregation=mean)


def _batches_of(data: Any) -> Iterable[Any]:
    if isinstance(data, keras.utils.PyDataset):
        # Of endless data, there is no number.
        numbers = itertools.count() if data.num_batches is None else range(data.num_batches)
        return (data[i] for i in numbers)
    single = isinstance(data, (tuple, dict, str, bytes, np.ndarray)) or tf.is_tensor(data)
    if single or isinstance(data, tf.distribute.DistributedDataset) or not isinstance(data, Iterable):
        raise TypeError(
            "Expected `data` to be a tf.data.Dataset, or another iterable of batches, as [(x, y)] is of one. "
            f"Received: data of type {type(data).__name__}"
        )
    return data


def _tensors(values: Any) -> Any:
    def tensor(value: Any) -> Any:
        return value if value is None or tf.is_tensor(value) else tf.convert_to_tensor(value)

    return tf.nest.map_structure(tensor, values)


def _split(batch: Any, parts: int) -> Iterator[Any]:
    """Yield a batch, or the inputs of equal parts of it."""
    if parts == 1:
        yield batch
        return
    inputs = _tensors(inputs_of(batch))
    bounds = [_examples(inputs) * i // parts for i in range(parts + 1)]
    for begin, end in itertools.pairwise(bounds):
        yield (tf.nest.map_structure(lambda v, begin=begin, end=end: v[begin:end], inputs),)


def _examples(inputs: Any) -> int:
    return int(tf.nest.flatten(inputs)[0].shape[0])


def _values(variables: Sequence[keras.Variable]) -> list[tf.Tensor]:
    return [tf.convert_to_tensor(v) for v in variables]


def _assign(variables: Sequence[keras.Variable], values: Sequence[tf.Tensor]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
