"""Tensors of Triton's Python backend from and to numpy, also to numpy 2, for which that of 2.51 was not built.

It reads the size of an element where numpy 1 has it. There numpy 2 has the flags of the type, which are 0 for numbers
and bytes: the backend asks numpy for arrays whose strides are all 0, and takes those that it is given for empty. So its
arrays are made with the strides that it means, numbers go to it by DLPack, and bytes as a type whose flags are 1. See
`cosyserve.triton_defects`.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

_NUMPY_2 = np.lib.NumpyVersion(np.__version__) >= "2.0.0"

_NEW_FROM_DESCR = 94
"""Place of ``PyArray_NewFromDescr`` in numpy's table of C functions, the same in numpy 1 and 2."""

_SLOTS = 300
"""Places that are copied of it: numpy has more, and the backend's pybind11 uses none above 282."""

_TAKEN = b"used_dltensor"
"""Name of a capsule whose tensor has a new owner, by the protocol."""

_API = ctypes.pythonapi
_API.PyCapsule_SetName.argtypes = [ctypes.py_object, ctypes.c_char_p]
_API.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_API.PyCapsule_GetPointer.restype = ctypes.c_void_p
_API.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_API.PyCapsule_New.restype = ctypes.py_object

_Function = ctypes.PYFUNCTYPE(
    ctypes.c_void_p,  # the array
    ctypes.c_void_p,  # its type
    ctypes.c_void_p,  # its descriptor
    ctypes.c_int,  # its dimensions, and the size of each
    ctypes.POINTER(ctypes.c_ssize_t),
    ctypes.POINTER(ctypes.c_ssize_t),  # strides
    ctypes.c_void_p,  # its memory
    ctypes.c_int,  # flags
    ctypes.c_void_p,  # base
)


def read_tensor(tensor: Any) -> NDArray[np.generic]:
    """The values of a tensor."""
    array: NDArray[np.generic] = tensor.as_numpy()
    return array


def make_tensor(name: str, array: NDArray[np.generic]) -> Any:
    """A tensor of a C-contiguous array, of which it holds the memory."""
    if not _NUMPY_2 or array.dtype == np.object_ or not array.size:
        return pb_utils.Tensor(name, array)
    if not array.flags.writeable:  # which DLPack cannot say
        array = array.copy()
    # Triton compares strides also along axes of length 1, where numpy does not care for them.
    plain: NDArray[Any] = array.ravel().reshape(array.shape)
    capsule = plain.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # Triton marks it as taken by a name of its own, for which numpy would print an error.
    _API.PyCapsule_SetName(capsule, _TAKEN)
    return tensor


def mend_bytes() -> None:
    """Have the backend see the size of text tensors, which it asks the function that is replaced here to encode."""
    encode = pb_utils.serialize_byte_tensor

    def serialize(tensor: NDArray[np.object_]) -> NDArray[np.void]:
        kind: Any = np.dtype("V1")
        encoded = np.frombuffer(encode(tensor) or b"", kind)
        # Version, order, subarray, names, fields, size, alignment, flags. The array does not own its memory, so numpy
        # never looks for the objects that flag 1 promises.
        kind.__setstate__((4, "|", None, None, None, 1, 1, 1, None))
        return encoded

    pb_utils.serialize_byte_tensor = serialize


def mend_strides() -> None:
    """Have the backend's arrays laid out in C order where it asks for strides of 0.

    It takes numpy's functions from ``numpy.core.multiarray._ARRAY_API`` when it makes its first array, so this must
    come before. A backend that knows numpy 2 takes them from elsewhere.
    """
    import numpy.core.multiarray as multiarray

    table = (ctypes.c_void_p * _SLOTS)()
    ctypes.memmove(table, _API.PyCapsule_GetPointer(multiarray._ARRAY_API, None), ctypes.sizeof(table))
    original = ctypes.cast(ctypes.c_void_p(table[_NEW_FROM_DESCR]), _Function)

    def new_from_descr(kind, descr, count, sizes, strides, memory, flags, base):  # type: ignore[no-untyped-def]
        if strides and count and not any(strides[:count]):
            strides = None
        return original(kind, descr, count, sizes, strides, memory, flags, base)

    replaced = _Function(new_from_descr)
    table[_NEW_FROM_DESCR] = ctypes.cast(replaced, ctypes.c_void_p).value
    _KEPT.extend((table, replaced))
    multiarray._ARRAY_API = _API.PyCapsule_New(ctypes.cast(table, ctypes.c_void_p), None, None)


_KEPT: list[object] = []
"""What numpy's functions are called through for as long as the process lives."""

if _NUMPY_2:
    mend_strides()
    mend_bytes()
