"""Measure how settings and precisions affect quality: word error rate, defects at joins, and time to first audio.

    python loadtest/lab/quality.py --weights weights weights-int8 --source slt

Prints rows for each folder, on each runtime that it was prepared for: full attention, then streaming with each first
hop. All rows have the same sentences with the same seeds, one after another. Chunks end on one grid for any hop, so the
streaming rows of one folder and runtime have the same samples with joins at other places.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cosyserve.errors import CosyServeError
from cosyserve.serve import Server, free_port
from cosyserve.weights import Weights
from cosyserve_build.judge.command import judge
from cosyserve_build.judge.verdict import cells

Row = dict[str, Any]
"""Settings, and `Verdict.figures` measured with them."""


@dataclass(frozen=True)
class Form:
    """Weights on one runtime.

    Attributes:
        name: label in the table.
        weights: prepared weights.
        settings: of a server that uses this runtime.
    """

    name: str
    weights: Path
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """Measurement of rows.

    Attributes:
        sentences: number of sentences in each row.
        voice: name of a registered voice; None for the server's first.
    """

    sentences: int
    voice: str | None

    def source(self, voice: str) -> Row:
        """Measure a voice of flite, the upper bound of quality."""
        verdict = judge("", None, voice, self.sentences, stream=False, seed=0, at_once=1)
        return {"weights": f"flite {voice}", "mode": "-", "first_hop": None} | verdict.figures()

    def served(self, form: Form, first_hops: list[int]) -> Iterator[Row]:
        """Measure a server with each first hop; with the first one also in full attention, which ignores hops."""
        for hop in first_hops:
            with _server(form, hop) as url:
                for stream in (True,) if hop != first_hops[0] else (False, True):
                    verdict = judge(url, self.voice, None, self.sentences, stream=stream, seed=0, at_once=1)
                    setting = {"mode": "stream", "first_hop": hop} if stream else {"mode": "full", "first_hop": None}
                    yield {"weights": form.name} | setting | verdict.figures()


@contextmanager
def _server(form: Form, first_hop: int) -> Iterator[str]:
    """Run a server, and yield its gRPC address."""
    settings = form.settings | {"first_hop": str(first_hop)}
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        server = Server(
            form.weights, grpc_port=free_port(), metrics_port=free_port(), settings=settings, log=Path(log.name)
        )
        with server.running():
            yield f"{server.host}:{server.grpc_port}"


def forms(folder: Path) -> Iterator[Form]:
    """Yield a folder with each runtime that it was prepared for and that is installed."""
    manifest = Weights(folder).manifest
    if manifest["graphs"]:
        yield Form(f"{folder.name}, onnx", folder)
    if "llm.torch.safetensors" in manifest["files"]:
        yield Form(f"{folder.name}, torch", folder, {"runtime": "torch"})
    if "llm.gguf" in manifest["files"] and importlib.util.find_spec("llama_cpp"):
        yield Form(f"{folder.name}, gguf", folder, {"llm_runtime": "gguf"})


def table(rows: list[Row]) -> Table:
    """Format all rows as a table."""
    shown = Table("weights", "mode", "first hop")
    for name in cells(rows[0]):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(row["weights"], row["mode"], str(row["first_hop"] or "-"), *cells(row).values())
    return shown


def measured(options: argparse.Namespace) -> Iterator[Row]:
    """Measure row after row."""
    rows = Rows(options.sentences, options.voice)
    yield from map(rows.source, options.source)
    for folder in options.weights:
        for form in forms(folder):
            yield from rows.served(form, options.first_hops)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, nargs="+", required=True)
    parser.add_argument("--first-hops", type=int, nargs="+", default=[25, 15, 10], help="speech tokens")
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--voice", help="name of a registered voice")
    parser.add_argument("--source", nargs="*", default=[], help="voices of flite, as upper bound of quality")
    parser.add_argument("--json", type=Path, help="file for the rows")
    options = parser.parse_args()
    rows: list[Row] = []
    try:
        for row in measured(options):
            rows.append(row)
            print(f"{row['weights']}, {row['mode']}, first hop {row['first_hop']}: {row['wer']:.1%}", file=sys.stderr)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    except CosyServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    Console(width=None if sys.stdout.isatty() else 240).print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
