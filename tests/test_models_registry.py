"""penstock models: the list, pulling from a hub (a small one of the true interface, on loopback), offline use, bad files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from penstock.models import pull, registry
from penstock.models.hub_folder import pulled
from penstock.models.registry import Card, Part
from penstock.pipeline.cli import app
from safetensors.torch import load_file, save
from typer.testing import CliRunner

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def models_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENSTOCK_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def test_every_entry_of_the_list_is_whole() -> None:
    cards = registry.cards()
    assert {"diffusion.stream", "asr.causal", "vlm.stream"} <= {c.stage for c in cards.values()}
    for card in cards.values():
        assert card.licence
        assert card.needs
        assert 0 < card.gb < 200
        for part in card.parts:
            assert part.hub.count("/") == 1
            assert all(part.pickle or f.endswith((*registry.HARMLESS, "*")) for f in part.files), part


def test_an_entry_with_a_fault_is_named(tmp_path: Path) -> None:
    table = tmp_path / "t.toml"
    table.write_text('[[model]]\nname = "x"\nstage = "s"\n')
    with pytest.raises(ValueError, match="the model 'x' lacks about, licence, gb, needs, parts"):
        registry.cards(table)


def test_what_is_not_here_says_how_to_get_it() -> None:
    with pytest.raises(
        registry.NotHere, match=r"penstock models pull sd-turbo  \(about 2.6 GB, licence: Stab"
    ):
        registry.path("sd-turbo")
    with pytest.raises(ValueError, match="unknown model 'dreamer'; there are: sd-turbo"):
        registry.card("dreamer")


def test_a_graphs_model_may_name_a_pulled_checkpoint_of_its_stage(
    models_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(registry.NotHere, match="penstock models pull whisper-tiny"):
        pulled("whisper-tiny", "asr.causal")
    folder = models_home / "whisper-tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    registry.write_manifest(folder, [registry.Held("config.json", 2, "", "openai/whisper-tiny", COMMIT)])
    assert pulled("whisper-tiny", "asr.causal") == str(folder)
    assert pulled("whisper-tiny", "asr.moonshine") == "whisper-tiny"  # another stage's
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whisper-tiny").mkdir()
    assert pulled("whisper-tiny", "asr.causal") == "whisper-tiny"  # a folder of one's own goes first


def test_only_harmless_files_are_taken() -> None:
    part = Part("a/b", ("*",))
    assert [p for p in ("m.safetensors", "c.json", "run.py", "m.bin", "m.pt", "x.pkl") if part.takes(p)] == [
        "m.safetensors",
        "c.json",
    ]
    assert Part("a/b", ("unet/*",), into="x").place("unet/m.fp16.safetensors") == "x/unet/m.safetensors"


# ---------------------------------------------------------------- a hub


class Files(dict[str, bytes]):
    """Repository/path → bytes; `broken` answers other bytes than it promises, `requests` are counted."""

    broken = False
    downloads = 0


def handler(files: Files) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/"):
                repository = path.removeprefix("/api/models/")
                its = {
                    k.removeprefix(f"{repository}/"): v for k, v in files.items() if k.startswith(repository)
                }
                siblings = [
                    {
                        "rfilename": name,
                        "size": len(data),
                        **(
                            {
                                "lfs": {
                                    "size": len(data),
                                    "sha256": hashlib.sha256(data).hexdigest(),
                                    "pointerSize": 1,
                                }
                            }
                            if name.endswith((".safetensors", ".pt"))
                            else {}
                        ),
                    }
                    for name, data in its.items()
                ]
                if not its:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "RepoNotFound")
                    self.end_headers()
                    return
                self._send(json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode(), body)
                return
            repository, _, name = path.lstrip("/").partition(f"/resolve/{COMMIT}/")
            data = files.get(f"{repository}/{name}", b"")
            if body:
                files.downloads += 1
                if files.broken and name.endswith(".safetensors"):
                    data = bytes(len(data))
            self._send(data, body)

        def _send(self, data: bytes, body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.end_headers()
            if body:
                self.wfile.write(data)

    return Handler


@pytest.fixture
def files(tmp_path: Path) -> Files:
    torch.save({"generator_ema": {"model": {"a": torch.ones(3)}}, "step": 7}, tmp_path / "g.pt")
    return Files(
        {
            "org/base/vae/config.json": b"{}",
            "org/base/vae/model.fp16.safetensors": save({"w": torch.arange(4000.0)}),
            "org/base/run.py": b"raise SystemExit",
            "org/gen/g.pt": (tmp_path / "g.pt").read_bytes(),
        }
    )


@pytest.fixture
def hub(files: Files) -> Iterator[pull.HuggingFace]:
    pytest.importorskip("huggingface_hub", reason="needs the extra: hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(files))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield pull.HuggingFace(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    made = Card(
        "test-model",
        "diffusion.stream",
        "a test",
        "MIT",
        0.1,
        "nothing",
        (
            Part("org/base", ("vae/*", "run.py")),
            Part("org/gen", ("g.pt",), name="generator.safetensors", pickle=True),
        ),
    )
    known = {**registry.cards(), made.name: made}
    monkeypatch.setattr(registry, "cards", lambda: known)
    return made


def test_a_model_is_pulled_whole_and_found_offline(card: Card, hub: pull.HuggingFace, files: Files) -> None:
    wanted = pull.wanted(card, hub)
    assert [f.place for f in wanted] == ["vae/config.json", "vae/model.safetensors", "generator.safetensors"]
    told: list[int] = []
    folder = pull.pull(card, wanted, hub, told.append)
    assert sum(told) >= files.__len__()
    assert registry.path("test-model") == folder
    assert torch.equal(load_file(folder / "vae" / "model.safetensors")["w"], torch.arange(4000.0))
    assert list(load_file(folder / "generator.safetensors")) == ["generator_ema.model.a"]  # no pickle is kept
    assert not list(folder.rglob("*.pt")) + list(folder.rglob("*.py"))
    assert registry.damaged("test-model") == []

    before = files.downloads
    pull.pull(card, pull.wanted(card, hub), hub, lambda _: None)
    assert files.downloads == before  # all were there

    (folder / "vae" / "model.safetensors").write_bytes(bytes(16))
    with pytest.raises(registry.NotHere, match="missing or not whole"):
        registry.path("test-model")
    assert registry.damaged("test-model") == ["vae/model.safetensors"]
    pull.pull(card, pull.wanted(card, hub), hub, lambda _: None)
    assert registry.damaged("test-model") == []
    assert registry.remove("test-model") > 0
    assert not folder.exists()


def test_bytes_that_are_not_those_promised_are_refused(
    card: Card, hub: pull.HuggingFace, files: Files
) -> None:
    wanted = pull.wanted(card, hub)
    files.broken = True
    with pytest.raises(ValueError, match="not those that the hub promised"):
        pull.pull(card, wanted, hub, lambda _: None)
    with pytest.raises(registry.NotHere):
        registry.path("test-model")


def test_a_pickle_with_code_is_not_read(
    card: Card, hub: pull.HuggingFace, files: Files, tmp_path: Path
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "run",))

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    files["org/gen/g.pt"] = (tmp_path / "evil.pt").read_bytes()
    with pytest.raises(ValueError, match="holds more than tensors"):
        pull.pull(card, pull.wanted(card, hub), hub, lambda _: None)
    assert not (tmp_path / "run").exists()


def test_an_unknown_repository_and_a_hub_that_is_away_are_told_in_words(
    card: Card, hub: pull.HuggingFace
) -> None:
    other = Card("x", "s", "", "", 1, "", (Part("org/none", ("*",)),))
    with pytest.raises(pull.HubUnreachable, match="org/none does not exist, or needs HF_TOKEN"):
        pull.wanted(other, hub)
    with pytest.raises(pull.HubUnreachable, match=r"cannot be reached .*copy the model's folder"):
        pull.wanted(card, pull.HuggingFace("http://127.0.0.1:9"))
    gone = Card("x", "s", "", "", 1, "", (Part("org/base", ("unet/*",)),))
    with pytest.raises(ValueError, match="none of the files unet/"):
        pull.wanted(gone, hub)


# ---------------------------------------------------------------- the command


def test_the_command_lists_and_explains(models_home: Path) -> None:
    run = CliRunner().invoke
    listed = run(app, ["models", "list"])
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in registry.cards())  # whole, in 80 columns
    told = run(app, ["models", "info", "self-forcing-1.3b"])
    assert "CC-BY-NC-SA-4.0" in told.stdout
    assert "not here" in told.stdout
    missing = run(app, ["models", "path", "sd-turbo"])
    assert missing.exit_code != 0
    assert "penstock models pull sd-turbo" in str(missing.exception)
    assert "unknown model 'nope'" in str(run(app, ["models", "info", "nope"]).exception)
