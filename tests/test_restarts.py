"""The checkpoints of one worker among several."""

from types import SimpleNamespace

import pytest

from lc_keras.checkpoints import Checkpoints
from lc_keras.restarts import Restarts


@pytest.mark.parametrize("writes", [True, False])
def test_of_several_workers_one_writes_and_deletes(tmp_path, writes):
    extended = SimpleNamespace(should_checkpoint=writes)
    model = SimpleNamespace(distribute_strategy=SimpleNamespace(extended=extended))
    state = SimpleNamespace(description=dict, tensors=dict)
    restarts = Restarts(Checkpoints(tmp_path / "run"), state, model)
    restarts.save(3, {}, {})
    assert (tmp_path / "run").exists() == writes
    Checkpoints(tmp_path / "run").save(4, {}, {})
    restarts.delete()
    assert (tmp_path / "run").exists() != writes
