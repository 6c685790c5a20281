"""The token file, and `penstock token`."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.pipeline.cli import app
from penstock.pipeline.clock import SECOND
from penstock.pipeline.stage import StageError
from penstock.pipeline.tokens import TokenFile
from penstock.transport.access import Access
from typer.testing import CliRunner

NOW = 1_800_000_000 * SECOND


class Wall:
    """A calendar that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json", Wall())


# ---------------------------------------------------------------- the file


def test_a_token_is_found_until_it_expires_or_is_revoked(tokens: TokenFile):
    secret = tokens.create("kitchen", ("talk", "view"), 3600, sessions=2, longest_s=60, rate=5)
    tokens.load()
    found = tokens.find(secret)
    assert found is not None
    assert (found.name, found.scopes, found.sessions) == ("kitchen", ("talk", "view"), 2)
    assert secret not in tokens.path.read_text()
    assert hashlib.sha256(secret.encode()).hexdigest() in tokens.path.read_text()
    assert stat.S_IMODE(tokens.path.stat().st_mode) == 0o600
    tokens._wall.now += 3600 * SECOND  # type: ignore[reportPrivateUsage, reportFunctionMemberAccess]
    assert tokens.find(secret) is None
    assert not tokens.is_known("kitchen")
    lasting = tokens.create("hall", ("admin",))
    tokens.refresh()
    assert tokens.find(lasting) is not None
    tokens.revoke("hall")
    tokens.refresh()
    assert tokens.find(lasting) is None


def test_names_are_unique_and_an_expired_one_is_replaced(tokens: TokenFile):
    tokens.create("kitchen", ("talk",), 60)
    with pytest.raises(StageError, match="has a token named 'kitchen'"):
        tokens.create("kitchen", ("talk",))
    with pytest.raises(StageError, match="lower case letters"):
        tokens.create("../Kitchen", ("talk",))
    with pytest.raises(StageError, match="it has: kitchen"):
        tokens.revoke("hall")
    tokens._wall.now += 61 * SECOND  # type: ignore[reportPrivateUsage, reportFunctionMemberAccess]
    tokens.create("kitchen", ("view",))
    assert [t.scopes for t in tokens.tokens()] == [("view",)]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"tokens": [{"id": "x"}]}', '{"penstock_tokens": 2}', '{"tokens": 5}']
)
def test_a_broken_file_is_told_and_does_not_void_what_runs(tokens: TokenFile, text: str):
    secret = tokens.create("kitchen", ("talk",))
    tokens.load()
    tokens.path.write_text(text)
    with pytest.raises(StageError, match="is no token file"):
        TokenFile(tokens.path, Wall()).load()
    tokens.refresh()
    assert tokens.find(secret) is not None, "a slip of the pen locks nobody out"
    tokens.path.unlink()
    tokens.refresh()
    assert tokens.find(secret) is None, "a file that is gone lets nobody in"


def test_a_file_that_all_may_write_is_refused(tokens: TokenFile):
    tokens.create("kitchen", ("talk",))
    os.chmod(tokens.path, 0o666)
    with pytest.raises(StageError, match="can be written by everybody"):
        tokens.load()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    file = TokenFile(tmp_path_factory.mktemp("tokens") / "tokens.json", Wall())
    file.create("kitchen", ("talk",))
    file.load()
    return file


@given(st.text(max_size=90) | st.from_regex(r"pst_[0-9a-f]{8}_[0-9a-f]{64}", fullmatch=True))
def test_no_invented_token_is_let_in(kept: TokenFile, given_secret: str):
    access = Access("the one", kept)
    if given_secret != "the one":
        assert access.identify(given_secret, "192.0.2.1") is None


def test_a_token_with_one_wrong_digit_is_nobodys(tokens: TokenFile):
    secret = tokens.create("kitchen", ("talk",))
    tokens.load()
    for at in range(0, len(secret), 7):
        wrong = secret[:at] + ("0" if secret[at] != "0" else "1") + secret[at + 1 :]
        assert tokens.find(wrong) is None
    assert tokens.find(secret.upper()) is None
    assert tokens.find(secret + "\n") is None


# ---------------------------------------------------------------- the command line


def test_tokens_are_made_listed_and_revoked(tmp_path: Path):
    run, path = CliRunner(), tmp_path / "made/tokens.json"
    made = run.invoke(
        app, ["token", "create", "kitchen", "--scope", "view", "--expires", "30d", "--file", str(path)]
    )
    assert made.exit_code == 0, made.output
    secret = made.stdout.split()[0]
    assert secret.startswith("pst_")
    listed = run.invoke(app, ["token", "list", "--tokens", str(path)])
    assert "kitchen" in listed.stdout
    assert secret not in listed.stdout
    assert run.invoke(app, ["token", "revoke", "kitchen", "--file", str(path)]).exit_code == 0
    assert json.loads(path.read_text())["tokens"] == []
    wrong = run.invoke(app, ["token", "create", "x", "--scope", "root", "--file", str(path)])
    assert wrong.exit_code == 2
    assert "'root' is no scope" in wrong.output
