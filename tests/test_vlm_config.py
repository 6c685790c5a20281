"""A config.json that leaves sizes to transformers' defaults is refused before anything is built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from penstock.models.vlm_config import ModelError, read_kind
from tiny_vlms import write_checkpoint

pytest.importorskip("transformers", reason="the package transformers is not installed")
from penstock.models import vlm_hub


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smol")
    write_checkpoint(folder, "smolvlm")
    return folder


def changed(config: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    """A copy with the value at "key.key"; without that key where the value is Ellipsis."""
    key, _, rest = where.partition(".")
    copy = dict(config)
    if rest:
        copy[key] = changed(copy[key], rest, value)
    elif value is ...:
        del copy[key]
    else:
        copy[key] = value
    return copy


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("model_type", ..., "model_type is missing; accepted: qwen2_5_vl, qwen3_vl, "),
        ("model_type", "bert", "model_type is 'bert'; accepted: qwen2_5_vl, "),
        ("model_type", ["smolvlm"], r"model_type is \['smolvlm'\]; accepted: "),
        (
            "text_config",
            ...,
            "text_config is missing; accepted: an object with hidden_size, num_hidden_layers",
        ),
        ("text_config", "llama", "text_config is 'llama'; accepted: an object"),
        ("text_config", {}, "text_config is {}; accepted: an object"),
        ("text_config.model_type", "gpt2", r"text_config\.model_type is 'gpt2'; accepted: 'llama'"),
        ("text_config.hidden_size", ..., r"text_config\.hidden_size is missing; accepted: a whole number"),
        ("text_config.hidden_size", True, r"text_config\.hidden_size is True; accepted: a whole number"),
        ("text_config.num_hidden_layers", 10**9, "is 1000000000; accepted: a whole number from 1 to 512"),
        ("vision_config", ..., "vision_config is missing; accepted: an object"),
    ],
)
def test_a_config_without_its_sizes_is_refused_by_file_and_key(
    smol: Path, tmp_path: Path, where: str, value: Any, told: str
) -> None:
    config = json.loads((smol / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(changed(config, where, value)))
    with pytest.raises(ModelError, match=rf"config\.json: .*{told}") as refused:
        read_kind(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["text_config.vocab_size", "text_config.intermediate_size", "vision_config"])
def test_a_model_far_larger_than_its_weights_is_never_built(
    smol: Path, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def build(*_: Any, **__: Any) -> None:
        pytest.fail("it was built")

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", build)
    shutil.copytree(smol, tmp_path, dirs_exist_ok=True)
    config = json.loads((smol / "config.json").read_text())
    value = {"model_type": "smolvlm_vision"} if key == "vision_config" else ...
    (tmp_path / "config.json").write_text(json.dumps(changed(config, key, value)))
    with pytest.raises(ModelError, match=r"config\.json: describes a model of [\d.,]+ million weights, but "):
        vlm_hub.HubVlm(tmp_path)


def test_the_first_qwen_checkpoints_have_the_text_models_keys_at_the_top(tmp_path: Path) -> None:
    flat = {
        "model_type": "qwen2_5_vl",
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "vision_config": {"depth": 32},
    }
    (tmp_path / "config.json").write_text(json.dumps(flat))
    assert read_kind(tmp_path) == "qwen2_5_vl"
    (tmp_path / "config.json").write_text(json.dumps(changed(flat, "hidden_size", ...)))
    with pytest.raises(ModelError, match=r"config\.json: hidden_size is missing"):
        read_kind(tmp_path)
