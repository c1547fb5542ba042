"CoCa: curves, the lens, the original's files, the Karpathy shards, import from the command line."
import json
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from coca_toys import CONFIG, WORDS, captioner, config_file, images
from PIL import Image
from server import publisher

pytest.importorskip("open_clip")
from vlnotes import docmnist, fetch, runs
from vlnotes.cli import main
from vlnotes.coca import curves, karpathy, layers, lens, original
from vlnotes.coca.captions import Settings
from vlnotes.coca.describer import Captioner
from vlnotes.data import stream
from vlnotes.notes import Note, Notes


def said(i, layer, text, **extra): return Note(str(i), "m", layer, text, 0., "mean_logprob", "coca", extra=extra)


# ---- curves

def test_variety_is_the_chance_that_two_images_differ():
    rng = np.random.default_rng(0)
    texts = rng.choice(list("abcde"), 30)
    notes = Notes([said(i, "l", t, entropy=1.) for i, t in enumerate(texts)])
    pairs = [texts[i] != texts[j] for i in range(30) for j in range(30) if i != j]
    row, = curves.curves(notes)
    assert row["variety"] == round(float(np.mean(pairs)), 4) and row["distinct"] == len(set(texts)) and row["variety_lo"] < row["variety"] < row["variety_hi"]
    assert abs((row["variety_lo"] + row["variety_hi"]) / 2 - row["variety"]) < .05 # pairs of an image with itself do not pull it down


def test_bands_hold_the_truth_most_of_the_time():
    hit = 0
    for k in range(40):
        bits = np.random.default_rng(k).normal(3, 1, 40)
        row, = curves.curves(Notes([said(i, "l", "x", entropy=float(b)) for i, b in enumerate(bits)]), seed=k)
        hit += row["entropy_lo"] <= 3 <= row["entropy_hi"]
    assert hit >= 33


def test_curves_do_not_depend_on_the_order_of_images():
    notes = [said(i, l, f"{i % 3} {l}", entropy=i / 7, limit=i % 2 == 0) for i in range(9) for l in "xy"]
    a, b = curves.curves(Notes(notes)), curves.curves(Notes([n for i in reversed(range(9)) for n in notes[2 * i:2 * i + 2]]))
    for r, s in zip(a, b): assert all(r[k] == s[k] for k in ("distinct", "variety", "limit", "entropy", "repetition", "agreement", "tokens"))


@pytest.mark.parametrize("notes, told", [
    ([said(0, "a", "x"), said(1, "a", "x"), said(0, "b", "x")], "'1' has no caption at b"), ([said(0, "a", "x"), said(0, "a", "y")], "two captions"), ([], "no caption")])
def test_incomplete_notes(notes, told):
    with pytest.raises(ValueError, match=told): curves.curves(Notes(notes))


def test_a_missing_entropy_is_a_gap_not_a_number():
    row, = curves.curves(Notes([said(i, "a", "x y x") for i in range(4)]))
    assert row["entropy"] is None and row["limit"] is None and row["repetition"] == round(1 / 3, 4) and row["tokens"] == 3


def test_rightness_by_hand():
    scenes = docmnist.generate(40, regions=(2, 2), split="test", seed=1)
    half = Notes([said(i, "l", " . ".join(" ".join(r[:2]) for r in scenes.regions(k))) for k, i in enumerate(scenes.ids)]) # digits and colours, no shapes
    row = curves.rightness(half, scenes)[0]
    assert row["digit"] == row["colour"] == 1 and row["shape"] == row["size"] == 0 and 0 < row["f1"] < 1
    named = curves.first_named(curves.rightness(half, scenes))
    assert named == {"digit": "l", "colour": "l", "shape": None, "size": None}
    with pytest.raises(ValueError, match="no caption of the scene"): curves.rightness(half[1:], scenes)


def test_a_factor_that_is_lost_again_is_named_later():
    row = lambda who, v: {"who": who} | {f"{f}{e}": v for f in ("digit", "colour", "shape", "size") for e in ("", "_lo", "_hi")}
    rows = [row("1", .9), row("2", .2), row("3", .8), row("4", .9), row("constant", .4)]
    assert set(curves.first_named(rows).values()) == {"3"}


# ---- the lens

def test_a_lens_learns_and_the_rest_stays_frozen(tmp_path):
    from vlnotes.train import FitConfig, fit
    coca = captioner()
    before = {k: v.clone() for k, v in coca.model.state_dict().items()}
    task, x = lens.Distilled(coca), images(16)
    class Held:
        def __len__(self): return 10**9
        def batch(self, ids, rng): return x
    def gap(): # of the first layer, from the teacher
        with torch.no_grad(): return float(np.mean([float((lambda o: o[0] / o[1])(task(x, torch.Generator().manual_seed(k)))) for k in range(6)]))
    start = gap()
    fit(task, Held(), FitConfig(steps=30, bs=16, lr=3e-3, shuffle=False), tmp_path / "fit", device="cpu", progress=False)
    assert gap() < .8 * start
    assert all(v.equal(before[k]) for k, v in coca.model.state_dict().items())
    assert not any("coca" in k for k in task.state_dict()) # the checkpoint holds the lens alone
    lens.save(task.lens, tmp_path / "lens", coca)
    back = lens.load(tmp_path / "lens", coca)
    assert all(a.equal(b) for a, b in zip(back.state_dict().values(), task.lens.state_dict().values()))
    other = layers.Coca(layers._encoder(layers.build({**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "layers": 2}}), "two", (32, 32)), layers.own_words(WORDS))
    with pytest.raises(ValueError, match="3 layers of 64 channels, two has 2"): lens.load(tmp_path / "lens", other)
    (tmp_path / "none").mkdir()
    runs.write_json(tmp_path / "none/config.json", {})
    with pytest.raises(ValueError, match="holds no lens"): lens.load(tmp_path / "none", coca)


# ---- the original's files

@pytest.fixture
def notes():
    return Notes([said(f"COCO_{i}", original.LAYER.format(l), f"{'gold ' * l}{i}!", entropy=i + l / 4) for i in range(7) for l in range(3)])


def test_captions_go_out_and_come_back(notes, tmp_path):
    files = original.write_captions(notes, tmp_path, per=3)
    assert {p.name for p in files} == {f"{k}_batch{b}.json" for k in ("caps", "ids", "entropy") for b in range(3)}
    caps = json.loads((tmp_path / "caps_batch2.json").read_text())
    assert list(caps) == ["layer_0", "layer_1", "layer_2"] and caps["layer_2"] == ["gold gold 6!"]
    ids = [i for b in range(3) for i in json.loads((tmp_path / f"ids_batch{b}.json").read_text())]
    back = original.read_captions(tmp_path, ids)
    key = lambda n: (n.image_id, n.layer, n.text, n.extra["entropy"])
    assert sorted(map(key, back)) == sorted(map(key, notes))
    assert original.read_captions(tmp_path).unique("image_id")[3] == "batch1/000000"
    assert curves.by_layer(back)[0] == [original.LAYER.format(l) for l in range(3)]


@pytest.mark.parametrize("text, told", [('{"layer_0": ["a"], "layer_1": ["a", "b"]}', "1 to 2 entries"), ('["a"]', "layer_0"), ('{"l": []}', "layer_0"), ('{"layer_0": [3]}', "no text"), ('{"layer_0": ["a"', "cut off")])
def test_damaged_captions(text, told, tmp_path):
    (tmp_path / "caps_batch0.json").write_text(text)
    with pytest.raises(ValueError, match=told): original.read_captions(tmp_path)


def test_entropies_of_other_images_and_missing_folders(notes, tmp_path):
    original.write_captions(notes, tmp_path)
    runs.write_json(tmp_path / "entropy_batch0.json", {"layer_0": [1.]})
    with pytest.raises(ValueError, match="other layers or images"): original.read_captions(tmp_path)
    with pytest.raises(FileNotFoundError, match="caps_batch0"): original.read_captions(tmp_path / "none")
    (tmp_path / "entropy_batch0.json").unlink()
    with pytest.raises(ValueError, match="2 ids for at least 7"): original.read_captions(tmp_path, ["a", "b"])


def test_answers(tmp_path):
    given = {l: [f'{{"{l}{i}": ["color", "", ""]}}' for i in range(5)] for l in range(3)}
    original.write_answers(given, tmp_path, per=2)
    assert original.read_answers(tmp_path) == given
    (tmp_path / original.ANSWERS.format(model="llama_70B", layer=1, batch=2)).unlink()
    with pytest.raises(ValueError, match="layer 1 in batch 2"): original.read_answers(tmp_path)
    with pytest.raises(FileNotFoundError): original.read_answers(tmp_path / "none")


def test_features_in_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    coca = captioner()
    streams = coca.blocks(images(5))
    def write(name, change=lambda s: s.transpose(0, 1), **more):
        with h5py.File(tmp_path / name, "w") as f:
            for k, s in streams.items(): f[k] = change(s).numpy()
            for k, v in more.items(): f[k] = v
        return tmp_path / name
    got = list(original.read_features(write("good.h5", names=[f"n{i}" for i in range(5)]), coca, size=2))
    assert [i for ids, _ in got for i in ids] == [f"n{i}" for i in range(5)] and all(torch.cat([s[k] for _, s in got]).equal(v) for k, v in streams.items())
    assert coca.bridge(got[0][1][coca.layers[0]]).shape == (2, 15, 48)
    for name, change, told in (("first.h5", lambda s: s, "images first"), ("wide.h5", lambda s: s.transpose(0, 1)[..., :32], "is right for toy"), ("short.h5", lambda s: s[:, :9].transpose(0, 1), "is right for toy")):
        with pytest.raises(ValueError, match=told): next(original.read_features(write(name, change), coca))
    with pytest.raises(ValueError, match="names 2 of 5"): next(original.read_features(write("names.h5", names=["a", "b"]), coca))
    with h5py.File(tmp_path / "none.h5", "w") as f: f["x"] = 1
    with pytest.raises(ValueError, match="no dataset"): next(original.read_features(tmp_path / "none.h5", coca))


def test_import_of_a_checkpoint(tmp_path):
    coca, cfg = captioner(), config_file(tmp_path / "mine_coca.json")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in coca.model.state_dict().items()}}, tmp_path / "epoch_3.pt")
    (tmp_path / "words.json").write_text(json.dumps(WORDS))
    r = CliRunner().invoke(main, ["import", "coca", str(tmp_path / "epoch_3.pt"), "--out", str(tmp_path / "mine"), "-o", f"model={cfg}", "-o", f"words={tmp_path/'words.json'}"])
    assert r.exit_code == 0 and "3 layers" in r.output and "--by coca" in r.output, r.output
    back, x = layers.load(tmp_path / "mine"), images()
    for a, b in zip(back.blocks(x).values(), coca.blocks(x).values()): assert a.equal(b)
    assert [n.text for n in Captioner(back, Settings(seq_len=9)).describe(x)] == [n.text for n in Captioner(coca, Settings(seq_len=9)).describe(x)]
    for args, told in ((["-o", "model=coca_ViT-L-15"], "coca_ViT-B-32"), (["-o", "model=ViT-B-32"], "no CoCa"), (["-o", "model=coca_ViT-B-32"], "does not fit CoCa"), (["-o", "modle=x"], "model")):
        r = CliRunner().invoke(main, ["import", "coca", str(tmp_path / "epoch_3.pt"), "--out", str(tmp_path / "other"), *args])
        assert r.exit_code == 2 and told in r.output and "Traceback" not in r.output and not (tmp_path / "other").exists(), r.output


def test_import_of_captions(notes, tmp_path):
    original.write_captions(notes, tmp_path / "in")
    original.write_answers({l: ["{}"] * 7 for l in range(3)}, tmp_path / "in")
    r = CliRunner().invoke(main, ["import", "coca", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "-o", f"ids={tmp_path/'in/ids_batch0.json'}"])
    assert r.exit_code == 0 and "7 images x 3 layers, with label answers" in r.output, r.output
    assert Notes.read(tmp_path / "out/notes.parquet").unique("image_id")[0] == "COCO_0" and len(runs.read_json(tmp_path / "out/answers.json")) == 3


# ---- the Karpathy split

@pytest.fixture
def karpathys(tmp_path):
    home = tmp_path / "publisher"
    (home / "val2014").mkdir(parents=True)
    name = lambda i: f"COCO_val2014_{i:012d}.jpg"
    rows = [dict(filename=name(i), filepath="val2014", cocoid=i, split="test" if i % 2 else "train", sentences=[dict(raw=f"thing {i}. "), dict(raw="a thing")]) for i in range(1, 12)]
    with zipfile.ZipFile(home / "caption_datasets.zip", "w") as z: z.writestr("dataset_coco.json", json.dumps({"images": rows})); z.writestr("dataset_flickr8k.json", "{}")
    for i in range(1, 12): Image.new("RGB", (12, 9), (20 * i, 9, 9)).save(home / "val2014" / name(i))
    with zipfile.ZipFile(home / "val2014.zip", "w") as z:
        for p in sorted((home / "val2014").iterdir()): z.write(p, f"val2014/{p.name}")
    return home


def test_shards_are_made_and_read(karpathys, tmp_path):
    with publisher({p.name: p.read_bytes() for p in karpathys.glob('*.zip')}) as s:
        folder = fetch.get("coco-karpathy", tmp_path / "data", base=s.where, per=4, say=lambda t: None, wait=0)
    assert sorted(p.name for p in folder.glob("*.tar")) == ["000000.tar", "000001.tar"]
    back = list(stream(str(folder / "{000000..000001}.tar")))
    assert [int(s.id[-2:]) for s in back] == [1, 3, 5, 7, 9, 11] and back[0].captions == ["thing 1.", "a thing"] and back[2].image.size == (12, 9)
    with tarfile.open(folder / "000000.tar") as t: assert t.getnames()[:2] == ["COCO_val2014_000000000001.jpg", "COCO_val2014_000000000001.json"]
    assert "whole" in fetch.check("coco-karpathy", tmp_path / "data")
    (folder / "000001.tar").write_bytes((folder / "000001.tar").read_bytes()[:700])
    assert karpathy.check(folder)


def test_a_copy_at_hand_saves_the_large_archive(karpathys, tmp_path):
    (karpathys / "val2014.zip").unlink()
    (karpathys / "val2014/COCO_val2014_000000000005.jpg").unlink()
    told = []
    with publisher({p.name: p.read_bytes() for p in karpathys.glob('*.zip')}) as s:
        folder = fetch.get("coco-karpathy", tmp_path / "data", base=s.where, parts="captions", images=str(karpathys / "val2014"), say=told.append, wait=0)
    assert len(list(stream(str(folder / "000000.tar")))) == 5 and "1 were missing, the first COCO_val2014_000000000005.jpg" in told[-1]


def test_a_wrong_copy(karpathys, tmp_path):
    with pytest.raises(ValueError, match="no split 'tset'"): karpathy.rows(karpathys / "caption_datasets.zip", "tset")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match="not the Karpathy split"): karpathy.rows(tmp_path / "x.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="none of the 6 images"):
        karpathy.make(tmp_path / "out", [], images=str(tmp_path / "empty"), captions=str(karpathys / "caption_datasets.zip"), split="test", per=1000, parts=[])
    with pytest.raises(FileNotFoundError, match="no zip"): karpathy.Images(tmp_path / "nothing")
