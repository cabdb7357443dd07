"""Export the language model as a GGUF file for llama.cpp: architecture ``qwen2``.

For general-purpose engines the file has vocabulary and tokenizer of `merged`; for our own server it has only the
speech ids and no tokenizer, since rows of text in the head cost 17 to 39 % of a step there.

llama.cpp's Qwen2 takes a head bias (``output.bias``), so both are exact: the bias of the speech head is in the file,
and text rows get one so low that they are never sampled.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import LlamaFileType as FileType
from gguf import TokenType
from numpy.typing import NDArray

from cosyserve.config import LlmConfig, expect
from cosyserve.errors import BundleError
from cosyserve_build.bundles import bundle
from cosyserve_build.bundles.bundle import StateDict
from cosyserve_build.merged import CHAT_TEMPLATE, PAD, SOS, STOPS, MergedLm, merge, speech_only

Quantisation = Literal["f32", "f16", "q8_0", "q4_0"]

FILE_TYPES = {
    "f32": FileType.ALL_F32,
    "f16": FileType.MOSTLY_F16,
    "q8_0": FileType.MOSTLY_Q8_0,
    "q4_0": FileType.MOSTLY_Q4_0,
}

NEVER = -1e9  # llama.cpp's check of tensors refuses infinities


def export_gguf(source: Path, out: Path, quantise: Quantisation = "q8_0") -> None:
    """Write the language model of the bundle in `source` to the file `out`, which appears when it is complete.

    Args:
        source: a CosyVoice2 bundle in the official layout.
        out: must not exist.
        quantise: type of the matrices; norms and biases stay float32. With q4_0 the head is q8_0, since it makes the
            logits.

    Raises:
        BundleError: the bundle is invalid, a matrix does not divide into blocks, or `out` exists.
    """
    if out.exists():
        raise BundleError(f"{out} exists; remove it or name another file")
    opened = bundle.read(source)
    model = merge(opened)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as scratch:
        path = Path(scratch) / "model.gguf"
        writer = _writer(path, opened, quantise)
        writer.add_uint32("cosyvoice.speech.offset", model.offset)
        _add_vocabulary(writer, model)
        bias = np.full(model.rows, NEVER, np.float32)
        bias[model.offset : model.offset + model.config.speech_vocab] = model.bias.numpy()
        _add_tensors(writer, model.tensors, bias, model.config.layers, quantise)
        _finish(writer)
        os.replace(path, out)


def write_speech_gguf(opened: bundle.Bundle, path: Path, quantise: Quantisation) -> None:
    """Write the file that `cosyserve.runtimes.gguf` runs: only speech ids, for callers that pass embeddings.

    Args:
        opened: the bundle.
        path: of the file.
        quantise: as for `export_gguf`.

    Raises:
        BundleError: the checkpoint is invalid, or a matrix does not divide into blocks.
    """
    config = opened.config.llm
    tensors, bias = speech_only(opened)
    writer = _writer(path, opened, quantise)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.speech_vocab)
    _add_tensors(writer, tensors, bias.numpy(), config.layers, quantise)
    _finish(writer)


def _writer(path: Path, opened: bundle.Bundle, quantise: Quantisation) -> gguf.GGUFWriter:
    """Open a writer and add the sizes."""
    config = expect(LlmConfig, opened.config.llm)
    writer = gguf.GGUFWriter(path, "qwen2")
    qwen = json.loads((opened.tokenizer / "config.json").read_text("utf-8"))
    writer.add_name("CosyVoice2 language model")
    writer.add_context_length(qwen["max_position_embeddings"])
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_eps)
    writer.add_uint32("cosyvoice.speech.vocab", config.speech_vocab)
    writer.add_file_type(FILE_TYPES[quantise])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return writer


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, model: MergedLm) -> None:
    description: dict[str, Any] = json.loads(model.tokenizer.to_str())
    tokens = [f"[PAD{i}]" for i in range(model.rows)]
    types = [TokenType.UNUSED] * model.rows
    for token, i in description["model"]["vocab"].items():
        tokens[i], types[i] = token, TokenType.NORMAL
    for added in description["added_tokens"]:
        # llama.cpp drops control tokens from its answers, so speech tokens must not be control tokens.
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in description["model"]["merges"]])
    writer.add_add_bos_token(False)
    writer.add_bos_token_id(model.ids[SOS])
    # llama.cpp stops at each of these three end tokens.
    writer.add_eos_token_id(model.ids[STOPS[0]])
    writer.add_eot_token_id(model.ids[STOPS[1]])
    writer.add_eom_token_id(model.ids[STOPS[2]])
    writer.add_pad_token_id(model.ids[PAD])
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_tensors(
    writer: gguf.GGUFWriter, tensors: StateDict, bias: NDArray[np.float32], layers: int, quantise: Quantisation
) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, layers)
    for name, tensor in tensors.items():
        module, parameter = name.rsplit(".", 1)
        kind = Type.F32 if tensor.dim() == 1 else Type[quantise.upper()]
        if kind == Type.Q4_0 and name == "lm_head.weight":
            kind = Type.Q8_0
        block = gguf.GGML_QUANT_SIZES[kind][0]
        if tensor.shape[-1] % block:
            raise BundleError(f"{name} has rows of {tensor.shape[-1]}, {kind.name.lower()} needs multiples of {block}")
        writer.add_tensor(f"{names[module]}.{parameter}", gguf.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.add_tensor("output.bias", bias)
