from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from cosyserve.errors import BundleError
from cosyserve.voices import voices_from_spk2info
from cosyserve_build.bundles.bundle import fold_weight_norm, read
from cosyserve_build.bundles.hyperyaml import read_yaml
from cosyserve_build.bundles.layout import read_config, version_of
from cosyserve_build.bundles.shapes import expected_shapes

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny" / "bundle"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A writable copy of the tiny bundle."""
    folder = tmp_path / "bundle"
    shutil.copytree(TINY, folder, copy_function=shutil.copyfile)
    for item in (folder, *folder.rglob("*")):
        item.chmod(0o755 if item.is_dir() else 0o644)
    return folder


def edit_yaml(folder: Path, old: str, new: str) -> None:
    path = folder / "cosyvoice2.yaml"
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def edit_state(folder: Path, name: str, **changes: torch.Tensor | None) -> None:
    state = torch.load(folder / name, weights_only=True)
    for key, value in changes.items():
        if value is None:
            del state[key]
        else:
            state[key] = value
    torch.save(state, folder / name)


def yaml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "some.yaml"
    path.write_text(text, "utf-8")
    return path


# --- config


def test_config_comes_from_yaml_and_qwen_config() -> None:
    config = read(TINY).config
    assert (config.version, config.sample_rate, config.token_rate) == (2, 24000, 25)
    assert (config.llm.hidden, config.llm.layers, config.llm.kv_heads, config.llm.head_dim) == (48, 2, 1, 16)
    assert (config.llm.vocab, config.llm.speech_tokens, config.llm.mix_ratio) == (472, 6561, (5, 15))
    assert (config.flow.width, config.flow.heads, config.flow.blocks, config.flow.up_blocks) == (512, 4, 1, 4)
    assert (config.flow.chunk, config.flow.unet_chunk, config.flow.lookahead) == (25, 50, 3)
    assert (config.flow.channels, config.flow.mid_blocks, config.flow.cfg_rate) == (64, 2, 0.7)
    assert (config.hift.up_rates, config.hift.up_kernels, config.hift.frame) == ((8, 5, 3), (16, 11, 7), 480)
    assert config.hift.source_dilations == ((1, 3, 5),) * 3
    assert config.mel.fmax == 8000


def test_official_dimensions_give_the_official_tensors(bundle: Path) -> None:
    for old, new in (
        ("llm_input_size: 48", "llm_input_size: 896"),
        ("llm_output_size: 48", "llm_output_size: 896"),
        ("attention_heads: 4", "attention_heads: 8"),
        ("linear_units: 96", "linear_units: 2048"),
        ("num_blocks: 1", "num_blocks: 6"),
        ("channels: [64]", "channels: [256]"),
        ("attention_head_dim: 16", "attention_head_dim: 64"),
        ("n_blocks: 2", "n_blocks: 4"),
        ("num_mid_blocks: 2", "num_mid_blocks: 12"),
        ("num_heads: 4", "num_heads: 8"),
        ("base_channels: 64", "base_channels: 512"),
        ("cond_channels: 32", "cond_channels: 512"),
    ):
        edit_yaml(bundle, old, new)
    path = bundle / "CosyVoice-BlankEN" / "config.json"
    qwen = json.loads(path.read_text())
    qwen |= {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936}
    qwen |= {"num_attention_heads": 14, "num_key_value_heads": 2}
    path.write_text(json.dumps(qwen))

    config = read_config(bundle, version_of(bundle))
    shapes = {part: expected_shapes(config, part) for part in ("llm", "flow", "hift")}
    parameters = {part: sum(map(math.prod, tensors.values())) for part, tensors in shapes.items()}
    # Upstream's counts; lm_head is tied and dropped, 82 weight-normed tensors are folded from two into one.
    assert len(shapes["llm"]) == 295 - 1
    assert len(shapes["flow"]) == 1121
    assert len(shapes["hift"]) == 328 - 82
    assert parameters["llm"] == pytest.approx(505.8e6, abs=0.1e6)
    assert parameters["flow"] == pytest.approx(112.549e6, abs=0.001e6)
    assert parameters["hift"] == pytest.approx(20.8213e6, abs=0.02e6)
    assert config.llm.head_dim == 64
    assert shapes["hift"]["source_downs.0.weight"] == (256, 18, 30)
    assert shapes["flow"]["decoder.estimator.up_blocks.0.0.block1.block.0.weight"] == (256, 512, 3)
    assert shapes["llm"]["llm.model.model.layers.23.self_attn.k_proj.weight"] == (128, 896)


def test_another_chunk_size_reaches_encoder_and_unet(bundle: Path) -> None:
    edit_yaml(bundle, "chunk_size: 25", "chunk_size: 15")
    flow = read(bundle).config.flow
    assert (flow.chunk, flow.unet_chunk) == (15, 30)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    pre_lookahead_len: 3\n", "", r"cosyvoice2\.yaml: flow\.pre_lookahead_len: missing"),
        ("CausalConditionalCFM", "ConditionalCFM", "flow.decoder: expected class CausalConditionalCFM, found Cond"),
        ("Qwen2LM", "TransformerLM", "llm: expected class Qwen2LM, found TransformerLM"),
        ("channels: [64]", "channels: [64, 64]", r"flow\.decoder\.estimator\.channels: expected 1 entries, found 2"),
        ("num_blocks: 1", "num_blocks: many", r"flow\.encoder\.num_blocks: expected a number, found 'many'"),
        ("nb_harmonics: 8", "nb_harmonics: 8.5", "hift.nb_harmonics: expected an integer, found 8.5"),
        ("t_scheduler: 'cosine'", "t_scheduler: 'linear'", "t_scheduler: expected 'cosine', found 'linear'"),
        ("llm_input_size: 48", "llm_input_size: 49", "llm.llm_input_size: expected 48"),
        ("flow: !new", "flow: [1]\nother: !new", "flow: expected a mapping"),
    ],
)
def test_a_wrong_yaml_is_named(bundle: Path, old: str, new: str, message: str) -> None:
    edit_yaml(bundle, old, new)
    with pytest.raises(BundleError, match=message):
        read(bundle)


def test_missing_files_are_named_at_once(bundle: Path) -> None:
    (bundle / "flow.pt").unlink()
    (bundle / "CosyVoice-BlankEN" / "merges.txt").unlink()
    with pytest.raises(BundleError, match=r"missing flow\.pt, CosyVoice-BlankEN/merges\.txt$"):
        read(bundle)


def test_a_folder_without_yaml_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"not a CosyVoice bundle: it has none of cosyvoice\.yaml, cosyvoice2\.yaml"):
        read(tmp_path)


# --- YAML


def test_references_resolve(tmp_path: Path) -> None:
    text = """
a: 25
b: !ref <a>
c: !ref <b> * <two>
two: 2
nested: {inner: {deep: 7, list: [1, 2, 3]}}
dotted: !ref <nested.inner.deep>
bracketed: !ref <nested[inner][list][1]>
whole: !ref <nested>
name: !ref <prefix>/sub/<a>
prefix: top
sum: !ref (<a> + 5) / 2 - -1
object: !new:some.module.Class
    size: !ref <c>
listed: !apply:some.function [1986]
"""
    data = read_yaml(yaml(tmp_path, text))
    assert (data["b"], data["c"], data["dotted"], data["bracketed"], data["sum"]) == (25, 50, 7, 2, 16)
    assert data["whole"] == {"inner": {"deep": 7, "list": [1, 2, 3]}}
    assert data["name"] == "top/sub/25"
    assert data["object"] == {"__class__": "some.module.Class", "size": 50}
    assert data["listed"] == {"__class__": "some.function", "__args__": [1986]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !ref <b>\nb: !ref <a>\n", r"!ref <\w> points at itself"),
        ("a: !ref <a>\n", "!ref <a> points at itself"),
        ("a: !ref <gone>\n", "!ref <gone> points at nothing"),
        ("a: 1\nb: !ref <a.c>\n", r"!ref <a\.c> points at nothing"),
        ("a: [\n", "not readable as YAML"),
        ("- 1\n", "expected a mapping at the top"),
        ("a: !!python/object/apply:os.getcwd []\n", "not readable as YAML"),
    ],
)
def test_unusable_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_yaml(yaml(tmp_path, text))


def test_nothing_named_in_the_yaml_runs(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    read_yaml(yaml(tmp_path, f"a: !apply:os.mkdir ['{trace}']\nb: !new:os.mkdir\n    path: '{trace}'\n"))
    read_yaml(yaml(tmp_path, f"x: 1\nc: !ref <x> * __import__('os').mkdir('{trace}')\n"))
    assert not trace.exists()


# --- checkpoints


def test_state_dicts_match_what_the_config_promises() -> None:
    opened = read(TINY)
    for part, state in (("llm", opened.llm()), ("flow", opened.flow()), ("hift", opened.hift())):
        assert {key: tuple(value.shape) for key, value in state.items()} == expected_shapes(opened.config, part)
        assert all(value.is_contiguous() and value.dtype == torch.float32 for value in state.values())
        assert len({value.data_ptr() for value in state.values()}) == len(state)


def test_overlapping_views_keep_their_values() -> None:
    raw = torch.load(TINY / "flow.pt", weights_only=True)["input_embedding.weight"]
    assert not raw.is_contiguous()
    assert torch.equal(read(TINY).flow()["input_embedding.weight"], raw)


@pytest.mark.parametrize("tied", ["tied", "untied", "missing"])
def test_lm_head_is_ignored(bundle: Path, tied: str) -> None:
    key = "llm.model.lm_head.weight"
    state = torch.load(bundle / "llm.pt", weights_only=True)
    table = state["llm.model.model.embed_tokens.weight"]
    head = {"tied": table, "untied": torch.zeros(3, 4), "missing": None}[tied]
    edit_state(bundle, "llm.pt", **{key: head})
    assert key not in read(bundle).llm()


def test_differences_are_named_together(bundle: Path) -> None:
    edit_state(
        bundle,
        "flow.pt",
        **{"encoder_proj.bias": torch.zeros(81), "spk_embed_affine_layer.weight": None, "stray": torch.zeros(2)},
    )
    with pytest.raises(BundleError, match=r"flow\.pt: 3 tensors differ") as caught:
        read(bundle).flow()
    assert "encoder_proj.bias expected [80], found [81]" in str(caught.value)
    assert "spk_embed_affine_layer.weight expected [80, 192], found nothing" in str(caught.value)
    assert "stray expected nothing, found [2]" in str(caught.value)


def test_many_differences_are_counted(bundle: Path) -> None:
    edit_yaml(bundle, "attention_heads: 4", "attention_heads: 8")
    with pytest.raises(BundleError, match=r"flow\.pt: 10 tensors differ: .*; and 5 more"):
        read(bundle).flow()


def test_half_precision_and_old_files_are_read(bundle: Path) -> None:
    state = torch.load(bundle / "llm.pt", weights_only=True)
    halved = {key: value.half() for key, value in state.items()}
    torch.save(halved, bundle / "llm.pt", _use_new_zipfile_serialization=False)
    bias = read(bundle).llm()["llm_decoder.bias"]
    assert torch.equal(bias, halved["llm_decoder.bias"].float())


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (__import__("os").mkdir, (str(self.target),))


@pytest.mark.parametrize("name", ["llm", "flow", "hift", "spk2info"])
def test_pickled_code_is_refused(bundle: Path, name: str) -> None:
    trace = bundle / "trace"
    torch.save({"a": Payload(trace)}, bundle / f"{name}.pt")
    with pytest.raises(BundleError, match=rf"{name}\.pt: unreadable"):
        getattr(read(bundle), name)()
    assert not trace.exists()


def elsewhere(tensor: onnx.TensorProto) -> None:
    """Move its data to another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/hostname")


def weight_elsewhere(model: onnx.ModelProto) -> None:
    elsewhere(model.graph.initializer[0])


def constant_in_a_branch_elsewhere(model: onnx.ModelProto) -> None:
    constant = onnx.helper.make_tensor("hidden", onnx.TensorProto.FLOAT, [1], [0.5])
    elsewhere(constant)
    branch = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["y"], value=constant)], "branch", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))


def foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Run", ["x"], ["z"], domain="somebody"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (weight_elsewhere, r"takes \S+ from another file"),
        (constant_in_a_branch_elsewhere, "takes hidden from another file"),
        (foreign_operator, r"has an operator somebody\.Run"),
    ],
)
@pytest.mark.parametrize("name", ["campplus", "speech_tokenizer"])
def test_a_graph_that_does_not_stand_alone_is_refused(
    bundle: Path, name: str, spoil: Callable[[onnx.ModelProto], None], message: str
) -> None:
    path = getattr(read(bundle), name)
    model = onnx.load(str(path))
    spoil(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=rf"^{re.escape(path.name)}: {message}"):
        getattr(read(bundle), name)


def test_a_file_that_is_not_onnx_is_refused(bundle: Path) -> None:
    (bundle / "campplus.onnx").write_bytes(b"no graph at all")
    with pytest.raises(BundleError, match=r"^campplus\.onnx: not an ONNX graph"):
        read(bundle).campplus  # noqa: B018


def test_truncated_checkpoint_is_refused(bundle: Path) -> None:
    path = bundle / "hift.pt"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BundleError, match=r"hift\.pt: unreadable"):
        read(bundle).hift()


def test_hift_prefix_of_training_checkpoints_is_cut(bundle: Path) -> None:
    plain = read(TINY).hift()
    state = torch.load(bundle / "hift.pt", weights_only=True)
    torch.save({f"generator.{key}": value for key, value in state.items()}, bundle / "hift.pt")
    prefixed = read(bundle).hift()
    assert all(torch.equal(plain[key], prefixed[key]) for key in plain)


def test_three_spellings_of_weight_norm_fold_alike() -> None:
    conv = torch.nn.ConvTranspose1d(6, 4, 5)
    torch.nn.init.normal_(conv.weight)
    normed = torch.nn.utils.parametrizations.weight_norm(conv)
    with torch.no_grad():
        normed.parametrizations.weight.original0.mul_(1.7)
        expected = normed.weight.clone()
    state = {f"up.{key}": value for key, value in normed.state_dict().items()}
    gain = state["up.parametrizations.weight.original0"]
    direction = state["up.parametrizations.weight.original1"]
    spellings = [
        state,
        {"up.bias": state["up.bias"], "up.weight_g": gain, "up.weight_v": direction},
        {"up.bias": state["up.bias"], "up.weight": expected},
    ]
    for spelling in spellings:
        folded = fold_weight_norm(spelling)
        assert set(folded) == {"up.weight", "up.bias"}
        torch.testing.assert_close(folded["up.weight"], expected)


# --- speakers


def test_speakers_are_numpy() -> None:
    speaker = read(TINY).spk2info()["spk_tiny"]
    assert isinstance(speaker["prompt_speech_feat"], np.ndarray)
    assert speaker["prompt_speech_feat"].shape == (1, 186, 80)
    assert speaker["prompt_speech_feat"].flags.c_contiguous
    assert speaker["prompt_text"].dtype == np.int32  # type: ignore[union-attr]


def test_no_speakers_is_fine(bundle: Path) -> None:
    (bundle / "spk2info.pt").unlink()
    assert read(bundle).spk2info() == {}


def test_voices_of_a_bundle() -> None:
    speakers = torch.load(TINY / "spk2info.pt", weights_only=True)
    arrays = {name: {key: value.numpy() for key, value in entry.items()} for name, entry in speakers.items()}
    arrays["plain"] = {"embedding": arrays["spk_tiny"]["embedding"]}
    stored, plain = voices_from_spk2info(arrays)
    entry = arrays["spk_tiny"]
    for field, key in {
        "prompt_text_tokens": "prompt_text",
        "llm_prompt_tokens": "llm_prompt_speech_token",
        "flow_prompt_tokens": "flow_prompt_speech_token",
        "prompt_mel": "prompt_speech_feat",
        "speaker_embedding": "flow_embedding",
    }.items():
        np.testing.assert_array_equal(getattr(stored, field), entry[key][0])
    assert (stored.has_prompt, stored.has_transcript) == (True, True)
    assert (plain.has_prompt, plain.has_transcript) == (False, False)
    np.testing.assert_array_equal(plain.speaker_embedding, stored.speaker_embedding)
