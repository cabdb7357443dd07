"""Export the language model as a Hugging Face Qwen2 checkpoint that vLLM, TensorRT-LLM and transformers load unchanged.

Two parts of CosyVoice2 have no tensor in a plain Qwen2: the bias of the speech head, and the rule that text is never
sampled. Neither can be folded into the weights, because the final RMSNorm leaves no constant channel.
Both are therefore one table of additive logit biases, ``sequence_bias`` in ``generation_config.json``: each speech id
with its bias + 64. The common 64 does not change the distribution over speech, and it makes text impossible: head rows
of text are zero, so their logit stays 0.

* transformers: ``generate`` applies the table by itself.
* vLLM: pass it as ``SamplingParams(logit_bias=...)``, which allows -100 to 100.
* TensorRT-LLM: pass it as ``SamplingParams(embedding_bias=...)``, a vector over the vocabulary.
* llama.cpp: use `export_gguf`; its Qwen2 has a head bias.

Upstream instead adds ``lm_head.bias`` and ``use_bias`` to the checkpoint: transformers ignores that tensor with a
warning, and vLLM needs upstream's own model class for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from cosyserve.errors import BundleError
from cosyserve_build.bundles import bundle
from cosyserve_build.folder import replaced
from cosyserve_build.merged import CHAT_TEMPLATE, PAD, SOS, STOPS, MergedLm, merge

Dtype = Literal["float32", "bfloat16", "float16"]

SHIFT = 64.0  # a power of two costs the biases the least precision; below vLLM's bound of 100

EXPORTER = "cosyserve-build export-hf"


def export_hf(source: Path, out: Path, dtype: Dtype = "bfloat16") -> None:
    """Write the checkpoint of the bundle in `source` to the folder `out`, which appears when it is complete.

    Args:
        source: a CosyVoice2 bundle in the official layout.
        out: must be absent or empty, or hold an earlier export, which is replaced.
        dtype: of every tensor; upstream publishes bfloat16.

    Raises:
        BundleError: the bundle is invalid, or `out` holds other files.
    """
    if out.exists() and not _replaceable(out):
        raise BundleError(f"{out} holds files that this command did not write; name another folder")
    opened = bundle.read(source)
    model = merge(opened)
    qwen = json.loads((opened.tokenizer / "config.json").read_text("utf-8"))
    with replaced(out) as folder:
        tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in model.tensors.items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        model.tokenizer.save(str(folder / "tokenizer.json"))
        _write_json(folder / "config.json", _config(model, qwen, dtype))
        _write_json(folder / "generation_config.json", _generation_config(model))
        _write_json(folder / "tokenizer_config.json", _tokenizer_config(qwen))


def _config(model: MergedLm, qwen: dict[str, Any], dtype: Dtype) -> dict[str, Any]:
    """Return the bundle's own Qwen2 configuration with the changes of merging."""
    return {
        **qwen,
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": model.rows,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "bos_token_id": model.ids[SOS],
        "eos_token_id": model.ids[STOPS[0]],
        "exported_by": EXPORTER,
    }


def _generation_config(model: MergedLm) -> dict[str, Any]:
    """Return stop ids, upstream's sampling without its repetition rule, and the logit biases."""
    return {
        "bos_token_id": model.ids[SOS],
        "eos_token_id": [model.ids[token] for token in STOPS],
        "pad_token_id": model.ids[PAD],
        "do_sample": True,
        "temperature": 1.0,
        "top_k": model.config.top_k,
        "top_p": model.config.top_p,
        "sequence_bias": [[[model.offset + i], bias + SHIFT] for i, bias in enumerate(model.bias.tolist())],
    }


def _tokenizer_config(qwen: dict[str, Any]) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": qwen["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "eos_token": STOPS[0],
        "pad_token": PAD,
        "chat_template": CHAT_TEMPLATE,
    }


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _replaceable(out: Path) -> bool:
    config = out / "config.json"
    if config.is_file():
        return EXPORTER in config.read_text("utf-8")
    return out.is_dir() and not any(out.iterdir())
