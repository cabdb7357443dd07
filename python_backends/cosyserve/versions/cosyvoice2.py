"""CosyVoice2 (CosyVoice2-0.5B): Qwen2 over text and speech, a causal U-Net, 24 kHz."""

from __future__ import annotations

from cosyserve.config import HiftConfig, LlmConfig, UNetFlowConfig
from cosyserve.text.special_tokens import SPEECH_TAGS
from cosyserve.versions.base import BundleLayout, FlowNetwork, LlmNetwork, Network, Version

VERSION = Version(
    number=2,
    bundle=BundleLayout(
        yaml="cosyvoice2.yaml",
        speech_tokenizer="speech_tokenizer_v2.onnx",
        others=tuple(f"CosyVoice-BlankEN/{name}" for name in ("config.json", "vocab.json", "merges.txt")),
        reader="cosyserve_build.bundles.cosyvoice2:read",
        tokenizer="cosyserve_build.bundles.text_tokenizers:qwen2",
        random="cosyserve_build.synth_recipe:COSYVOICE2",
    ),
    special_tokens=SPEECH_TAGS,
    prompts="cosyserve.text.prompts:Prompts",
    llm=LlmNetwork(
        name="Qwen2LM",
        config=LlmConfig,
        modules=("cosyserve.networks.qwen2:SpeechLM",),
        shapes="cosyserve_build.bundles.shapes:qwen2_shapes",
        graphs="cosyserve_build.export:qwen2_graphs",
        onnx="cosyserve.runtimes.onnx.llm:load_graph_decoder",
        random="cosyserve_build.synth_weights:write_llm",
        qwen2=True,
    ),
    flow=FlowNetwork(
        name="CausalMaskedDiffWithXvec",
        config=UNetFlowConfig,
        modules=("cosyserve.networks.flow_encoder:FlowEncoder", "cosyserve.networks.unet:GuidedFlow"),
        shapes="cosyserve_build.bundles.shapes:unet_flow_shapes",
        graphs="cosyserve_build.export:unet_flow_graphs",
        onnx="cosyserve.runtimes.onnx.flow:load_conformer_flow",
        factory="cosyserve.flow.sequences:FlowFactory",
        probe="cosyserve_build.probes:unet_flow",
    ),
    hift=Network(
        name="HiFTGenerator with SineGen2",
        config=HiftConfig,
        modules=(
            "cosyserve.networks.hift:F0Predictor",
            "cosyserve.networks.hift_source:HarmonicSource",
            "cosyserve.networks.hift:Decoder",
        ),
        shapes="cosyserve_build.bundles.shapes:hift_shapes",
        graphs="cosyserve_build.export:hift_graphs",
        onnx="cosyserve.runtimes.onnx.hift:load_hift",
    ),
    upstream="cosyvoice2",
    verify="cosyserve_build.stages:COSYVOICE2",
)
