"""Use what is private to Keras and TensorFlow.

Every private Keras or TensorFlow name that the library uses is in this room, behind a function that says why;
all were seen in Keras 3.14 and 3.15, and in TensorFlow 2.21. `tests/test_internals.py` lists them: if it
fails with a new Keras, change a file in this room. Nothing else belongs here. The room exports nothing,
because `startup` must run before TensorFlow is imported.
"""
