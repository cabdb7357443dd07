"""CosyVoice3 (Fun-CosyVoice3-0.5B): special ids in one table, a causal diffusion transformer and vocoder, 24 kHz."""

from __future__ import annotations

from cosyserve.config import CausalHiftConfig, CosyVoice3LlmConfig, DitFlowConfig
from cosyserve.text.special_tokens import SPEECH_TAGS
from cosyserve.versions.base import BundleLayout, FlowNetwork, LlmNetwork, Network, Version

# ARPABET; a vowel (*) also stands with each of its three stresses.
_ENGLISH = (
    "AA* AE* AH* AO* AW* AY* B CH D DH EH* ER* EY* F G HH IH* IY* JH K L M N NG OW* OY* P R S SH T TH UH* UW* "
    "V W Y Z ZH"
)

# Initials and finals of pinyin with their tones.
_CHINESE = """
a ai an ang ao b c ch d e ei en eng f g h i ian in ing iu ià iàn iàng iào iá ián iáng iáo iè ié iòng ióng iù iú iā iān
iāng iāo iē iě iōng iū iǎ iǎn iǎng iǎo iǒng iǔ j k l m n o ong ou p q r s sh t u uang ue un uo uà uài uàn uàng uá uái
uán uáng uè ué uì uí uò uó uā uāi uān uāng uē uě uī uō uǎ uǎi uǎn uǎng uǐ uǒ vè w x y z zh à ài àn àng ào á ái án áng
áo è èi èn èng èr é éi én éng ér ì ìn ìng í ín íng ò òng òu ó óng óu ù ùn ú ún ā āi ān āng āo ē ēi ēn ēng ě ěi ěn ěng
ěr ī īn īng ō ōng ōu ū ūn ǎ ǎi ǎn ǎng ǎo ǐ ǐn ǐng ǒ ǒng ǒu ǔ ǔn ǘ ǚ ǜ
"""


def _phones() -> list[str]:
    """``[AA]``, ``[AA0]``, .. ``[zh]``, .. ``[ǜ]`` in id order."""
    english = [
        phone.rstrip("*") + stress
        for phone in _ENGLISH.split()
        for stress in (("", "0", "1", "2") if phone.endswith("*") else ("",))
    ]
    return [f"[{phone}]" for phone in (*english, *_CHINESE.split())]


VERSION = Version(
    number=3,
    bundle=BundleLayout(
        yaml="cosyvoice3.yaml",
        speech_tokenizer="speech_tokenizer_v3.onnx",
        others=tuple(f"CosyVoice-BlankEN/{name}" for name in ("config.json", "vocab.json", "merges.txt")),
        reader="cosyserve_build.bundles.cosyvoice3:read",
        tokenizer="cosyserve_build.bundles.text_tokenizers:qwen2",
        random="cosyserve_build.synth_recipe:COSYVOICE3",
    ),
    special_tokens=(*SPEECH_TAGS, "<|endofsystem|>", *_phones()),
    prompts="cosyserve.text.prompts:Prompts3",
    llm=LlmNetwork(
        name="CosyVoice3LM",
        config=CosyVoice3LlmConfig,
        modules=("cosyserve.networks.qwen2:SpeechLM",),
        shapes="cosyserve_build.bundles.shapes:qwen2_shapes",
        graphs="cosyserve_build.export:qwen2_graphs",
        onnx="cosyserve.runtimes.onnx.llm:load_graph_decoder",
        random="cosyserve_build.synth_weights:write_llm",
    ),
    flow=FlowNetwork(
        name="CausalMaskedDiffWithDiT",
        config=DitFlowConfig,
        modules=("cosyserve.networks.lookahead:LookaheadEncoder", "cosyserve.networks.dit:GuidedDit"),
        shapes="cosyserve_build.bundles.shapes:dit_flow_shapes",
        graphs="cosyserve_build.export:dit_flow_graphs",
        onnx="cosyserve.runtimes.onnx.flow:load_lookahead_flow",
        factory="cosyserve.flow.sequences:FlowFactory",
        probe="cosyserve_build.probes:dit_flow",
    ),
    hift=Network(
        name="CausalHiFTGenerator",
        config=CausalHiftConfig,
        modules=(
            "cosyserve.networks.hift:F0Predictor",
            "cosyserve.networks.hift_source:HarmonicSource",
            "cosyserve.networks.hift:Decoder",
        ),
        shapes="cosyserve_build.bundles.shapes:hift_shapes",
        graphs="cosyserve_build.export:hift_graphs",
        onnx="cosyserve.runtimes.onnx.hift:load_hift",
    ),
    upstream="cosyvoice3",
    verify="cosyserve_build.stages:COSYVOICE3",
)
