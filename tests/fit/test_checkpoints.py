import contextlib
import re
import warnings

import numpy as np
import pytest
import tensorflow as tf

from lc_keras.fit import checkpoints
from lc_keras.fit.checkpoints import Checkpoints

TENSORS = {
    "float": tf.constant([[1.5, -2.0], [np.inf, 0.0]]),
    "bfloat16": tf.constant([1.0, 3.0], tf.bfloat16),
    "seed": tf.constant([7, 2**32 - 1], tf.uint32),
    "flag": tf.constant(True),
}
FACTS = {"place": {"mu": 0.1, "gap": float("nan"), "step": 3}}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_read(tmp_path):
    Checkpoints(tmp_path / "new" / "folder").save(3, FACTS, TENSORS)
    saved = Checkpoints(str(tmp_path / "new" / "folder")).latest()
    assert saved.epoch == 3
    assert repr(saved.facts["place"]) == repr(FACTS["place"])
    for name, tensor in TENSORS.items():
        value = saved.read(name)
        assert value.dtype == tensor.dtype.as_numpy_dtype
        np.testing.assert_array_equal(value, tensor.numpy())


def test_nothing_saved(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        assert Checkpoints(folder).latest() is None
        Checkpoints(folder).delete()


def test_the_last_two_are_kept_and_other_files_left_alone(tmp_path):
    (tmp_path / "epoch-notes.txt").write_text("mine")
    kept = Checkpoints(tmp_path)
    for epoch in (1, 2, 3):
        kept.save(epoch, FACTS, TENSORS)
    index = [name for name in names(tmp_path) if name.endswith(".index")]
    assert index == ["epoch-000002.index", "epoch-000003.index"]
    assert len(names(tmp_path)) == 5
    kept.delete()
    assert names(tmp_path) == ["epoch-notes.txt"]
    (tmp_path / "epoch-notes.txt").unlink()
    kept.delete()
    assert not tmp_path.exists()


def test_a_name_of_more_digits(tmp_path):
    kept = Checkpoints(tmp_path)
    kept.save(999_999, FACTS, TENSORS)
    kept.save(1_000_000, FACTS, TENSORS)
    assert kept.latest().epoch == 1_000_000


@pytest.mark.parametrize("end", [".index", ".data-00000-of-00001"])
def test_every_damage_falls_back_to_the_one_before(tmp_path, end):
    kept = Checkpoints(tmp_path)
    kept.save(1, {"place": 1}, {"v": tf.constant([1.0, 2.0])})
    kept.save(2, {"place": 2}, {"v": tf.constant([3.0, 4.0])})
    path = tmp_path / f"epoch-000002{end}"
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(len(whole))]
    damaged += [whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :] for i in range(len(whole))]
    unnoticed = 0
    for content in damaged:
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            saved = Checkpoints(tmp_path).latest()
        if caught:
            assert re.search("'.*epoch-000002' is damaged", str(caught[0].message))
            assert (saved.epoch, saved.facts["place"], saved.read("v").tolist()) == (1, 1, [1.0, 2.0])
        else:
            # A byte that nothing reads.
            assert len(content) == len(whole)
            assert (saved.epoch, saved.facts["place"], saved.read("v").tolist()) == (2, 2, [3.0, 4.0])
            unnoticed += 1
    assert unnoticed < len(whole) / 2


def test_files_that_are_missing(tmp_path):
    kept = Checkpoints(tmp_path)
    for epoch in (1, 2):
        kept.save(epoch, FACTS, TENSORS)
    (tmp_path / "epoch-000002.data-00000-of-00001").unlink()
    with pytest.warns(UserWarning, match="epoch-000002' is damaged"):
        assert Checkpoints(tmp_path).latest().epoch == 1
    (tmp_path / "epoch-000002.index").unlink()
    (tmp_path / "epoch-000001.index").unlink()
    assert Checkpoints(tmp_path).latest() is None


def test_a_checkpoint_after_a_damaged_one_removes_it(tmp_path):
    kept = Checkpoints(tmp_path)
    for epoch in (1, 2):
        kept.save(epoch, FACTS, TENSORS)
    (tmp_path / "epoch-000002.index").write_bytes(b"")
    (tmp_path / "epoch-000002.data-00000-of-00001.tempstate123").write_bytes(b"left by a kill")
    again = Checkpoints(tmp_path)
    with pytest.warns(UserWarning, match="damaged"):
        again.latest()
    again.save(2, {"place": "again"}, TENSORS)
    index = [name for name in names(tmp_path) if name.endswith(".index")]
    assert index == ["epoch-000001.index", "epoch-000002.index"]
    assert not any("tempstate" in name for name in names(tmp_path))
    assert Checkpoints(tmp_path).latest().facts["place"] == "again"


@pytest.mark.parametrize("after", range(6))
def test_removal_that_is_cut_off_leaves_what_is_whole(tmp_path, monkeypatch, after):
    kept = Checkpoints(tmp_path)
    for epoch in (1, 2):
        kept.save(epoch, FACTS, TENSORS)
    left = iter(range(after))

    def remove(path, remove=tf.io.gfile.remove):
        if next(left, None) is None:
            raise KeyboardInterrupt
        remove(path)

    monkeypatch.setattr(tf.io.gfile, "remove", remove)
    with contextlib.suppress(KeyboardInterrupt):
        kept.delete()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved = Checkpoints(tmp_path).latest()
    assert (saved and saved.epoch) == (2 if after < 3 else None)


def test_another_format_is_refused(tmp_path, monkeypatch):
    Checkpoints(tmp_path).save(1, FACTS, TENSORS)
    written, other = checkpoints._FORMAT, checkpoints._FORMAT + 1
    monkeypatch.setattr(checkpoints, "_FORMAT", other)
    with pytest.raises(ValueError, match=f"format {other}. Received: format {written}, in '.*epoch-000001'"):
        Checkpoints(tmp_path).latest()


def test_directories_that_are_none(tmp_path):
    (tmp_path / "file").write_text("")
    for path in ("", tmp_path / "file"):
        with pytest.raises(ValueError, match="`checkpoint_dir` to be a directory"):
            Checkpoints(path)
    for path in (3, None, True):
        with pytest.raises(TypeError, match="`checkpoint_dir` to be a path"):
            Checkpoints(path)
