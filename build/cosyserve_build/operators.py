"""ONNX operators and types that TensorRT's parser supports.

Source: docs/operators.md of onnx-tensorrt for TensorRT 10.15, which reads opsets 9 to 24.
"""

from __future__ import annotations

from onnx import ModelProto, TensorProto, shape_inference

from cosyserve.errors import WeightsError

_NAMES = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BlackmanWindow
Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv
DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
GroupNormalization GRU HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If InstanceNormalization
IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization LpPool MatMul
Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad Pow
PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
Reshape Resize ReverseSequence RMSNormalization RNN RoiAlign RotaryEmbedding Round STFT Scan Scatter ScatterElements
ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt
Squeeze Sub Sum Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
OPERATORS = frozenset(_NAMES.split())

TYPES = frozenset({"FLOAT", "FLOAT16", "BFLOAT16", "INT32", "INT64", "BOOL"})
"""Types in which it computes. It accepts DOUBLE too, but rounds it to FLOAT, which makes a phase wrong."""


def check(graph: str, model: ModelProto) -> None:
    """Check that TensorRT can run a graph correctly.

    Args:
        graph: name of the graph, for the message.
        model: the graph; weights need not be loaded.

    Raises:
        WeightsError: TensorRT lacks an operator or would round a type; the message names all of them.
    """
    found = {
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        for node in model.graph.node
    }
    if missing := sorted(found - OPERATORS):
        raise WeightsError(f"{graph}: TensorRT has no operator {', '.join(missing)}")
    inferred = shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    kinds = {value.type.tensor_type.elem_type for value in values} | {
        weight.data_type for weight in inferred.initializer
    }
    if wrong := sorted({TensorProto.DataType.Name(kind) for kind in kinds} - TYPES):
        raise WeightsError(f"{graph}: TensorRT does not compute in {', '.join(wrong)}; this graph stays in torch")
