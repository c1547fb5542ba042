"Data: every kind of picture and every kind of damage; each sample once; what is skipped is counted."
import json
import os
import pickle
import random
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_toys import coded, ids, noise, one, picture, tar
from PIL import Image
from torch.utils.data import DataLoader

from vlnotes.data import Sample, Skipped, StreamDataset, open_image, stream
from vlnotes.sources import expand, read_captions


# pictures

@pytest.mark.parametrize("mode,form", [("RGB", "PNG"), ("RGB", "JPEG"), ("L", "PNG"), ("L", "JPEG"), ("1", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "PNG"), ("LA", "PNG"),
                                       ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("RGB", "WEBP"), ("RGBA", "WEBP"), ("RGB", "BMP"), ("RGB", "TIFF"), ("RGB", "PPM"), ("YCbCr", "JPEG"),
                                       ("I;16", "PNG"), ("I;16", "TIFF"), ("I", "TIFF"), ("F", "TIFF"), ("LAB", "TIFF")])
def test_every_mode_is_rgb(mode, form, tmp_path):
    im = Image.new(mode, (5, 4))
    (tmp_path/"a.png").write_bytes(raw := coded(im, form))
    for src in (raw, tmp_path/"a.png", str(tmp_path/"a.png")):
        out = open_image(src)
        assert out.mode == "RGB" and out.size == (5, 4)


def test_cmyk_colours():
    red = open_image(coded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)).getpixel((3, 3))
    assert red[0] > 220 and max(red[1:]) < 60


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(form):
    a = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    out = np.asarray(open_image(coded(Image.fromarray(a), form)))[..., 0].ravel()
    assert out[0] == 0 and out[-1] == 255 and (np.diff(out.astype(int)) >= 0).all() and len(set(out)) == 256
    dark = np.asarray(open_image(coded(Image.fromarray(np.full((2, 2), 257, np.uint16)), form)))
    assert dark.max() == 1 # by the range of the type, not of the picture


def test_float_and_wide_integers():
    f = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    assert np.asarray(open_image(coded(Image.fromarray(f), "TIFF"))).max() == 255
    f[0, 0] = np.nan
    open_image(coded(Image.fromarray(f), "TIFF"))
    i = np.array([[-100, 0], [50_000, 1_000_000]], np.int32)
    out = np.asarray(open_image(coded(Image.fromarray(i), "TIFF")))[..., 0]
    assert out[0, 0] == 0 and out[1, 1] == 255


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animated_gives_the_first_frame(form):
    frames = [Image.new("RGB", (8, 8), c) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    r, g, b = open_image(coded(frames[0], form, save_all=True, append_images=frames[1:])).getpixel((4, 4))
    assert r > 240 and g < 20 and b < 20


def test_one_pixel(): assert [open_image(coded(Image.new(m, (1, 1)), f)).size for m, f in (("L", "PNG"), ("RGB", "JPEG"), ("P", "GIF"), ("I;16", "PNG"))] == [(1, 1)] * 4


@pytest.mark.parametrize("turn,corner", [(1, (0, 0)), (3, (7, 5)), (6, (5, 0)), (8, (0, 7))])
def test_exif_rotation(turn, corner):
    im = Image.new("RGB", (8, 6))
    im.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = turn
    out = open_image(coded(im, "PNG", exif=exif))
    assert out.size == ((8, 6) if turn in (1, 3) else (6, 8)) and out.getpixel(corner) == (255, 255, 255)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("keep", [.1, .5, .9])
def test_truncated_images_are_refused(form, keep):
    raw = coded(noise(), form)
    with pytest.raises(ValueError, match="^x.jpg (is cut off or damaged|is not an image)") as e: open_image(raw[:int(len(raw) * keep)], name="x.jpg")
    assert "\n" not in str(e.value)


def test_damaged_images_never_escape_the_sentence():
    rng = random.Random(0)
    for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"):
        raw = coded(noise(24), form)
        for _ in range(60):
            b = bytearray(raw)
            for _ in range(rng.randint(1, 8)): b[rng.randrange(min(len(b), 200))] = rng.randrange(256)
            try: assert open_image(bytes(b), max_pixels=1e6).mode == "RGB"
            except ValueError as e: assert str(len(b)) in str(e) and "\n" not in str(e)


def test_not_images(tmp_path):
    (tmp_path/"empty.jpg").touch()
    with pytest.raises(ValueError, match=r"empty.jpg is empty"): open_image(tmp_path/"empty.jpg")
    with pytest.raises(ValueError, match="is empty"): open_image(b"")
    (tmp_path/"text.jpg").write_text("hello")
    with pytest.raises(ValueError, match=r"text.jpg is not an image of a known format"): open_image(tmp_path/"text.jpg")
    for gone in (tmp_path/"none.jpg", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no image"): open_image(gone)


def test_programs_are_not_opened(tmp_path):
    eps = coded(Image.new("RGB", (4, 4)), "EPS")
    with pytest.raises(ValueError, match="not an image of a known format"): open_image(eps)
    (tmp_path/"a.jpg").write_bytes(coded(Image.new("RGB", (4, 4)), "PDF"))
    with pytest.raises(ValueError, match="not an image of a known format"): open_image(tmp_path/"a.jpg")


def huge(form):
    if form == "PNG": return coded(Image.new("1", (20_000, 20_000)))
    raw = bytearray(coded(Image.new("RGB", (16, 16)), "JPEG"))
    i = raw.index(b"\xff\xc0") + 5
    raw[i:i + 4] = (20_000).to_bytes(2, "big") * 2
    return bytes(raw)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_huge_images_are_refused_before_decoding(form, tmp_path):
    (tmp_path/"a.img").write_bytes(huge(form))
    code = ("import resource, sys; from vlnotes.data import open_image\nm = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try: open_image(sys.argv[1])\nexcept ValueError as e: print(e)\nprint((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - m) // 1024)")
    out = subprocess.run([sys.executable, "-c", code, tmp_path/"a.img"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert "a.img has" in out[0] and "at most 64000000 pixels are opened" in out[0] and int(out[1]) < 60


def test_the_limit_is_an_argument():
    with pytest.raises(ValueError, match="has 8 x 6; at most 47 pixels"): open_image(coded(picture()), max_pixels=47)
    assert open_image(coded(picture()), max_pixels=48).size == (8, 6)


# skipped

def test_skipped(tmp_path):
    s = Skipped()
    for item in "bab": s.add(item, "why")
    assert s.summary() == {"count": 2, "items": [["a", "why"], ["b", "why"]]} and len(s) == 2 and list(s) == [("b", "why"), ("a", "why")]
    assert s.summary(1) == {"count": 2, "items": [["a", "why"]]} and Skipped().summary() == {"count": 0, "items": []}
    a, b = Skipped(tmp_path/"s.jsonl"), Skipped(tmp_path/"s.jsonl") # two processes
    a.add("x", "1"); b.add("x", "1"); b.add("y\n", "é")
    assert list(a) == list(b) == [("x", "1"), ("y\n", "é")] and len(pickle.loads(pickle.dumps(a))) == 2
    with open(tmp_path/"s.jsonl", "a") as f: f.write('["half')
    assert len(a) == 2 and len(Skipped(tmp_path/"none.jsonl")) == 0


def test_skipped_in_a_manifest(tmp_path):
    from vlnotes.runs import manifest
    s = Skipped(); s.add("a.jpg", "it is empty")
    assert manifest(tmp_path, name="x", skipped=s)["skipped"] == {"count": 1, "items": [["a.jpg", "it is empty"]]}


# folders and lists

@pytest.fixture
def folder(tmp_path):
    root = tmp_path/"images"
    (root/"deep/.hidden").mkdir(parents=True)
    for i in range(6): picture(i).save(root/(f"deep/{i}.png" if i > 3 else f"{i}.PNG"))
    picture().save(root/"deep/.hidden/x.png"); picture().save(root/".y.png")
    (root/"readme.md").touch()
    (root/"0.txt").write_text("one\n\n two \n")
    return root


def test_folder(folder):
    found = list(stream(folder))
    assert ids(found) == ["0.PNG", "1.PNG", "2.PNG", "3.PNG", "deep/4.png", "deep/5.png"] and [s.image.getpixel((0, 0))[0] for s in found] == list(range(6))
    assert found[0].captions == ["one", "two"] and found[1].captions == [] and found[1].regions is None and [s.meta["index"] for s in found] == list(range(6))


def test_folder_with_damage(folder):
    (folder/"1.PNG").write_bytes(b"")
    (folder/"2.PNG").write_bytes((folder/"2.PNG").read_bytes()[:50])
    (folder/"big.png").write_bytes(huge("PNG"))
    (folder/"3.txt").write_bytes(b"\xff\xfe\x00")
    assert ids(stream(folder, skipped=(s := Skipped()))) == ["0.PNG", "deep/4.png", "deep/5.png"]
    assert {i: r.split(" ")[0] for i, r in s} == {"1.PNG": "it", "2.PNG": "it", "3.PNG": "3.txt", "big.png": "it"} and s.summary()["count"] == 4


def test_a_folder_without_images(tmp_path):
    (tmp_path/"a.txt").touch()
    with pytest.raises(ValueError, match="holds no images"): stream(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no .*none"): stream(tmp_path/"none")
    (tmp_path/"a.jpg").write_text("x")
    with pytest.raises(ValueError, match=r"nothing in .* could be used .1 skipped.; the first: a.jpg: it is not an image"): list(stream(tmp_path))


def test_lists_and_single_images(folder):
    paths = [folder/"1.PNG", folder/"0.PNG"]
    assert [s.image.getpixel((0, 0))[0] for s in stream(paths)] == [1, 0] and ids(stream(folder/"3.PNG")) == [str(folder/"3.PNG")]
    assert next(iter(stream(paths[1]))).captions == ["one", "two"] and len(list(stream(str(folder/"*.PNG")))) == 4
    with pytest.raises(FileNotFoundError, match=r"there is no .*x.png, nor 1 more of 3 files"): stream([*paths[:1], "x.png", "y.png"])
    with pytest.raises(ValueError, match="is of another kind than"): stream([folder/"0.PNG", folder/"readme.md"])
    with pytest.raises(ValueError, match="is no source of images"): stream(folder/"readme.md")
    with pytest.raises(FileNotFoundError, match="nothing matches"): stream(str(folder/"*.gif"))
    with pytest.raises(ValueError, match="s3://b/0.tar: only http://, https:// and pipe: are streamed; write pipe:COMMAND"): stream("s3://b/{0..3}.tar")
    for far in "a.jpg", "a.parquet?key=x", "a.json":
        with pytest.raises(ValueError, match=f"https://host/{far[:6]}[^?]*: only tars are streamed from an address; fetch it first"): stream("https://me:pw@host/" + far)
    with pytest.raises(ValueError, match="is of another kind than"): stream([folder/"0.PNG", "pipe:cat a.tar"])
    with pytest.raises(ValueError, match="captions= goes with .*, not with https://host/a.tar"): stream("https://me:pw@host/a.tar?x", captions="c.csv")


# caption files

ROWS = [("0.PNG", "a"), ("deep/4.png", "b, c"), ("0.PNG", "d"), ("gone.png", "e")]


def captions(path, rows=ROWS, names=("image", "caption")):
    if path.suffix in (".csv", ".tsv"):
        sep = "," if path.suffix == ".csv" else "\t"
        path.write_text("\ufeff" + "\r\n".join(sep.join(f'"{v}"' for v in r) for r in [names, *rows]) + "\r\n", encoding="utf-8")
    else:
        rows = [dict(zip(names, r)) for r in rows]
        path.write_text("\n".join(map(json.dumps, rows)) + "\n" if path.suffix == ".jsonl" else json.dumps(rows))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_caption_files(folder, tmp_path, suffix):
    c = captions(tmp_path/f"c{suffix}")
    assert read_captions(c) == {"0.PNG": ["a", "d"], "deep/4.png": ["b, c"], "gone.png": ["e"]}
    s = Skipped()
    assert [(x.id, x.captions) for x in stream(folder, captions=c, skipped=s)] == [("0.PNG", ["a", "d"]), ("deep/4.png", ["b, c"])]
    assert len(s) == 5 and any("gone.png" in i and "no such image" in r for i, r in s) and ("1.PNG", f"{c} has no caption for it") in list(s)
    assert ids(stream(c, root=folder, skipped=(s := Skipped()))) == ["0.PNG", "deep/4.png"] and list(s) == [("gone.png", f"there is no file {folder/'gone.png'}")]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_missing_caption_column(folder, tmp_path, suffix):
    c = captions(tmp_path/f"c{suffix}", names=("file", "captions"))
    with pytest.raises(ValueError, match=rf"c\{suffix} has no column 'image'; it has 'file', 'captions'; name the right one with image_key="): stream(folder, captions=c)
    with pytest.raises(ValueError, match="has no column 'caption'.* caption_key='captions'"): stream(folder, captions=c, image_key="file")
    assert read_captions(c, "file", "captions")["gone.png"] == ["e"]


@pytest.mark.parametrize("name,raw", [("c.csv", b""), ("c.csv", b"\xff\xfeimage"), ("c.csv", b'image,caption\na,"b'), ("c.csv", b"image,caption\na\n"), ("c.json", b"{"), ("c.json", b"[1]"),
                                      ("c.json", b'{"a.png": 3}'), ("c.jsonl", b'{"image": "a"'), ("c.jsonl", b'{"image": "a", "caption": null}'), ("c.xml", b"<a/>")])
def test_bad_caption_files(tmp_path, name, raw):
    (tmp_path/name).write_bytes(raw)
    with pytest.raises(ValueError, match=name) as e: read_captions(tmp_path/name)
    assert "\n" not in str(e.value)
    with pytest.raises(FileNotFoundError, match="no caption file"): read_captions(tmp_path/"none.csv")


def test_captions_as_a_dict(tmp_path):
    (tmp_path/"c.json").write_text('{"a.png": ["x", " "], "b.png": "y"}')
    assert read_captions(tmp_path/"c.json") == {"a.png": ["x"], "b.png": ["y"]}


def test_names_that_leave_the_folder_are_not_followed(folder, tmp_path):
    picture().save(tmp_path/"secret.png")
    c = captions(folder/"c.jsonl", [("../secret.png", "x"), (str(tmp_path/"secret.png"), "y"), ("0.PNG", "z"), ("deep/../1.PNG", "in")])
    assert ids(stream(c, skipped=(s := Skipped()))) == ["0.PNG", "deep/../1.PNG"]
    assert len(s) == 2 and all("root=" in r for _, r in s)
    assert len(list(stream(c, root=tmp_path, skipped=Skipped()))) == 1 # absolute names are fine inside root


# tars

@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.xz"])
def test_tar(tmp_path, suffix):
    mode = {"tar": "w", "tar.xz": "w:xz"}.get(suffix, "w:gz")
    found = list(stream(tar(tmp_path/f"a.{suffix}", mode=mode), skipped=(s := Skipped())))
    assert ids(found) == [f"d/{i:04d}" for i in range(4)] and [x.captions for x in found] == [[f"number {i}"] for i in range(4)] and len(s) == 0
    assert found[3].regions == [{"box": [0, 0, 2, 2]}] and found[3].meta == {"n": 3, "index": 3} and found[3].image.getpixel((0, 0)) == (3, 0, 7)


def test_brace_patterns(tmp_path):
    for i in range(5): tar(tmp_path/f"{i:06d}.tar", 2, 2 * i)
    assert len(ids(stream(tmp_path/"{000000..000004}.tar"))) == 10 == len(set(ids(stream(str(tmp_path/"*.tar"))))) == len(list(stream([tmp_path/f"{i:06d}.tar" for i in range(5)])))
    assert expand("a{8..10}.tar") == ["a8.tar", "a9.tar", "a10.tar"] and expand("{a,b}{0..1}") == ["a0", "a1", "b0", "b1"] and expand("x.tar") == ["x.tar"]
    with pytest.raises(FileNotFoundError, match="there is no .*000005.tar, nor 1 more of 7 files"): stream(tmp_path/"{000000..000006}.tar")


def test_a_tar_cut_anywhere_delivers_what_came_before(tmp_path):
    whole = tar(tmp_path/"w.tar").read_bytes()
    end = len(whole.rstrip(b"\0")) # the last file's data ends here
    step = 512
    per = 6 * step # three headers and three short files a sample
    for cut in [*range(0, 13000, 256), end]:
        if cut >= (end + 511) // 512 * 512 + 512: break
        (tmp_path/"c.tar").write_bytes(whole[:cut])
        s = Skipped()
        try: found = list(stream(tmp_path/"c.tar", skipped=s))
        except ValueError as e: found = []; assert "nothing in" in str(e)
        complete = min((cut + 256) // per, 4) # padding may be missing
        assert len(found) in ({0, 1} if complete == 1 else {complete}) and all(len(x.captions) == 1 and x.meta["n"] == i for i, x in enumerate(found))
        assert any(str(tmp_path/"c.tar") == i and "cut off or damaged" in r for i, r in s), cut
    assert len(list(stream(tmp_path/"w.tar"))) == 4


@pytest.mark.parametrize("mode,suffix", [("w:gz", "tar.gz"), ("w:xz", "tar.xz"), ("w:bz2", "tar.bz2")])
def test_a_compressed_tar_cut_in_the_middle(tmp_path, mode, suffix):
    p = tmp_path/f"a.{suffix}"
    extra = [(f"d/{i}.png", coded(noise(64, i))) for i in range(10, 40)]
    raw = tar(p, mode=mode, extra=extra).read_bytes()
    p.write_bytes(raw[:len(raw) * 2 // 3])
    s = Skipped()
    try: found = list(stream(p, skipped=s))
    except ValueError: found = [] # one bzip2 block may hold everything
    assert len(found) < 34 and any(i == str(p) for i, _ in s)


def test_garbage_in_a_tar(tmp_path):
    raw = bytearray(tar(tmp_path/"a.tar").read_bytes())
    raw[6 * 512:6 * 512 + 512] = b"\xff" * 512 # the second sample's first header
    (tmp_path/"a.tar").write_bytes(raw)
    tar(tmp_path/"b.tar", 2, 10)
    for name, data in {"c.tar": b"", "d.tar": b"not a tar at all" * 100}.items(): (tmp_path/name).write_bytes(data)
    s = Skipped()
    assert ids(stream(tmp_path/"{a,b,c,d}.tar", skipped=s)) == ["d/0010", "d/0011"] # nothing says that d/0000 was whole
    assert {os.path.basename(i.split(":")[0]) for i, _ in s} == {"a.tar", "c.tar", "d.tar"}


def test_hostile_names_and_links(tmp_path):
    link, hard, device = tarfile.TarInfo("d/link.png"), tarfile.TarInfo("d/hard.png"), tarfile.TarInfo("d/dev.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "d/0000.png"
    device.type = tarfile.CHRTYPE
    evil = [("../evil.png", coded(picture())), ("/abs.png", b"x"), ("a/../../evil.txt", b"x"), (link, None), (hard, None), (device, None), (".hidden", b"x"), ("d/9999.png", coded(picture(9)))]
    work = tmp_path/"work"
    work.mkdir()
    before = sorted(tmp_path.rglob("*"))
    tar(work/"a.tar", 2, extra=evil)
    s = Skipped()
    assert ids(stream(work/"a.tar", skipped=s)) == ["d/0000", "d/0001", "d/9999"]
    assert sorted(r for _, r in s) == sorted(["the name leads out of its folder"] * 3 + ["it is a link or a device, not a file"] * 3)
    assert sorted(tmp_path.rglob("*")) == [*before, work/"a.tar"] and all("a.tar" in i for i, _ in s)


def test_bad_samples_in_a_tar(tmp_path):
    extra = [("x1.txt", b"no image"), ("x2.png", b""), ("x2.txt", b"a"), ("x3.png", coded(picture())), ("x3.txt", b"\xff"), ("x4.png", coded(picture())), ("x4.json", b"[1]"),
             ("x5.png", coded(picture())), ("x5.json", b'{"captions": [3]}'), ("x6.png", coded(picture(6))), ("x6.json", b'{"caption": "six"}'), ("x7.seg.png", coded(picture(7))), ("x7.cls", b"3")]
    s = Skipped()
    found = list(stream(tar(tmp_path/"a.tar", 1, extra=extra), skipped=s))
    assert ids(found) == ["d/0000", "x6", "x7"] and found[1].captions == ["six"] and found[2].meta["cls"] == "3"
    assert sorted(i.split(": ")[-1] for i, _ in s) == ["x1", "x2", "x3", "x4", "x5"]


def test_an_oversized_member_is_passed_over(tmp_path):
    from vlnotes.sources import _members
    s = Skipped()
    assert [k for k, *_ in _members(tar(tmp_path/"a.tar", 1, extra=[("big.png", b"x" * 5000), ("z.png", b"z")]), s, most=4000)] == ["d/0000"] * 3 + ["z", None] and len(s) == 1


# splitting, order, resuming

@pytest.fixture
def shards(tmp_path):
    for i in range(4): tar(tmp_path/f"s-{i}.tar", 5, 5 * i)
    return tmp_path/"s-{0..3}.tar"


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("shuffle", [0, 6])
def test_each_sample_once(shards, folder, world, shuffle):
    for source in (shards, folder):
        every = [i for r in range(world) for i in ids(stream(source, rank=r, world=world, shuffle=shuffle, seed=3))]
        assert sorted(every) == sorted(ids(stream(source)))


def test_shuffle_is_seeded_and_changes_with_the_epoch(shards, folder):
    for source in (shards, folder):
        a, b, c = (ids(stream(source, shuffle=8, seed=1, epoch=e)) for e in (0, 0, 1))
        assert a == b != c and sorted(a) == sorted(c) and a != ids(stream(source))


def test_the_buffer_is_bounded_and_holds_nothing_decoded(shards, monkeypatch):
    from vlnotes import data
    opened = []
    monkeypatch.setattr(data, "open_image", lambda *a: opened.append(1) or picture())
    drawn = []
    def watch(records):
        for r in records: drawn.append(r); yield r
    real = data._buffered
    monkeypatch.setattr(data, "_buffered", lambda records, *how: real(watch(records), *how))
    it = iter(stream(shards, shuffle=6))
    for i in range(1, 10):
        next(it)
        assert len(opened) == i and len(drawn) <= i + 5


def test_the_buffer_is_bounded_in_bytes(shards):
    from vlnotes.data import _buffered
    from vlnotes.sources import Record
    rng, sizes = np.random.default_rng(0), [3, 900, 40, 2000, 5, 5, 5, 700, 60]
    drawn, given = [], []
    def watch():
        for i, n in enumerate(sizes): drawn.append(n); yield Record(str(i), bytes(n))
    for r in _buffered(watch(), 100, rng, 1000):
        given.append(len(r.source))
        held = sum(drawn) - sum(given)
        assert held <= 1000 or held - drawn[-1] <= 1000
    assert sorted(given) == sorted(sizes) and given != sizes
    whole = ids(stream(shards, shuffle=6, seed=1))
    assert ids(stream(shards, shuffle=6, seed=1, shuffle_bytes=1e9)) == whole and sorted(ids(stream(shards, shuffle=6, shuffle_bytes=1))) == sorted(whole)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
@pytest.mark.parametrize("size, least, most", [("256e6", 200, 350), ("100e6", 80, 190)])
def test_a_full_buffer_of_photographs_keeps_a_worker_below_a_gigabyte(tmp_path, size, least, most):
    photo = coded(noise(240), "JPEG", quality=50)
    photo += bytes(60_000 - len(photo)) # decoders stop at the end mark
    tar(tmp_path/"a.tar", 0, extra=[(f"{i:04d}.{e}", d) for i in range(320) for e, d in (("jpg", photo), ("txt", b"a photograph"))])
    code = ("import sys; from vlnotes.data import stream\nfrom itertools import islice\n"
            "def rss(): return int(open('/proc/self/statm').read().split()[1]) * 4096 / 1e6\n"
            "base = rss()\nfor epoch in range(2):\n    it = stream([sys.argv[1]] * 20, shuffle=6400, shuffle_bytes=float(sys.argv[2]), epoch=epoch)\n"
            "    for _ in islice(it, 50): pass\nprint(base, rss())")
    run = subprocess.run([sys.executable, "-c", code, tmp_path/"a.tar", size], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    base, full = map(float, run.stdout.split())
    assert least < full - base < most, (base, full) # torch itself takes 650 MB


def test_start_resumes(shards, folder):
    for source in (shards, folder):
        every = list(stream(source, shuffle=4, seed=2))
        rest = list(stream(source, shuffle=4, seed=2, start=every[2].meta["index"] + 1))
        assert ids(rest) == ids(every)[3:]


def test_bad_rank(folder):
    with pytest.raises(ValueError, match="rank 2 is outside a world of 2"): stream(folder, rank=2, world=2)


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_workers_take_shares_and_report_what_they_skip(shards, folder, workers):
    (folder/"1.PNG").write_bytes(b"")
    for source, n in ((shards, 20), (folder, 5)):
        ds = StreamDataset(source, one, shuffle=3)
        assert len(got := list(DataLoader(ds, batch_size=None, num_workers=workers))) == n == len(set(got))
        assert len(ds.skipped) == (source == folder) and os.path.exists(ds.skipped.path)
        ds.set_epoch(1)
        assert sorted(DataLoader(ds, batch_size=None, num_workers=workers)) == sorted(got)
    path = ds.skipped.path
    del ds
    assert not os.path.exists(path)


def test_workers_by_spawn(folder):
    (folder/"1.PNG").write_bytes(b"")
    ds = StreamDataset(folder, one)
    assert len(list(DataLoader(ds, batch_size=None, num_workers=1, multiprocessing_context="spawn"))) == 5 and len(ds.skipped) == 1


def test_samples_are_picklable(folder):
    a = next(iter(stream(folder)))
    b = pickle.loads(pickle.dumps(a))
    assert isinstance(b, Sample) and b.id == a.id and b.image.tobytes() == a.image.tobytes()


# Parquet

def parquet(path, n=10, **columns):
    table = {"image": [coded(picture(i)) for i in range(n)], "caption": [f"number {i}" for i in range(n)], **columns}
    pq.write_table(pa.table({k: v for k, v in table.items() if v is not None}), path, row_group_size=3)
    return path


def test_parquet(tmp_path, folder):
    p = parquet(tmp_path/"a.parquet", label=list(range(10)))
    found = list(stream(p))
    assert ids(found) == [f"a.parquet:{i}" for i in range(10)] and found[7].captions == ["number 7"] and found[7].meta == {"label": 7, "index": 7} and found[7].image.getpixel((0, 0))[0] == 7
    for world in (2, 3, 6): assert sorted(i for r in range(world) for i in ids(stream(p, rank=r, world=world))) == sorted(ids(found))
    hub = parquet(tmp_path/"b.parquet", image=[{"bytes": coded(picture(i)), "path": None} for i in range(10)])
    assert len(list(stream([p, hub]))) == 20
    names = parquet(tmp_path/"c.parquet", 3, image=["0.PNG", "../x.png", "deep/4.png"], caption=[["a", "b"], [], None], other=["c", "d", "e"])
    got = list(stream(names, root=folder, caption_key=["caption", "other"], skipped=(s := Skipped())))
    assert [x.captions for x in got] == [["a", "b", "c"], ["e"]] and len(s) == 1


def test_bad_parquet(tmp_path):
    p = parquet(tmp_path/"a.parquet", 6, image=[coded(picture()), None, b"", coded(picture(3)), b"x", coded(picture(5))], caption=["a", "b", "c", None, "e", "f"])
    found = list(stream(p, skipped=(s := Skipped())))
    assert ids(found) == ["a.parquet:0", "a.parquet:3", "a.parquet:5"] and found[1].captions == [] and len(s) == 3
    with pytest.raises(ValueError, match="has no column 'text'; it has 'image', 'caption'"): stream(p, caption_key="text")
    with pytest.raises(ValueError, match="image_key="): stream(p, image_key="img")
    raw = p.read_bytes()
    (tmp_path/"b.parquet").write_bytes(raw[:len(raw) // 2])
    (tmp_path/"c.parquet").write_bytes(b"")
    s = Skipped()
    assert len(list(stream(str(tmp_path/"{a,b,c}.parquet"), skipped=s))) == 3 and {os.path.basename(i) for i, _ in s} >= {"b.parquet", "c.parquet"}
    with pytest.raises(ValueError, match="nothing in .* could be used .1 skipped.; the first: .*b.parquet: the shard is cut off"): list(stream(tmp_path/"b.parquet"))
    with pytest.raises(ValueError, match="captions= goes with"): stream(p, captions=tmp_path/"c.csv")
    damaged = parquet(tmp_path/"d.parquet", 200, image=[coded(noise(16, i)) for i in range(200)])
    raw = bytearray(damaged.read_bytes())
    raw[2000:2600] = bytes(600)
    damaged.write_bytes(raw)
    assert 0 < len(list(stream(damaged, skipped=(s := Skipped())))) < 200 and len(s) > 0


# COCO

def coco(path, images, annotations, **more):
    path.write_text(json.dumps({"images": images, "annotations": annotations, **more}))
    return path


def test_coco(folder):
    images = [{"id": 10 + i, "file_name": f"{i}.PNG", "width": 8, "height": 6} for i in range(3)] + [{"id": 99, "file_name": "../x.png"}]
    caps = coco(folder/"c.json", images, [{"id": 1, "image_id": 10, "caption": " one "}, {"id": 2, "image_id": 10, "caption": "two"}, {"id": 3, "image_id": 11, "caption": "three"}])
    inst = coco(folder/"i.json", images, [{"id": 1, "image_id": 10, "category_id": 5, "bbox": [1, 2, 3, 4], "iscrowd": 0}, {"id": 2, "image_id": 10, "bbox": [1, 2]},
                                          {"id": 4, "image_id": 12, "bbox": [1, 2, -3, 4]}], categories=[{"id": 5, "name": "digit"}])
    s = Skipped()
    a, b, c = stream(inst, captions=caps, skipped=s)
    assert a.captions == ["one", "two"] and a.regions == [{"box": (1, 2, 4, 6), "label": "digit", "id": 1, "category_id": 5, "iscrowd": 0}] and a.meta == {"coco_id": 10, "index": 0}
    assert b.captions == ["three"] and b.regions == [] == c.captions and len(s) == 3
    assert [x.regions for x in stream(caps, skipped=Skipped())] == [None] * 3
    (folder/"moved").mkdir(); caps.rename(folder/"moved/c.json")
    assert len(list(stream(folder/"moved/c.json", root=folder, skipped=Skipped()))) == 3


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', '{"images": [{"id": 1}], "annotations": []}', '{"images": [3], "annotations": []}', '{"images": [], "annotations": [3]}',
                                  '{"images": [], "annotations": [{"caption": "x"}]}', '{"images": [], "annotations": []}'])
def test_bad_coco(tmp_path, text):
    (tmp_path/"c.json").write_text(text)
    with pytest.raises(ValueError, match="c.json"): list(stream(tmp_path/"c.json"))
