"Handwriting: sources, splits, damaged files."
import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from vlnotes.glyphs import MNIST_FILES, SPLITS, Glyphs, below, bits, chance, glyphs, key, mnist, read_idx, states


def idx(array): return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist_files():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (70, 28, 28), np.uint8)
    y = (np.arange(70) % 10).astype(np.uint8)
    return dict(zip(MNIST_FILES, map(idx, (x[:50], y[:50], x[50:], y[50:])))), x, y


def test_random_numbers_depend_on_their_address_alone():
    st = states(key(1, "train"), np.arange(100))
    many = below(1000, st[:, None], 3, np.arange(5))
    assert many[37, 2] == below(1000, states(key(1, "train"), [37]), 3, 2)[0]
    assert (bits(st, 1, 0) != bits(st, 2, 0)).all() and (states(key(2, "train"), np.arange(100)) != st).all()
    assert len(np.unique(bits(st[:, None], 4, np.arange(50)))) == 5000


def test_random_numbers_are_even_and_independent():
    st = states(key(0), np.arange(40000))
    a, b = below(4, st, 0, 0), below(4, st, 0, 1)
    joint = np.bincount(4 * a + b, minlength=16)
    assert abs(joint - 2500).max() < 5 * 2500**.5
    assert abs(chance(.2, st, 1, 0).mean() - .2) < 5 * (.16 / 40000)**.5
    assert not chance(0., st, 1, 0).any() and chance(1., st, 1, 0).all()


def test_digits_look_like_the_source():
    from sklearn.datasets import load_digits
    g, d = glyphs("digits"), load_digits()
    assert g.images.shape == (1797, 28, 28) and g.images.dtype == np.uint8 and g.images.max() == 255
    assert (g.labels == d.target).all() and g.images[:, :4].max() == g.images[:, :, -4:].max() == 0
    small = g.images[:, 4:24, 4:24].reshape(-1, 4, 5, 4, 5).mean((2, 4))  # five pixels cover two of the source's
    source = d.images.reshape(-1, 4, 2, 4, 2).mean((2, 4)) * 255 / 16
    assert np.corrcoef(small.ravel(), source.ravel())[0, 1] > .99


def test_splits_share_no_glyph_and_hold_every_digit():
    g = glyphs()
    parts = [g.split(s) for s in SPLITS]
    assert len(np.unique(np.concatenate([p.index for p in parts]))) == sum(map(len, parts)) == 1797
    for p, share in zip(parts, (.7, .15, .15)):
        n = np.bincount(p.labels, minlength=10) / np.bincount(g.labels)
        assert abs(n - share).max() < .01
        assert (p.images == g.images[p.index]).all()
    assert (g.split("val").index == g.split("val").index).all() and len(np.intersect1d(g.split("val").index, g.split("val", 24).index)) < 100


def test_no_picture_is_in_two_splits():
    g = glyphs()
    seen = [{im.tobytes() for im in g.split(s).images} for s in SPLITS]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_files(tmp_path, mnist_files, zipped):
    files, x, y = mnist_files
    raw = tmp_path / "MNIST" / "raw"  # torchvision's layout
    raw.mkdir(parents=True)
    for n, b in files.items(): (raw / (n + ".gz" * zipped)).write_bytes(gzip.compress(b) if zipped else b)
    for source, root in ("mnist", tmp_path), ("torchvision", tmp_path), (tmp_path, None), (str(raw), None):
        g = glyphs(source, root)
        assert (g.images == x).all() and (g.labels == y).all()
    assert (g.split("test").index == np.arange(50, 70)).all() and len(g.split("train")) == 40 and len(g.split("val")) == 10


def test_mnist_missing_or_damaged(tmp_path, mnist_files):
    files, x, y = mnist_files
    for n, b in files.items(): (tmp_path / n).write_bytes(b)
    (tmp_path / MNIST_FILES[3]).unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels.*vlnotes data mnist"): mnist(tmp_path)
    (tmp_path / MNIST_FILES[3]).write_bytes(idx(y[:3]))
    with pytest.raises(ValueError, match="not MNIST"): mnist(tmp_path)
    (tmp_path / MNIST_FILES[3]).write_bytes(files[MNIST_FILES[3]][:-1])
    with pytest.raises(ValueError, match="t10k-labels.*not a whole IDX"): mnist(tmp_path)


@pytest.mark.parametrize("data", [b"", b"\0\0\x08", b"\0\0\x08\x03\0\0", b"\0\0\x08\x00" + b"1" * 9, b"\x7fELF" + b"0" * 99, b"\0\0\x08\x01\xff\xff\xff\xff1",
                                  gzip.compress(b"hello" * 9, mtime=0), gzip.compress(b"x" * 999, mtime=0)[:20]], ids=range(8))
def test_not_idx(tmp_path, data):
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(ValueError, match="not a whole IDX|damaged gzip"): read_idx(tmp_path / "f")


def test_pictures(tmp_path):
    g = glyphs()
    for k in range(20):
        sub = tmp_path / ("zero one two three four five six seven eight nine".split()[g.labels[k]] if k % 2 else str(g.labels[k]))
        sub.mkdir(exist_ok=True)
        Image.fromarray(g.images[k]).save(sub / f"{k}.png")
    own = glyphs(tmp_path)
    assert sorted(own.labels) == sorted(g.labels[:20]) and {i.tobytes() for i in own.images} == {i.tobytes() for i in g.images[:20]}
    (tmp_path / "0" / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match="broken.png is not a picture"): glyphs(tmp_path)


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="neither MNIST"): glyphs(tmp_path)
    with pytest.raises(FileNotFoundError, match="vlnotes data mnist"): glyphs("mnist", tmp_path / "no")
    with pytest.raises(FileNotFoundError, match="no folder"): glyphs(tmp_path / "no")
    with pytest.raises(ValueError, match="nearest is 'digits'"): glyphs("digit")
    with pytest.raises(ValueError, match="no split 'trian'; the nearest is 'train'"): glyphs().split("trian")
    assert glyphs(g := Glyphs(*(np.zeros((0, 28, 28), np.uint8), np.zeros(0, int), np.zeros(0, int)))) is g
