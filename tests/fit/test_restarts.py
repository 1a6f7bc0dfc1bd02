"""Who writes checkpoints, and who says where a run begins."""

from types import SimpleNamespace

import pytest

from lc_keras.fit.checkpoints import Checkpoints
from lc_keras.fit.restarts import FirstEpoch, Restarts


@pytest.mark.parametrize("writes", [True, False])
def test_of_several_workers_one_writes_and_deletes(tmp_path, writes):
    extended = SimpleNamespace(should_checkpoint=writes)
    model = SimpleNamespace(distribute_strategy=SimpleNamespace(extended=extended))
    run = SimpleNamespace(facts=dict, state=lambda: SimpleNamespace(tensors=dict))
    restarts = Restarts(Checkpoints(tmp_path / "run"), run, model)
    restarts.save(3)
    assert (tmp_path / "run").exists() == writes
    Checkpoints(tmp_path / "run").save(4, {}, {})
    restarts.delete()
    assert (tmp_path / "run").exists() != writes


def test_nobody_else_takes_the_model_to_an_epoch():
    model = SimpleNamespace(_initial_epoch=7)
    first = FirstEpoch(model)
    assert model._initial_epoch is None and not first.is_set
    first.set(3)
    first.check()
    assert model._initial_epoch == 3 and first.is_set
    # The same number, but not the one that was set: with it come weights.
    for epoch in (3, 4, None):
        model._initial_epoch = epoch
        with pytest.raises(ValueError, match=f"has taken to epoch {epoch}"):
            first.check()
    first.clear()
    first.check()
