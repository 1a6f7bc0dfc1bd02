import json
import os
import resource
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from lc_keras.export import export_saved_model
from lc_keras.export.directories import appearing, check_free, version_directory


def net():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_directory_appears_when_it_is_complete(tmp_path):
    with appearing(str(tmp_path / "1"), overwrite=False) as unfinished:
        assert os.path.isdir(unfinished) and not (tmp_path / "1").exists()
        # A model server takes names that are numbers for versions.
        assert os.path.dirname(unfinished) == str(tmp_path) and not os.path.basename(unfinished).isdigit()
        (tmp_path / unfinished / "file").write_text("new")
    assert names(tmp_path) == ["1"] and (tmp_path / "1" / "file").read_text() == "new"


def test_nothing_appears_when_writing_fails(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), appearing(str(tmp_path / "1"), overwrite=True) as unfinished:
        (tmp_path / unfinished / "file").write_text("new")
        raise KeyboardInterrupt
    assert names(tmp_path) == ["1"] and (tmp_path / "1" / "file").read_text() == "old"


def test_what_was_replaced_comes_back_when_renaming_fails(tmp_path, monkeypatch):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "file").write_text("old")
    rename = tf.io.gfile.rename

    def fails(source, target, overwrite=False):
        if "unfinished" in source:
            raise OSError("no")
        rename(source, target, overwrite)

    monkeypatch.setattr(tf.io.gfile, "rename", fails)
    with pytest.raises(OSError, match="no"), appearing(str(tmp_path / "1"), overwrite=True):
        pass
    assert names(tmp_path) == ["1"] and (tmp_path / "1" / "file").read_text() == "old"


def test_a_directory_that_another_process_wrote_stays(tmp_path):
    with (
        pytest.raises(tf.errors.FailedPreconditionError),
        appearing(str(tmp_path / "1"), overwrite=False),
    ):
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "file").write_text("theirs")
    assert names(tmp_path) == ["1"] and (tmp_path / "1" / "file").read_text() == "theirs"


def test_what_was_made_for_it_goes_when_writing_fails(tmp_path):
    path = tmp_path / "new" / "base" / "1"
    with pytest.raises(OSError, match="full"), appearing(str(path), overwrite=False):
        raise OSError("full")
    assert names(tmp_path) == []
    with pytest.raises(OSError, match="full"), appearing(str(path), overwrite=False):
        (tmp_path / "new" / "theirs").write_text("another process's")
        raise OSError("full")
    assert names(tmp_path / "new") == ["theirs"]


def test_versions(tmp_path):
    base = str(tmp_path)
    assert version_directory(base, None) == base
    assert version_directory(base, "next") == f"{base}/1"
    assert version_directory(base, 7) == version_directory(base, np.int64(7)) == f"{base}/7"
    for name in ("2", "10", "10.unfinished-0", "notes", "²"):
        (tmp_path / name).mkdir()
    assert version_directory(base, None) == version_directory(base, "next") == f"{base}/11"
    assert version_directory(f"{base}/3", None) == f"{base}/3"
    assert version_directory("new", None) == "new" and version_directory("new", "next") == "new/1"
    for wrong in (True, 1.0, "newest"):
        with pytest.raises(TypeError, match="Expected `version`"):
            version_directory(base, wrong)
    with pytest.raises(ValueError, match="not end as the files of Keras do"):
        check_free(str(tmp_path / "net.keras"), overwrite=False)
    with pytest.raises(ValueError, match="the name of a LiteRT file"):
        check_free(str(tmp_path / "net.tflite"), overwrite=False)
    with pytest.raises(ValueError, match="at least 0"):
        version_directory(base, -1)
    (tmp_path / "2" / "saved_model.pb").touch()
    for version in ('"next"', "3"):
        with pytest.raises(ValueError, match=f"base directory for version={version}.*, a SavedModel itself"):
            version_directory(f"{base}/2", json.loads(version))


def test_free(tmp_path):
    check_free(str(tmp_path / "new" / "1"), overwrite=False)
    (tmp_path / "empty").mkdir()
    check_free(str(tmp_path / "empty"), overwrite=False)
    check_free("relative/path", overwrite=False)
    check_free("what?/*", overwrite=False)
    # TensorFlow would not find what it wrote there.
    for path, found in (("net[v2]/1", r"\[ and \]"), ("a\\b", r"\\")):
        with pytest.raises(ValueError, match=f"Expected `path` without {found}, which .* pattern"):
            check_free(path, overwrite=False)


def test_each_export_to_a_base_directory_is_a_new_version(tmp_path):
    model = net()
    assert export_saved_model(model, tmp_path / "net", version="next").path == str(tmp_path / "net" / "1")
    assert export_saved_model(model, tmp_path / "net").path == str(tmp_path / "net" / "2")
    assert export_saved_model(model, tmp_path / "net", version=9).path == str(tmp_path / "net" / "9")
    with pytest.raises(ValueError, match="overwrite=True"):
        export_saved_model(model, tmp_path / "net", version=9)
    export_saved_model(model, tmp_path / "net", version=9, overwrite=True)
    assert names(tmp_path / "net") == ["1", "2", "9"]


def test_a_link_that_leads_nowhere_is_replaced(tmp_path):
    (tmp_path / "1").symlink_to(tmp_path / "nowhere")
    with appearing(str(tmp_path / "1"), overwrite=True) as unfinished:
        (tmp_path / unfinished / "file").write_text("new")
    assert names(tmp_path) == ["1"] and names(tmp_path / "1") == ["file"]


EXPORT = textwrap.dedent(
    """
    import os, signal, sys
    import keras
    import tensorflow as tf
    import lc_keras

    path = sys.argv[1]
    model = keras.Sequential([keras.Input((400,)), keras.layers.Dense(500)])
    save = tf.saved_model.save

    def killed(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def half_written(*args, **options):
        save(*args, **options)
        os.remove(os.path.join(args[1], "saved_model.pb"))
        killed()

    tf.saved_model.save = half_written
    lc_keras.export_saved_model(model, path, overwrite=True)
    """
)


def test_a_kill_leaves_the_old_version_and_no_other(tmp_path):
    model = net()
    export_saved_model(model, tmp_path / "1")
    killed = subprocess.run([sys.executable, "-c", EXPORT, str(tmp_path / "1")], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert [name for name in names(tmp_path) if name.isdigit()] == ["1"]
    x, loaded = np.ones((1, 2), "float32"), tf.saved_model.load(str(tmp_path / "1"))
    np.testing.assert_array_equal(loaded.serve(x), model(x))
    # What the killed process left is in nobody's way.
    export_saved_model(model, tmp_path / "2")


def test_a_full_disk_leaves_nothing(tmp_path):
    model = keras.Sequential([keras.Input((400,)), keras.layers.Dense(500)])
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
    try:
        with pytest.raises(Exception, match="File too large"):
            export_saved_model(model, tmp_path / "net" / "1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
    assert names(tmp_path) == []
