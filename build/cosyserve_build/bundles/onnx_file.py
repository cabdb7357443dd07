"""Check the ONNX graphs of a bundle, which are untrusted input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError, Message

from cosyserve.errors import BundleError

DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
"""Domains of the operators in onnxruntime; any other domain needs third-party code."""


def check_whole(path: Path) -> Path:
    """Return the path after a check that the graph needs no other file and no third-party operator.

    The bundles' graphs are single files. A graph with external data could have any file of this machine read into its
    weights, and so into what is served (ONNX :: TensorProto.external_data).

    Raises:
        BundleError: the file is not an ONNX graph, refers to other files, or uses third-party operators.
    """
    import onnx
    from onnx.external_data_helper import uses_external_data

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise BundleError(f"{path.name}: not an ONNX graph: {error}") from None
    for part in _messages(model):
        if isinstance(part, onnx.TensorProto) and uses_external_data(part):
            raise BundleError(f"{path.name}: takes {part.name or 'a tensor'} from another file; it must be whole")
        if isinstance(part, onnx.NodeProto) and part.domain not in DOMAINS:
            raise BundleError(f"{path.name}: has an operator {part.domain}.{part.op_type}, which is not ONNX's")
    return path


def _messages(message: Message) -> Iterator[Message]:
    """Yield a message and all nested ones, also of branches, loops, functions and sparse tensors."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                yield from _messages(part)
