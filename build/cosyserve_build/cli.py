"""Command ``cosyserve-build``: prepares CosyVoice bundles for the server and verifies them against recorded tensors."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cosyserve.command_line import one_line_errors
from cosyserve.runtimes import registry

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


class Dtype(StrEnum):
    """Number types of a Hugging Face checkpoint."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Quantisation(StrEnum):
    """Types of the matrices in a GGUF file."""

    f32 = "f32"
    f16 = "f16"
    q8_0 = "q8_0"
    q4_0 = "q4_0"


class Size(StrEnum):
    """Sizes of a synthetic bundle; full has the official dimensions."""

    tiny = "tiny"
    small = "small"
    full = "full"


class WeightPrecision(StrEnum):
    """Types in which ONNX graphs store their weights."""

    fp32 = "fp32"
    int8 = "int8"
    fp16 = "fp16"


ONNX_ALONE = [registry.ONNX.name]


class Precision(StrEnum):
    """Precision of the products in a plan."""

    fp16 = "fp16"
    bf16 = "bf16"
    fp32 = "fp32"


@app.command()
def prepare(
    bundle: Annotated[Path, typer.Argument(help="CosyVoice bundle in the official layout")],
    out: Annotated[Path, typer.Argument(help="new folder for the prepared weights")],
    runtime: Annotated[
        list[str],
        typer.Option(help=f"runtime of the networks: {' or '.join(registry.PREPARED)}; give it twice for both"),
    ] = ONNX_ALONE,
    llm_gguf: Annotated[
        Quantisation | None, typer.Option(help="also write the language model for llama.cpp; type of its matrices")
    ] = None,
    precision: Annotated[
        WeightPrecision,
        typer.Option(help="weights of the ONNX graphs: int8 for the language model's matrices, fp16 for smaller files"),
    ] = WeightPrecision.fp32,
) -> None:
    """Turn a bundle into weights that the server loads."""
    if not set(runtime) <= set(registry.PREPARED):
        raise typer.BadParameter(f"must be one of {', '.join(registry.PREPARED)}", param_hint="--runtime")
    with one_line_errors():
        from cosyserve_build.prepare import prepare as run

        run(
            bundle,
            out,
            report=print,
            runtimes=runtime,
            llm_gguf=llm_gguf.value if llm_gguf else None,
            precision=precision.value,
        )
    setting = "" if registry.ONNX.name in runtime else f"COSYSERVE_RUNTIME={runtime[0]} "
    setting += "COSYSERVE_LLM_RUNTIME=gguf " if llm_gguf else ""
    print(f"{out}: ready; try: {setting}cosyserve serve --weights {out}")


@app.command()
def engines(
    weights: Annotated[Path, typer.Argument(help="prepared weights; the plans are written to their folder plans/")],
    precision: Annotated[Precision, typer.Option(help="for the flow; the vocoder stays float32")] = Precision.bf16,
    graphs: Annotated[str, typer.Option(help="names, separated by commas")] = "flow_estimator,hift_decoder",
    rtx: Annotated[
        str, typer.Option(help="build with TensorRT-RTX for this compute capability, such as sm89; needs no GPU")
    ] = "",
) -> None:
    """Build TensorRT plans for this machine's GPU, or for any with --rtx (not run on hardware yet)."""
    with one_line_errors():
        from cosyserve_build.engines import engines as run

        run(weights, precision.value, graphs.split(","), report=print, rtx=rtx)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="SET", help="folder with bundle/, vectors/, manifest.json")],
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    runtime: Annotated[str, typer.Option(help="compare what this runtime gives out on the CPU, such as torch")] = "",
    precision: Annotated[Precision, typer.Option(help="of the runtime")] = Precision.fp32,
) -> None:
    """Compare every stage with recorded tensors; exit with 1 on any miss."""
    with one_line_errors():
        from cosyserve_build.verify import verify as run

        report = run(folder, runtime, precision.value)
    print(report.to_json() if json else report.table())
    if report.misses:
        raise typer.Exit(1)


@app.command()
def judge(
    url: Annotated[str, typer.Option(help="the server's gRPC host:port")] = "127.0.0.1:8001",
    voice: Annotated[str | None, typer.Option(help="name of a registered voice")] = None,
    source: Annotated[
        str | None, typer.Option(help="measure this voice of flite instead, on which the demo voice was trained")
    ] = None,
    sentences: Annotated[int, typer.Option(min=1, help="number of sentences; none is in the training data")] = 100,
    full: Annotated[bool, typer.Option("--full", help="use full attention instead of streaming")] = False,
    seed: Annotated[int, typer.Option(help="seed of the first utterance")] = 0,
    at_once: Annotated[int, typer.Option(min=1, help="utterances in progress at once")] = 2,
    max_wer: Annotated[float | None, typer.Option(help="exit with 1 above this word error rate, in percent")] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure word error rate and signal defects of a running server."""
    import json as written

    from rich.console import Console

    with one_line_errors():
        from cosyserve_build.judge.command import judge as run

        verdict = run(url, voice, source, sentences, stream=not full, seed=seed, at_once=at_once)
    if json:
        print(written.dumps(verdict.document(), indent=1))
    else:
        Console().print(verdict.table())
    if max_wer is not None and 100 * verdict.wer > max_wer:
        print(f"failed: word error rate {verdict.wer:.1%}, must be at most {max_wer:g} %", file=sys.stderr)
        raise typer.Exit(1)


@app.command("synth-bundle")
def synth_bundle(
    out: Annotated[Path, typer.Argument(help="new folder for the bundle")],
    version: Annotated[int, typer.Option(help="CosyVoice generation")] = 2,
    size: Annotated[Size, typer.Option(help="full has the official dimensions")] = Size.tiny,
    seed: Annotated[int, typer.Option(help="of the random weights")] = 0,
) -> None:
    """Write a bundle of random weights in the official layout, for tests and benchmarks."""
    with one_line_errors():
        from cosyserve_build.synth import synth_bundle as run

        run(out, version, size.value, seed)
    print(f"{out}: CosyVoice{version} bundle of size {size.value}, random weights")


@app.command("demo-voice")
def demo_voice(
    work: Annotated[Path, typer.Argument(help="folder for corpus and checkpoints; an interrupted run resumes")],
    archive: Annotated[Path, typer.Argument(help="archive to write, with bundle and prepared weights")],
    stage: Annotated[
        list[str] | None, typer.Option(help="train only this: speaker, tokenizer, pitch, vocoder, language or flow")
    ] = None,
) -> None:
    """Train a small English voice from scratch: takes hours on two cores, needs flite and the extra `voice`."""
    with one_line_errors():
        from cosyserve_build.demo_voice.making import STAGES, make

        unknown = [one for one in stage or [] if one not in STAGES]
        if unknown:
            raise typer.BadParameter(f"{', '.join(unknown)}: expected one of {', '.join(STAGES)}", param_hint="--stage")
        make(work, archive, report=print, stages=stage or [])


@app.command("demo-bundle")
def demo_bundle(
    archive: Annotated[Path, typer.Argument(help="archive that demo-voice wrote")],
    out: Annotated[Path, typer.Argument(help="folder for the bundle; replaced if it exists")],
) -> None:
    """Extract the demo voice's bundle from its archive."""
    with one_line_errors():
        from cosyserve_build.demo_voice.packing import unpack_bundle

        unpack_bundle(archive, out)
    print(f"{out}: CosyVoice2 bundle")


@app.command("export-hf")
def export_hf(
    bundle: Annotated[Path, typer.Argument(help="CosyVoice bundle in the official layout")],
    out: Annotated[Path, typer.Argument(help="new folder for the checkpoint")],
    dtype: Annotated[Dtype, typer.Option(help="type of the tensors")] = Dtype.bfloat16,
) -> None:
    """Write the language model as a plain Hugging Face Qwen2 checkpoint."""
    with one_line_errors():
        from cosyserve_build.export_hf import export_hf as run

        run(bundle, out, dtype.value)
    print(f"{out}: Qwen2 checkpoint; its logit biases are sequence_bias in generation_config.json")


@app.command("export-gguf")
def export_gguf(
    bundle: Annotated[Path, typer.Argument(help="CosyVoice bundle in the official layout")],
    out: Annotated[Path, typer.Argument(help="new .gguf file")],
    quantise: Annotated[Quantisation, typer.Option(help="type of the matrices")] = Quantisation.q8_0,
) -> None:
    """Write the language model as a GGUF file for llama.cpp."""
    with one_line_errors():
        from cosyserve_build.export_gguf import export_gguf as run

        run(bundle, out, quantise.value)
    print(f"{out}: GGUF, {quantise.value}")


@app.command()
def configs(
    folder: Annotated[Path, typer.Argument(help="model repository")] = Path("model_repository"),
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit with 1 when a file is stale")] = False,
) -> None:
    """Render the Triton configurations of the source from the contracts."""
    from cosyserve.repository import paths

    _render(paths(folder), "make configs", check=check)


@app.command()
def docs(
    folder: Annotated[Path, typer.Argument(help="folder of the Markdown pages")] = Path("docs"),
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit with 1 when a page is stale")] = False,
) -> None:
    """Generate the tables of docs/ from the code."""
    with one_line_errors():
        from cosyserve_build.docs_tables import pages

        _render(pages(folder), "make docs", check=check)


def _render(texts: dict[Path, str], target: str, *, check: bool) -> None:
    """Write the files that are stale; with `check`, name them and exit with 1 instead."""
    stale = [path for path, text in texts.items() if not path.is_file() or path.read_text("utf-8") != text]
    if check and stale:
        print(f"stale, run `{target}`: " + ", ".join(map(str, stale)), file=sys.stderr)
        raise typer.Exit(1)
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path], "utf-8")
