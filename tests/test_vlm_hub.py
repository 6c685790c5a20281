"""Streaming on checkpoints of the true format: the same words as the model's own forward pass over the whole."""

# pyright: reportPrivateUsage=false
# the checkpoint's own class is fed what ours works out for itself

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from penstock.models.vlm_memory import Memory
from penstock.models.vlm_session import Job, Runner, Say, Take, Talk, VlmSession, importance
from safetensors.torch import load_file, save_file
from tiny_vlms import EACH, FAMILIES, write_checkpoint
from torch import Tensor

pytest.importorskip("transformers", reason="the package transformers is not installed")
from penstock.models.vlm_hub import HubVlm, ModelError, fetch

ROOM = Memory(tokens=160, text=40)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: tmp_path_factory.mktemp(family) for family in FAMILIES}


def loaded(folders: dict[str, Path], family: str) -> HubVlm:
    folder = folders[family]
    if not (folder / "config.json").exists():
        write_checkpoint(folder, family)
    return HubVlm(folder, tokens=6)


def images(n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (n, 3, 90, 120), generator=generator, dtype=torch.uint8)


def finish(runner: Runner, *jobs: Job) -> list[Any]:
    """Run jobs together until each has ended; their last results."""
    last: dict[int, Any] = {}
    left = list(enumerate(jobs))
    while left:
        results = runner.forward([j for _, j in left])
        going: list[tuple[int, Job]] = []
        for (i, job), result in zip(left, results, strict=True):
            last[i] = result
            if not runner.commit(job, result):
                going.append((i, job))
        left = going
    return [last[i] for i in range(len(jobs))]


def vanilla(model: HubVlm, folder: Path, pictures: Tensor, question: str) -> Tensor:
    """Logits of the checkpoint's own class, on all at once, in a copy that nothing of ours has touched."""
    from transformers import AutoModelForImageTextToText

    its: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    x = torch.nn.functional.interpolate(pictures.float(), model.size, mode="bilinear", antialias=True)
    x = (x.round() / 255 - model._mean) / model._std
    marks = [m.tolist() for m in (model._before, model._after)]
    config, n = (
        its.config,
        model.look(pictures[:1], pictures[:1])[0].tokens.shape[1] - len(marks[0] + marks[1]),
    )
    name = "video_token" if model.kind == "llava_onevision" else "image_token"
    image = getattr(config, f"{name}_id", None) or getattr(config, f"{name}_index")
    frame = [*marks[0], *[image] * n, *marks[1]]
    ids = torch.tensor([[*model.system.tolist(), *frame * len(x), *model.question(question).tolist()]])
    types = (ids == image).int()
    if model.kind.startswith("qwen"):
        grid = torch.tensor([[1, *(s // model._patch for s in model.size)]] * len(x))
        more = {"pixel_values": model._patches(x), "image_grid_thw": grid, "mm_token_type_ids": types}
    elif model.kind == "smolvlm":
        more = {"pixel_values": x[None]}
    elif model.kind == "llava_onevision":
        more = {"pixel_values_videos": x[:, None]}
    else:
        more = {"pixel_values": x, "token_type_ids": types}
    with torch.no_grad():
        return its(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits[0, -1]


@pytest.mark.parametrize("family", EACH)
def test_a_stream_in_chunks_says_what_the_model_says_of_the_whole(
    folders: dict[str, Path], family: str
) -> None:
    model = loaded(folders, family)
    runner, session, pictures = Runner(model, chunk=4), VlmSession(model, ROOM), images(2)
    for i, image in enumerate(pictures):
        finish(runner, Take(session, image=image, at=i))
    talk = Talk(session)
    (result,) = finish(runner, Say(talk, model.question("what do you see"), tap=True))
    whole = vanilla(model, folders[family], pictures, "what do you see")
    assert torch.allclose(result.logits, whole, atol=1e-4)
    # where it looked: weights over the newest picture only
    assert talk.sight is not None
    weights, sure = importance(talk.sight, result.looks)
    assert weights.shape == talk.sight.picture.grid
    assert 0 <= sure <= 1
    assert float(weights.max()) > 0


@pytest.mark.parametrize("family", ["qwen2_5_vl", pytest.param("qwen3_vl", marks=pytest.mark.slow)])
def test_sessions_in_one_pass_equal_sessions_apart_and_a_pass_may_run_again(
    folders: dict[str, Path], family: str
) -> None:
    model = loaded(folders, family)
    logits: dict[bool, list[Tensor]] = {}
    for together in (False, True):
        runner = Runner(model, chunk=4)
        sessions = [VlmSession(model, ROOM) for _ in range(3)]
        for i in range(3):
            takes = [Take(s, image=images(1, 10 * i + n)[0], at=i) for n, s in enumerate(sessions)]
            if together:
                runner.forward(takes)  # thrown away, as a pool may
                finish(runner, *takes)
            else:
                for take in takes:
                    finish(runner, take)
        talks = [Talk(s) for s in sessions]
        texts = ("what do you see", "is it red", "one two")
        says = [Say(t, model.question(q)) for t, q in zip(talks, texts, strict=True)]
        if together:
            runner.forward(says)
            more = Take(sessions[0], image=images(1, 99)[0], at=9)  # a picture beside answers
            results = finish(runner, says[1], says[2], more)[:2]
            results = [*finish(runner, says[0]), *results]
            # the picture that came meanwhile is not in the branch of a question asked before it
            logits[True] = [r.logits for r in results[1:]]
        else:
            logits[False] = [r.logits for r in [finish(runner, s)[0] for s in says][1:]]
    for a, b in zip(logits[False], logits[True], strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_a_picture_given_up_half_way_leaves_nothing(folders: dict[str, Path]) -> None:
    model = loaded(folders, "qwen2_5_vl")
    runner = Runner(model, chunk=4)
    clean, cut = VlmSession(model, ROOM), VlmSession(model, ROOM)
    finish(runner, Take(clean, image=images(1)[0]), Take(cut, image=images(1)[0]))
    half = Take(cut, image=images(1, 5)[0], at=1)
    runner.commit(half, runner.forward([half])[0])
    assert cut.cache.unfinished
    finish(runner, Take(clean, image=images(1, 6)[0], at=2), Take(cut, image=images(1, 6)[0], at=2))
    question = model.question("what do you see")
    a, b = finish(runner, Say(Talk(clean), question), Say(Talk(cut), question))
    assert torch.allclose(a.logits, b.logits, atol=1e-4)


@pytest.mark.parametrize("family", EACH)
def test_dropping_tokens_keeps_those_with_most_attention_and_all_markers(
    folders: dict[str, Path], family: str
) -> None:
    model = loaded(folders, family)
    picture = model.look(images(1), images(1))[0]
    assert picture.scores is not None
    kept = picture.keep(0.5)
    assert kept is not None
    visual = picture.scores.isfinite()
    assert set(torch.nonzero(~visual).flatten().tolist()) <= set(kept.tolist())
    assert int(visual[kept].sum()) == max(1, round(int(visual.sum()) * 0.5))
    gone = [i for i in range(len(visual)) if i not in set(kept.tolist())]
    if gone:
        assert picture.scores[gone].max() <= picture.scores[kept].min()
    assert picture.keep(1.0) is None
    session = VlmSession(model, ROOM)
    runner = Runner(model)
    finish(runner, Take(session, image=images(1)[0], share=0.5))
    assert session.cache.window_tokens == len(kept)


def test_evicted_pictures_are_kept_and_join_an_answer(folders: dict[str, Path]) -> None:
    model = loaded(folders, "qwen2_5_vl")
    runner = Runner(model)
    read: list[int] = []
    for recall in (0, 2):
        session = VlmSession(model, Memory(tokens=80, text=8, blocks=8, recall=recall, scorer="recent"))
        for i in range(9):
            finish(runner, Take(session, image=images(1, i)[0], at=i))
        assert session.store is not None
        assert len(session.store) >= 2
        picture = session.cache.window[-1].tokens
        talk = Talk(session)
        finish(runner, Say(talk, model.question("what do you see")))
        read.append(talk.fill)
        session.close()
    assert read[1] - read[0] == 2 * picture


def test_a_camera_that_changes_its_size_is_looked_at_as_it_is(folders: dict[str, Path]) -> None:
    model = loaded(folders, "smolvlm")
    runner, session, other = Runner(model), VlmSession(model, ROOM), VlmSession(model, ROOM)
    finish(runner, Take(session, image=images(1)[0]), Take(other, image=images(1)[0]))
    small = torch.zeros(3, 20, 30, dtype=torch.uint8)
    # of two sessions in one pass only one has changed; what waits to be merged has the old size
    finish(runner, Take(session, image=small, at=1, merged=images(1, 2)[0]), Take(other, image=small, at=1))
    a, b = finish(runner, *(Say(Talk(s), model.question("one")) for s in (session, other)))
    assert torch.allclose(a.logits, b.logits, atol=1e-4)


def test_what_cannot_be_loaded_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a folder nor a hub id"):
        fetch("nowhere")
    with pytest.raises(ModelError, match=r"no config\.json"):
        HubVlm(tmp_path)
    text = '"text_config": {"hidden_size": 64, "num_hidden_layers": 3}, "vision_config": {"hidden_size": 32}'
    (tmp_path / "config.json").write_text(f'{{"model_type": "smolvlm", {text}}}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"code")
    with pytest.raises(ModelError, match="safetensors"):
        HubVlm(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("model.safetensors", b"half of it", r"model\.safetensors: truncated or not safetensors"),
        ("config.json", b'{"model_type": "smol', r"config\.json: cannot be read: Unterminated string"),
        ("config.json", b"[1]", r"config\.json: cannot be read: holds list"),
        ("tokenizer.json", None, "no tokenizer there: it has none of tokenizer.json"),
        ("tokenizer.json", b'{"version": ', "its tokenizer cannot be read: Expecting value"),
        ("chat_template.jinja", b"{% for", "its chat template cannot be used"),
        ("preprocessor_config.json", b'{"image_mean": "half"}', "image_mean is 'half'"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(
    folders: dict[str, Path], tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    loaded(folders, "smolvlm")
    shutil.copytree(folders["smolvlm"], tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=told) as refused:
        HubVlm(tmp_path)
    assert "\n" not in str(refused.value)


def test_weights_that_are_missing_or_of_another_shape_are_not_filled_with_noise(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    loaded(folders, "smolvlm")
    shutil.copytree(folders["smolvlm"], tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    head = weights.pop("lm_head.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, the first: lm_head\.weight"):
        HubVlm(tmp_path)
    save_file(weights | {"lm_head.weight": head[:9]}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"lm_head\.weight is \(9, 64\), but config\.json asks for \(200, 64\)"
    ):
        HubVlm(tmp_path)
