"""Costs that are trained in different ways, in one run."""

import keras
import numpy as np

from lc_keras.algorithm.beside import Reach
from lc_keras.algorithm.carrying import CarryingLagrangian
from lc_keras.algorithm.reaching import ReachingLagrangian
from lc_keras.algorithm.tasks import Task, bind_tasks
from lc_keras.algorithm.together import TogetherLagrangian
from lc_keras.costs import Codebook, L0Constraint, LowRank

KINDS = ReachingLagrangian, ReachingLagrangian, CarryingLagrangian
REACHES = [Reach(0.1, 0.5, 0.3, frees=True), Reach(0.2, puts=True), Reach(0.9, 2.0, least=0.5)]


def net():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(units) for units in (8, 7, 6)]
    model = keras.Sequential([keras.Input((9,)), *layers])
    costs = L0Constraint(20), LowRank(2), Codebook(2)
    shared = [bind_tasks([Task(c, weights=layer)], model) for c, layer in zip(costs, layers, strict=True)]
    return model, [kind(part) for kind, part in zip(KINDS, shared, strict=True)]


def arrays(parts):
    variables = (v for part in parts for group in (part.variables, part.thetas, part.targets) for v in group)
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def test_each_part_does_what_it_does_alone():
    (model, parts), (_, alone) = net(), net()
    together = TogetherLagrangian(parts)
    assert together.size == 72 + 56 + 42 and together.variables == [layer.kernel for layer in model.layers]
    together.direct_compression(1.0, REACHES)
    for part, reach in zip(alone, REACHES, strict=True):
        part.direct_compression(1.0, reach)
    for _ in range(2):
        for part in (*parts, *alone):
            for variable in part.variables:
                variable.assign(0.9 * variable + 0.01)
        found = together.c_step(1.0, 1.0, REACHES)
        assert found.finite.shape == (3,) and found.gap == -1 and together.is_loose
        for part, reach in zip(alone, REACHES, strict=True):
            part.c_step(1.0, 1.0, reach)
        for one, other in zip(arrays(parts), arrays(alone), strict=True):
            np.testing.assert_array_equal(one, other)
    found = together.project()
    assert np.count_nonzero(parts[0].thetas[0]) == 20 and found.gap > 0
    away, whole = (
        sum(np.sum(np.square(x)) for x in values)
        for values in (
            [w.numpy() - t.numpy() for w, t in zip(together.variables, together.thetas, strict=True)],
            [w.numpy() for w in together.variables],
        )
    )
    np.testing.assert_allclose(found.gap, np.sqrt(away / whole), rtol=1e-5)


def test_no_part_changes_where_one_is_not_finite():
    model, parts = net()
    together = TogetherLagrangian(parts)
    together.direct_compression(1.0, REACHES)
    model.layers[0].kernel.assign(np.full((9, 8), np.nan))
    model.layers[2].kernel.assign(np.ones((7, 6)))
    before = arrays(parts)
    found = together.c_step(1.0, 2.0, REACHES)
    assert found.finite.numpy().tolist() == [False, True, True] and found.gap == -1
    for one, two in zip(before, arrays(parts), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_model_shows_all_parts_and_gets_its_weights_back():
    model, parts = net()
    together = TogetherLagrangian(parts)
    together.direct_compression(1.0, Reach(1.0))
    trained = model.get_weights()
    together.show_compressed()
    kernels = [layer.kernel.numpy() for layer in model.layers]
    assert np.count_nonzero(kernels[0]) == 20 and len(np.unique(kernels[2])) == 2
    assert np.linalg.matrix_rank(kernels[1], tol=1e-4) == 2 and not together.is_replaced()
    state = together.state()
    together.load(state)
    together.show_training()
    for one, other in zip(model.get_weights(), trained, strict=True):
        np.testing.assert_array_equal(one, other)
    model.layers[1].kernel.assign(np.full((8, 7), np.nan))
    assert together.not_finite(together.c_step(1.0, 1.0, REACHES)) == [model.layers[1].kernel.path]
    together.release()
    assert {tuple(target.shape) for target in together.targets} and all(
        np.size(target.numpy()) == 1 for target in together.targets
    )


def test_its_variables_have_names_of_their_own():
    saved = TogetherLagrangian(net()[1]).saved()
    assert len(saved) == 9 and sum(map(len, saved.values())) == 9
