"""Runs a SavedModel through TensorFlow's C API: the model server's loader, without Python graph code."""

import ctypes
import glob
import os

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2


class _Buffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("deallocate", ctypes.c_void_p)]


class _Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


_POINTERS = (
    "TF_NewStatus TF_NewGraph TF_NewSessionOptions TF_NewBuffer TF_LoadSessionFromSavedModel "
    "TF_GraphOperationByName TF_AllocateTensor TF_TensorData TF_Message"
).split()


def _library():
    (path,) = glob.glob(os.path.join(os.path.dirname(tf.__file__), "libtensorflow_cc.so*"))
    library = ctypes.CDLL(path)
    for name in _POINTERS:
        getattr(library, name).restype = ctypes.c_void_p
    library.TF_Message.restype = ctypes.c_char_p
    library.TF_TensorByteSize.restype = ctypes.c_size_t
    library.TF_Dim.restype = ctypes.c_int64
    return library


class CSession:
    """A SavedModel, loaded by `TF_LoadSessionFromSavedModel`.

    Args:
        path: String or path-like, the SavedModel.
    """

    def __init__(self, path):
        self._c = _library()
        self._status = ctypes.c_void_p(self._c.TF_NewStatus())
        self._graph = ctypes.c_void_p(self._c.TF_NewGraph())
        options = ctypes.c_void_p(self._c.TF_NewSessionOptions())
        described = ctypes.cast(self._c.TF_NewBuffer(), ctypes.POINTER(_Buffer))
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = ctypes.c_void_p(
            self._c.TF_LoadSessionFromSavedModel(
                options, None, os.fsencode(path), tags, 1, self._graph, described, self._status
            )
        )
        self._check()
        meta_graph = meta_graph_pb2.MetaGraphDef.FromString(
            ctypes.string_at(described.contents.data, described.contents.length)
        )
        self.signatures = dict(meta_graph.signature_def)
        self._c.TF_DeleteBuffer(described)
        self._c.TF_DeleteSessionOptions(options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._c.TF_CloseSession(self._session, self._status)
        self._c.TF_DeleteSession(self._session, self._status)
        self._c.TF_DeleteGraph(self._graph)
        self._c.TF_DeleteStatus(self._status)

    def run(self, signature="serving_default", **inputs):
        """Returns the outputs of a signature by name, for NumPy inputs by name."""
        signature = self.signatures[signature]
        assert set(inputs) == set(signature.inputs), (set(inputs), set(signature.inputs))
        outputs = sorted(signature.outputs)
        feeds = (_Output * len(inputs))(*(self._output(signature.inputs[name]) for name in inputs))
        fetches = (_Output * len(outputs))(*(self._output(signature.outputs[name]) for name in outputs))
        values = (ctypes.c_void_p * len(inputs))(
            *(
                self._tensor(
                    np.ascontiguousarray(value, tf.as_dtype(signature.inputs[name].dtype).as_numpy_dtype)
                )
                for name, value in inputs.items()
            )
        )
        results = (ctypes.c_void_p * len(outputs))()
        self._c.TF_SessionRun(
            self._session, None, feeds, values, len(inputs), fetches, results, len(outputs),
            None, 0, None, self._status,
        )  # fmt: skip
        for value in values:
            self._c.TF_DeleteTensor(ctypes.c_void_p(value))
        self._check()
        return {
            name: self._array(ctypes.c_void_p(result)) for name, result in zip(outputs, results, strict=True)
        }

    def _check(self):
        if self._c.TF_GetCode(self._status):
            raise RuntimeError(self._c.TF_Message(self._status).decode())

    def _output(self, info):
        name, index = info.name.split(":")
        operation = self._c.TF_GraphOperationByName(self._graph, name.encode())
        assert operation, f"no operation '{name}'"
        return _Output(operation, int(index))

    def _tensor(self, array):
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        dtype = tf.as_dtype(array.dtype).as_datatype_enum
        tensor = self._c.TF_AllocateTensor(dtype, shape, array.ndim, ctypes.c_size_t(array.nbytes))
        data = self._c.TF_TensorData(ctypes.c_void_p(tensor))
        ctypes.memmove(data, array.ctypes.data, array.nbytes)
        return tensor

    def _array(self, tensor):
        shape = [self._c.TF_Dim(tensor, i) for i in range(self._c.TF_NumDims(tensor))]
        dtype = tf.as_dtype(self._c.TF_TensorType(tensor)).as_numpy_dtype
        data = ctypes.string_at(self._c.TF_TensorData(tensor), self._c.TF_TensorByteSize(tensor))
        self._c.TF_DeleteTensor(tensor)
        return np.frombuffer(data, dtype).reshape(shape)
