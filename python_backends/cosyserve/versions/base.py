"""What a description of a CosyVoice version holds.

A description is data. Whatever works on a version's networks or files is named, as ``package.module:attribute`` (see
`cosyserve.lazy`), so that reading a description imports no network, no runtime and nothing of the build package.
"""

from __future__ import annotations

from dataclasses import dataclass

from cosyserve.config import MelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One network of a version.

    Attributes:
        name: what runtimes call it to say that they run it.
        config: class of its sizes.
        modules: its torch modules, each made from the sizes.
        shapes: sizes to names and shapes of the checkpoint's tensors.
        graphs: sizes and checkpoint to the graphs to export.
        onnx: weights and settings to what the stage runs, over those graphs.
    """

    name: str
    config: type
    modules: tuple[str, ...]
    shapes: str
    graphs: str
    onnx: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmNetwork(Network):
    """The language model.

    Attributes:
        random: writes ``llm.pt`` with random weights under which sequences end.
        prompt_encoder: weights and settings to what makes the prompts of sequences, where the model takes something
            else than ids; empty where it takes ids.
        qwen2: whether it can be written as a plain Qwen2 over one table of text and speech.
    """

    random: str
    prompt_encoder: str = ""
    qwen2: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowNetwork(Network):
    """The flow.

    Attributes:
        factory: opens sequences on the networks.
        probe: sizes and checkpoint to networks with taps, for `verify`; empty where a recorded set brings its own.
    """

    factory: str
    probe: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleLayout:
    """How bundles are laid out.

    Attributes:
        yaml: the file that describes the model; its name identifies the version.
        speech_tokenizer: ONNX graph of the speech tokenizer.
        others: files that must be there besides, beyond those of every version.
        reader: folder, content of `yaml` and version to the model's sizes.
        tokenizer: folder and version to the text tokenizer.
        random: YAML and sizes of bundles with random weights.
    """

    yaml: str
    speech_tokenizer: str
    others: tuple[str, ...] = ()
    reader: str
    tokenizer: str
    random: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptUse:
    """In which modes (`contracts.MODES`) a network takes its part of a voice's prompt.

    Attributes:
        llm_tokens: the language model goes on from the prompt's speech tokens.
        llm_speaker: it takes the speaker vector.
        flow: the flow goes on from the prompt's speech tokens and mel.
    """

    llm_tokens: frozenset[str] = frozenset({"zero_shot"})
    llm_speaker: frozenset[str] = frozenset()
    flow: frozenset[str] = frozenset({"zero_shot", "cross_lingual", "instruct", "vc"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of CosyVoice.

    Attributes:
        number: which.
        bundle: its files.
        special_tokens: of the text tokenizer, in id order behind the vocabulary; empty where the tokenizer has its own.
        prompts: text tokenizer and normaliser to its prompt template.
        prompt_use: which networks take what of a voice's prompt.
        text_streaming: whether text may come in pieces.
        llm: the language model.
        flow: speech tokens to mel.
        hift: mel to waveform.
        upstream: the Triton model with upstream's contract for it; empty where upstream has none.
        verify: how recorded tensors are compared; empty where there are none.
    """

    number: int
    bundle: BundleLayout
    special_tokens: tuple[str, ...] = ()
    prompts: str
    prompt_use: PromptUse = PromptUse()
    text_streaming: bool = True
    llm: LlmNetwork
    flow: FlowNetwork
    hift: Network
    upstream: str = ""
    verify: str = ""

    @property
    def networks(self) -> dict[str, Network]:
        """By stage."""
        return {"llm": self.llm, "flow": self.flow, "hift": self.hift}

    @property
    def parts(self) -> dict[str, type]:
        """Classes of the parts of a `ModelConfig`."""
        return {**{stage: network.config for stage, network in self.networks.items()}, "mel": MelConfig}
