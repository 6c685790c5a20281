"""pocket-tts stepped by us is pocket-tts: frame by frame, over any grouping, beside other streams. Untrained weights."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.models import pocket_voice, registry
from penstock.models.pocket_stream import PocketState, PocketStream
from penstock.models.pocket_voice import PocketVoice
from penstock.models.tts_session import Chunk, TtsSession
from penstock.models.voice import NoVoice, SteppedVoice
from penstock.pipeline.frame import TokenFrame
from penstock.pipeline.stage import StageError
from penstock.stages.tts import StreamTts
from torch import Tensor

from .fakes import Collected, FakeContext, feed

pytest.importorskip("pocket_tts", reason="needs the extra: pocket")
torch.set_num_threads(1)

TEXT = "Well, I can see a picture that is mostly blue."
SHAPE: dict[str, Any] = {  # as the released ones are described, but small
    "flow_lm": {
        "dtype": "float32", "insert_bos_before_voice": True,
        "flow": {"depth": 2, "dim": 24},
        "transformer": {"d_model": 32, "hidden_scale": 2, "max_period": 10000, "num_heads": 4, "num_layers": 2},
        "lookup_table": {"dim": 32, "n_bins": 0, "tokenizer": "tokenizers", "tokenizer_path": ""},
    },
    "mimi": {
        "dtype": "float32", "sample_rate": 24000, "inner_dim": 8, "outer_dim": 16, "channels": 1, "frame_rate": 12.5,
        "seanet": {
            "dimension": 16, "channels": 1, "n_filters": 2, "n_residual_layers": 1, "ratios": [6, 5, 4],
            "kernel_size": 7, "residual_kernel_size": 3, "last_kernel_size": 3, "dilation_base": 2,
            "pad_mode": "constant", "compress": 2,
        },
        "transformer": {
            "d_model": 16, "num_heads": 2, "num_layers": 1, "layer_scale": 0.01, "context": 30,
            "dim_feedforward": 32, "input_dimension": 16, "output_dimensions": [16],
        },
        "quantizer": {"dimension": 8, "output_dimension": 16},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the released layout, with a speaker, random weights."""
    import yaml
    from pocket_tts.models.model_state import export_model_state
    from pocket_tts.models.tts_model import TTSModel
    from pocket_tts.modules.stateful_module import init_states
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    path = tmp_path_factory.mktemp("pocket")
    root = path / "languages" / "english"
    (root / "embeddings").mkdir(parents=True)
    pieces: list[tuple[str, float]] = [
        ("<unk>", 0.0),
        ("▁", -4.0),
        *((c, -4.0) for c in map(chr, range(33, 127))),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.save(str(root / "tokenizer.json"))
    SHAPE["flow_lm"]["lookup_table"] |= {
        "n_bins": len(pieces),
        "tokenizer_path": str(root / "tokenizer.json"),
    }
    (root / "config.yaml").write_text(yaml.safe_dump(SHAPE))
    torch.manual_seed(3)
    model = TTSModel.load_model(config=root / "config.yaml")
    for name, weight in model.named_parameters():
        weight.data.normal_(0, 0.15 if "mimi" in name or "weight" in name else 0.05)
    model.flow_lm.out_eos.bias.data.fill_(-9)  # never ends by itself, unless a test says so
    save_file({n: v.contiguous() for n, v in model.state_dict().items()}, root / "model.safetensors")
    with torch.no_grad():
        prompt = torch.randn(1, 6, 32)
        state = init_states(model.flow_lm, 1, sequence_length=6)
        model._run_flow_lm_and_increment_step(state, audio_conditioning=prompt)  # pyright: ignore[reportPrivateUsage]
    export_model_state(state, root / "embeddings" / "alba.safetensors")
    return path


@pytest.fixture(scope="module")
def voice(folder: Path) -> PocketVoice:
    return pocket_voice.load(str(folder))


def begin(voice: PocketVoice, seed: int = 5, text: str = TEXT) -> PocketState:
    state: PocketState = voice.begin_portion(text)
    state.noise.manual_seed(seed)
    return state


def steps(stream: PocketStream, state: PocketState, count: int = 1000) -> list[Tensor]:
    out: list[Tensor] = []
    while len(out) < count and (sound := stream.step(state)) is not None:
        out.append(sound)
    return out


def theirs(voice: PocketVoice, folder: Path, seed: int) -> Tensor:
    """The package's own generator, its threads and all."""
    model = voice.stream.model
    speaker = model.get_state_for_audio_prompt(folder / "languages/english/embeddings/alba.safetensors")
    torch.manual_seed(seed)
    return model.generate_audio(speaker, TEXT)


def test_our_steps_give_the_sound_of_the_packages_own_generator(voice: PocketVoice, folder: Path) -> None:
    expected = theirs(voice, folder, 5)
    state = begin(voice)
    torch.empty(1, 8).normal_(generator=state.noise)  # it draws once while it reads the text
    got = torch.cat(steps(voice.stream, state))
    assert got.shape == expected.shape
    assert len(got) > 40 * voice.stream.frame
    assert (got - expected).abs().max() <= 1e-5
    assert got.abs().max() > 1e-3


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_decoding_over_any_grouping_equals_decoding_at_once(voice: PocketVoice, sizes: list[int]) -> None:
    stream, state, latents = voice.stream, begin(voice), list[Tensor]()
    stream.step(state)
    with torch.inference_mode():
        while len(latents) < 20 and (latent := stream.latent(state)) is not None:
            latents.append(latent)

        def decoded(groups: list[int]) -> Tensor:
            fresh, at, i, out = begin(voice), 0, 0, list[Tensor]()
            while at < len(latents):
                group = latents[at : at + groups[i % len(groups)]]
                fresh.made += len(group)
                out.append(stream.decode(torch.cat(group, 1), fresh))
                at, i = at + len(group), i + 1
            return torch.cat(out)

        assert (decoded(sizes) - decoded([len(latents)])).abs().max() <= 1e-5


def test_the_cache_knows_what_reading_everything_at_once_knows(voice: PocketVoice) -> None:
    stream, state, lm = voice.stream, begin(voice), voice.stream.model.flow_lm
    tokens, latents = state.tokens, [lm.bos_emb[None, None]]
    assert tokens is not None
    for _ in range(12):
        stream.step(state)
        latents.append(state.last)
    nothing = lm.bos_emb.new_zeros(1, 0, 32)
    with torch.inference_mode():
        carried = stream._advance(state.lm, nothing, latents[-1])  # pyright: ignore[reportPrivateUsage]
        fresh = begin(voice)
        at_once = stream._advance(fresh.lm, lm.conditioner(tokens), torch.cat(latents, 1))  # pyright: ignore[reportPrivateUsage]
    assert (carried[:, -1] - at_once[:, -1]).abs().max() <= 1e-5


def test_streams_in_turns_speak_as_they_do_alone_and_write_no_weights(voice: PocketVoice) -> None:
    alone = [torch.cat(steps(voice.stream, begin(voice, seed), 12)) for seed in range(3)]
    before = {n: w.clone() for n, w in voice.stream.model.state_dict().items()}
    states, parts = [begin(voice, seed) for seed in range(3)], [list[Tensor]() for _ in range(3)]
    for _ in range(12):
        for state, part in zip(states, parts, strict=True):
            part += steps(voice.stream, state, 1)
    assert all((torch.cat(p) - a).abs().max() <= 1e-6 for p, a in zip(parts, alone, strict=True))
    assert all(torch.equal(w, before[n]) for n, w in voice.stream.model.state_dict().items())


def test_speech_ends_some_frames_after_the_model_says_so(voice: PocketVoice) -> None:
    with torch.inference_mode():
        model = voice.stream.model
        model.flow_lm.out_eos.bias.fill_(9)
        try:
            state = begin(voice)
            assert len(steps(voice.stream, state)) == 6 + state.tail
            chunks = spoken(voice, TEXT)
        finally:
            model.flow_lm.out_eos.bias.fill_(-9)
    assert "".join(c.text for c in chunks) == TEXT
    assert len(chunks) == 6 + state.tail


def spoken(voice: PocketVoice, text: str) -> list[Chunk]:
    session = TtsSession(voice)
    session.say(text)
    chunks: list[Chunk] = []
    while (chunk := session.step()) is not None:
        chunks.append(chunk)
    return chunks


def test_a_clause_comes_in_frames_of_80_ms_with_all_its_words(voice: PocketVoice) -> None:
    assert isinstance(voice, SteppedVoice)
    chunks = spoken(voice, TEXT)
    assert "".join(c.text for c in chunks) == TEXT
    assert all(0 < len(c.pcm) <= 1920 and c.pcm.dtype == np.int16 for c in chunks)
    assert sum(1 for c in chunks if c.text) >= 6


def test_cancelling_takes_no_further_step(voice: PocketVoice, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0
    step = PocketStream.step

    def counted(self: PocketStream, state: PocketState) -> Tensor | None:
        nonlocal taken
        taken += 1
        return step(self, state)

    monkeypatch.setattr(PocketStream, "step", counted)
    session = TtsSession(voice)
    session.say(TEXT)
    for _ in range(9):
        session.step()
    spoken = session.cancel(9 * 1920)
    assert 0 < len(spoken) < len(TEXT)
    assert TEXT.startswith(spoken)
    assert session.step() is None
    assert taken == 9


@pytest.mark.parametrize("text", ["", " ", "🎉", "...", "日本語", "x" * 10_000, "word " * 300])
def test_odd_text_harms_nothing(voice: PocketVoice, text: str) -> None:
    speech = voice.begin(text)
    for _ in range(3):
        assert sum(len(p.pcm) for p in speech.step()) in (0, 1920)


def test_the_stage_speaks_with_it(folder: Path) -> None:
    async def main() -> str:
        stage, out = (
            StreamTts(StreamTts.Options.model_validate({"voice": "pocket", "model": str(folder)})),
            Collected(),
        )
        stage.ctx = FakeContext()
        await stage.setup()
        await feed(stage, "text", TokenFrame(pts=0, text="Hello. ", utterance=1, end=True), out)
        await stage.close()
        frames = out.of("audio")
        assert all(f.rate_hz == 24_000 and len(f.pcm) <= 1440 for f in frames)
        return "".join(f.text for f in frames)

    assert asyncio.run(main()) == "Hello. "


def test_faults_are_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_MODELS", str(tmp_path))
    with pytest.raises(NoVoice, match=r"penstock models pull pocket-tts"):
        pocket_voice.load()
    with pytest.raises(NoVoice, match=r"speaker 'bob'.*known: alba"):
        pocket_voice.load(str(folder), "bob")
    with pytest.raises(NoVoice, match=r"lacks model\.safetensors and tokenizer\.json"):
        pocket_voice.load(str(tmp_path))
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in ("config.yaml", "tokenizer.json"):
        (bad / name).write_bytes((folder / "languages/english" / name).read_bytes())
    (bad / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(NoVoice, match="cannot be loaded"):
        pocket_voice.load(str(bad))
    (bad / "model.safetensors").write_bytes((folder / "languages/english/model.safetensors").read_bytes())
    words = (bad / "tokenizer.json").read_bytes()
    (bad / "tokenizer.json").write_bytes(b'{"truncations": {}}')
    with pytest.raises(NoVoice, match=r"bad/tokenizer\.json is damaged or no tokenizer"):
        pocket_voice.load(str(bad))
    (bad / "tokenizer.json").write_bytes(words)
    other = tmp_path / "other.safetensors"
    from safetensors.torch import save_file

    save_file({"transformer.layers.0.self_attn/offset": torch.zeros(1, dtype=torch.long)}, other)
    with pytest.raises(NoVoice, match="another model"):
        pocket_voice.load(str(bad), str(other))

    async def main() -> None:
        stage = StreamTts(
            StreamTts.Options.model_validate({"voice": "pocket", "model": str(tmp_path / "none")})
        )
        stage.ctx = FakeContext()
        with pytest.raises(StageError, match="node"):
            await stage.setup()

    asyncio.run(main())


def test_a_pulled_checkpoint_is_checked_and_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_MODELS", str(tmp_path))
    card, held, below = registry.card("pocket-tts"), list[registry.Held](), tmp_path / "pocket-tts"
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder).as_posix()
        if file.is_file() and (card.parts[0].takes(path) or path.endswith(".yaml")):
            target = below / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
            held.append(registry.Held(path, target.stat().st_size, registry.sha256(target), "hub", "c"))
    registry.write_manifest(below, held)
    assert {Path(h.path).name for h in held} == {
        "alba.safetensors",
        "config.yaml",
        "model.safetensors",
        "tokenizer.json",
    }
    pocket_voice._weights.cache_clear()  # pyright: ignore[reportPrivateUsage]
    assert pocket_voice.load().portions(TEXT) == [TEXT]
    weights = below / "languages/english/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert registry.damaged("pocket-tts") == ["languages/english/model.safetensors"]
    weights.write_bytes(b"short")
    pocket_voice._weights.cache_clear()  # pyright: ignore[reportPrivateUsage]
    pocket_voice.load.cache_clear()
    with pytest.raises(NoVoice, match=r"not whole.*penstock models pull"):
        pocket_voice.load()
