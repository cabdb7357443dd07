"""deploy/README.md: the files that it names exist, and its commands have their options."""

from __future__ import annotations

import re
import shlex

import pytest
from manifests import DEPLOY, ROOT
from test_manifests import parse, status

from cosyserve.cli import app

TEXT = (DEPLOY / "README.md").read_text("utf-8")
BLOCKS = "".join(re.findall(r"```sh\n(.*?)```", TEXT, re.S)).replace("\\\n", "")
OURS = [line for line in BLOCKS.splitlines() if line.startswith("cosyserve ")]
PATHS = set(re.findall(r"\b(?:deploy|docker)/[\w./-]*\w", TEXT))
LISTED = [line.split()[0].rstrip("/") for line in TEXT.splitlines() if re.match(r"    \w[\w./-]* {2,}", line)]


@pytest.mark.parametrize("line", OURS)
def test_its_commands_parse(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0])
    assert parse(app, words[1:])


@pytest.mark.parametrize("path", sorted(PATHS))
def test_files_that_it_names_are_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_folder_is_listed() -> None:
    assert LISTED
    for name in LISTED:
        assert (DEPLOY / name).exists(), name
    assert {name.partition("/")[0] for name in LISTED} == {path.name for path in DEPLOY.iterdir()} - {"README.md"}


async def test_it_calls_the_gateway_where_it_answers() -> None:
    (path,) = re.findall(r"curl http://127\.0\.0\.1:8080(\S+)", TEXT)
    assert await status(path, method="POST") not in (404, 405)
