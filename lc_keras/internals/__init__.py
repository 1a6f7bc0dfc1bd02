"""Reach what Keras and TensorFlow keep to themselves.

Every private name of theirs that the library uses is in this room, behind a function that says why; all were
seen in Keras 3.14 and 3.15, and in TensorFlow 2.21. `tests/test_internals.py` lists them: where it fails with
a new Keras, change a file of this room. Nothing else belongs here. It exports nothing: `startup` must run
before TensorFlow is imported.
"""
