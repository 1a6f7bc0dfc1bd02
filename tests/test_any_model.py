"""Models of kinds that nobody tuned for survive a compression intact."""

import keras
import numpy as np
import pytest

from benchmarks.robustness import any_model, kinds
from benchmarks.robustness.reload import Reloader
from lc_keras import L0Constraint, L1Penalty, LCPenalty, LearningCompression, Task, report

SGD = keras.optimizers.SGD


@pytest.fixture(scope="module")
def reloader():
    """A process without lc_keras, for all tests."""
    with Reloader() as process:
        yield process


# These are like others in the list, or are in a tiny pass of `any_model`.
SLOW = {
    *(kinds.nested_three_deep, kinds.shared_weights, kinds.lora_alone, kinds.lstm_tagger),
    *(kinds.u_net, kinds.transformer, kinds.gan),
}
KINDS = [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in kinds.KINDS]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_kind(kind, reloader, tmp_path):
    any_model.survives(kind(), reloader, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetB0"])
def test_an_application(name, reloader, tmp_path):
    any_model.survives(any_model.application(any_model.builders()[name]), reloader, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BertTextClassifier", "GPT2CausalLM", "ResNetImageClassifier"])
def test_a_model_of_keras_hub(name, reloader, tmp_path):
    pytest.importorskip("keras_hub")
    kind = any_model.models()[name]()
    any_model.survives(kind, reloader, tmp_path)
    assert any_model.serves(kind, reloader, tmp_path)["shrunk"] <= 1


# What the checks themselves are worth.


def test_what_is_left_on_a_model_is_found():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dense(2)])
    assert not any_model.left_over(model)
    penalty = LCPenalty(np.zeros((3, 2)))
    first = model.layers[0]
    first.kernel.regularizer = penalty
    assert any("regularizer" in way for way in any_model.left_over(model))
    first.kernel.regularizer = None
    model.hook = lambda: penalty
    assert any("closure" in way for way in any_model.left_over(model))
    del model.hook
    first.notes = {"of": [penalty.get_config]}
    assert any("notes.of.0" in way for way in any_model.left_over(model))


def test_a_model_that_needs_the_package_is_not_reloaded(reloader, tmp_path):
    layer = keras.layers.Dense(2, kernel_regularizer=LCPenalty(np.zeros((3, 2))))
    model = keras.Sequential([keras.Input((3,)), layer])
    with pytest.raises(RuntimeError, match="not reloaded"):
        reloader.difference(model, np.ones((1, 3), "float32"), tmp_path)


# Two nets with an optimizer each.


def gan(*losses, **options):
    kind = kinds.gan(*losses)
    rates = {"generator_optimizer": SGD(0.01), "discriminator_optimizer": SGD(0.01)}
    kind.model.compile(**rates | options)
    return kind.model, kind.x


def fit(model, x, task, **options):
    """Two epochs of two batches; returns the logs of each batch."""
    compress = LearningCompression(task, **({"mu": [1.0, 10.0], "epochs_per_step": 1} | options))
    history = []
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: history.append(logs))
    model.fit(x, batch_size=4, epochs=2, callbacks=[compress, note], verbose=0)
    return history


def of_all(model):
    return model.losses


def of_none(model):
    return []


BOTH = L0Constraint(0.3)


def kernels(*nets):
    return [v for net in nets for v in net.trainable_weights if v.name == "kernel"]


def kept(*nets):
    weights = [v.numpy() for v in kernels(*nets)]
    return sum(map(np.count_nonzero, weights)), int(0.3 * sum(w.size for w in weights))


def test_a_gan_that_adds_all_its_losses_is_compressed_whole():
    model, x = gan(of_all, of_all)
    fit(model, x, BOTH)
    found, budget = kept(model.generator, model.discriminator)
    assert found == budget == report(model).kept


@pytest.mark.parametrize(
    "losses, compressed, named, eager",
    [
        ((of_none, of_none), "generator", "generator/dense.* and 2 more", False),
        ((of_none, of_none), "generator", "generator/dense.* and 2 more", True),
        # In a loss, but not in the one whose gradient trains these weights.
        ((of_all, of_none), None, "discriminator/conv2d.* and 1 more", False),
        pytest.param(
            (of_none, of_all), "generator", "generator/dense.* and 2 more", False, marks=pytest.mark.slow
        ),
    ],
    ids=["none", "none, eagerly", "one net", "the other net"],
)
def test_a_net_without_the_pull_is_an_error_that_names_it(losses, compressed, named, eager):
    model, x = gan(*losses)
    # `compile` of this model takes optimizers only.
    model.run_eagerly = eager
    task = Task(BOTH, weights=compressed and getattr(model, compressed))
    message = f"leaves out `model.losses`.* for .*{named}. Expected a `train_step`"
    with pytest.raises(ValueError, match=message):
        fit(model, x, task)
    assert not any_model.left_over(model) and all(np.all(v) for v in kernels(model.generator))


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_weights_that_no_gradient_reaches_are_pruned_as_they_are():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    hidden = keras.layers.Dense(12, "relu")(inputs)
    # As the pooled output of an encoder, of which a model uses the sequence alone.
    encoder = keras.Model(inputs, {"sequence": hidden, "pooled": keras.layers.Dense(6, name="pool")(hidden)})
    model = keras.Model(inputs, keras.layers.Dense(3)(encoder(inputs)["sequence"]))
    kernel = encoder.get_layer("pool").kernel
    before, x = kernel.numpy(), np.random.default_rng(0).normal(size=(320, 8))
    model.compile("adam", "mse")
    model.fit(x, x[:, :3], batch_size=8, epochs=3, verbose=0, callbacks=[LearningCompression(BOTH)])
    found, budget = kept(model)
    assert found == budget
    after = kernel.numpy()
    assert 0 < np.count_nonzero(after) < after.size
    np.testing.assert_array_equal(after[after != 0], before[after != 0])


def test_only_the_optimizer_of_the_compressed_net_is_limited():
    def first_losses(mu):
        keras.utils.set_random_seed(0)
        model, x = gan(of_all, generator_optimizer=SGD(0.1))
        logs = fit(model, x, Task(BOTH, weights=model.generator), mu=[mu, 2 * mu])
        assert float(model.generator_optimizer.learning_rate) == np.float32(0.1)
        return [batch["d_loss"] for batch in logs], model

    # At 0.1 the pull alone would send the generator's weights to infinity.
    losses, model = first_losses(1e6)
    assert all(np.abs(v.numpy()).max() < 10 for v in model.generator.trainable_weights)
    assert losses[1] != losses[0] and np.isfinite(losses).all()


def test_mu_comes_from_the_optimizer_of_the_compressed_net():
    def last_mu(rate):
        keras.utils.set_random_seed(0)
        model, x = gan(of_all, generator_optimizer=SGD(rate), discriminator_optimizer=SGD(1e-4))
        task = Task(L1Penalty(1e-4), weights=model.generator)
        return fit(model, x, task, mu="auto", epochs_per_step=0.5)[-1]["mu"]

    assert last_mu(0.01) == pytest.approx(4 * last_mu(0.04), rel=0.3)
