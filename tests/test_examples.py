"""The graphs that the documentation shows are accepted as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Collected
from penstock.pipeline.compiler import load
from penstock.pipeline.frame import VideoFrame
from penstock.pipeline.pixels import i420_from_rgb, to_rgb

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_compiles(path: Path) -> None:
    assert load(path).name == path.stem


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.stem
)
def test_whole_graphs_on_a_page_compile(page: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for n, text in enumerate(block for block in blocks if block.startswith("penstock: 1")):
        file = tmp_path / f"{n}.yaml"
        file.write_text(text)
        load(file)


def test_the_readmes_stage_does_what_it_says_to_pictures_of_both_formats() -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec("\n".join(code), names)
    stage, out = names["Mirror"](), Collected()
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, :32] = (200, 40, 40)
    stage.process("video", VideoFrame(pts=1, image=image), out)
    stage.process("video", VideoFrame(pts=2, image=i420_from_rgb(image), format="i420"), out)
    for flipped in out.of("video"):
        assert np.allclose(to_rgb(flipped), image[:, ::-1], atol=12)


def test_files_that_the_readme_names_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:pipeline|stages|models|transport|deploy|docs)/[\w./-]*)`", text))
    named |= {
        link for link in re.findall(r"\]\(([\w./-]+?)(?:#[\w-]*)?\)", text) if not link.startswith("http")
    }
    assert len(named) > 20
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
