"""CosyVoice 1 (CosyVoice-300M): windows of mel, a text encoder, 22.05 kHz."""

from __future__ import annotations

from cosyserve.config import SampleHiftConfig, TransformerConfig, WindowFlowConfig
from cosyserve.versions.base import BundleLayout, FlowNetwork, LlmNetwork, Network, PromptUse, Version

VERSION = Version(
    number=1,
    bundle=BundleLayout(
        yaml="cosyvoice.yaml",
        speech_tokenizer="speech_tokenizer_v1.onnx",
        reader="cosyserve_build.bundles.cosyvoice1:read",
        tokenizer="cosyserve_build.bundles.text_tokenizers:whisper",
        random="cosyserve_build.synth_recipe:COSYVOICE1",
    ),
    prompts="cosyserve.text.prompts:Prompts1",
    prompt_use=PromptUse(
        llm_speaker=frozenset({"sft", "zero_shot", "cross_lingual", "vc"}),
        flow=frozenset({"zero_shot", "cross_lingual", "vc"}),
    ),
    text_streaming=False,
    llm=LlmNetwork(
        name="TransformerLM",
        config=TransformerConfig,
        modules=(
            "cosyserve.networks.transformer:TextEncoder",
            "cosyserve.networks.transformer:Positions",
            "cosyserve.networks.transformer:RelativeLM",
        ),
        shapes="cosyserve_build.bundles.shapes:transformer_shapes",
        graphs="cosyserve_build.export:transformer_graphs",
        onnx="cosyserve.runtimes.onnx.llm:load_relative_decoder",
        prompt_encoder="cosyserve.runtimes.onnx.llm:load_prompt_encoder",
        random="cosyserve_build.synth_weights:write_transformer",
    ),
    flow=FlowNetwork(
        name="MaskedDiffWithXvec",
        config=WindowFlowConfig,
        modules=("cosyserve.networks.window_encoder:WindowEncoder", "cosyserve.networks.window_unet:WindowFlow"),
        shapes="cosyserve_build.bundles.shapes:window_flow_shapes",
        graphs="cosyserve_build.export:window_flow_graphs",
        onnx="cosyserve.runtimes.onnx.flow:load_windows",
        factory="cosyserve.flow.window_sequences:WindowFlowFactory",
    ),
    hift=Network(
        name="HiFTGenerator with SineGen",
        config=SampleHiftConfig,
        modules=(
            "cosyserve.networks.hift:F0Predictor",
            "cosyserve.networks.hift_source:SampleSource",
            "cosyserve.networks.hift:Decoder",
        ),
        shapes="cosyserve_build.bundles.shapes:hift_shapes",
        graphs="cosyserve_build.export:hift_graphs",
        onnx="cosyserve.runtimes.onnx.hift:load_hift",
    ),
    verify="cosyserve_build.stages:COSYVOICE1",
)
