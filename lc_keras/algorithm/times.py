"""The time that the kernels of a model take, for costs that count milliseconds."""

from collections.abc import Sequence
from dataclasses import replace

import keras

from lc_keras.costs.layout import Layout
from lc_keras.model.latency import Of, known, names_in


def timed(
    of: Of, model: keras.Model, variables: Sequence[keras.Variable], layouts: Sequence[Layout]
) -> list[Layout]:
    """Return layouts with the time of their weights, as `latency` has fitted it.

    Args:
        of: `"widths"` or `"ranks"`.
        model: `keras.Model`.
        variables: Sequence of `keras.Variable`, which share a cost.
        layouts: Sequence of `Layout`, one for each variable.

    Raises:
        ValueError: If the time of widths is not known.
    """
    return (_at_widths if of == "widths" else _by_rank)(model, variables, layouts)


def _at_widths(
    model: keras.Model, variables: Sequence[keras.Variable], layouts: Sequence[Layout]
) -> list[Layout]:
    """Return layouts with the time of their weights, the first one also with that of everything else."""
    latency = known(model, "widths")
    if latency is None or any(layout.units is None for layout in layouts):
        raise ValueError(
            "Expected, for a budget in milliseconds, a Functional or Sequential model whose time "
            f"`lc_keras.latency(model)` has fitted. Received: '{model.name}'"
        )
    names = names_in(model)
    pairs = [latency.kernels.get(names.get(id(v), ""), (0.0, 0.0)) for v in variables]
    rest = latency.milliseconds - sum(map(sum, pairs))
    times = [(1e6 * both, 1e6 * own, 0.0) for both, own in pairs]
    times[0] = (*times[0][:2], 1e6 * max(rest, 0.0))
    return [replace(layout, nanoseconds=time) for layout, time in zip(layouts, times, strict=True)]


def _by_rank(
    model: keras.Model, variables: Sequence[keras.Variable], layouts: Sequence[Layout]
) -> list[Layout]:
    """Return layouts with the time of their layers by the ranks of their kernels."""
    latency = known(model, "ranks")
    if latency is None:
        return list(layouts)
    names = names_in(model)
    times = [latency.kernels.get(names.get(id(v), ""), (0.0,)) for v in variables]
    by_rank = [
        tuple((whole, two, each) for two, each in zip(ways[::2], ways[1::2], strict=True))
        for whole, *ways in times
    ]
    return [replace(layout, by_rank=ways) for layout, ways in zip(layouts, by_rank, strict=True)]
