"""ONNX graphs of a bundle, as data that a stranger wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError, Message

from cosyserve.errors import BundleError

DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
"""Operators that onnxruntime brings along; those of any other domain are somebody's code."""


def check_whole(path: Path) -> Path:
    """The path again, once it is sure that the graph stands alone.

    The bundles' graphs are single files. One that names external data could have any file of this machine read into
    its weights, and so into what is served (ONNX :: TensorProto.external_data).

    Raises:
        BundleError: it is no ONNX graph, or takes data from other files, or has operators of its own.
    """
    import onnx
    from onnx.external_data_helper import uses_external_data

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise BundleError(f"{path.name}: no ONNX graph: {error}") from None
    for part in _messages(model):
        if isinstance(part, onnx.TensorProto) and uses_external_data(part):
            raise BundleError(f"{path.name}: takes {part.name or 'a tensor'} from another file; it must be whole")
        if isinstance(part, onnx.NodeProto) and part.domain not in DOMAINS:
            raise BundleError(f"{path.name}: has an operator {part.domain}.{part.op_type}, which is not ONNX's")
    return path


def _messages(message: Message) -> Iterator[Message]:
    """A message and all in it: in branches, loops, functions and sparse tensors too."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                yield from _messages(part)
