"Evaluation of DeViL: whole sets captioned once, on any number of processes, killed and resumed; the files; the pages."
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from devil_toys import CHANNELS, SIDE, devil, feats, images
from hypothesis import given
from hypothesis import strategies as st
from milan_toys import write_milan
from PIL import Image

from vlnotes import judges, runs
from vlnotes.data import Sample
from vlnotes.devil import evaluate
from vlnotes.devil.evaluate import answer, filename, losses, metrics, per_token, qualitative, stem, table, ways
from vlnotes.devil.explain import Devil, captions, per_cell, whole
from vlnotes.devil.train import caption_loss
from vlnotes.text import collate

WAYS = {"all": ["low", "mid", "high"], "low": ["low"], "mid": ["mid"], "high": ["high"]}
SENTENCES = ("a red square", "a blue square and a green square", "red and blue", "a green square .")


def one_sentence(e): return str(e.value).strip() and "\n" not in str(e.value).strip()

def picture(seed, side=SIDE): return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8))

def folder(path, n=10, captions=lambda k: SENTENCES[k % 4]):
    path.mkdir()
    for k in range(n):
        picture(k).save(path/f"im{k:02}.png")
        if captions(k) is not None: (path/f"im{k:02}.txt").write_text(captions(k), encoding="utf-8")
    return str(path)

def means(d): return {(l, kind): torch.zeros(CHANNELS[l]) for l, kind in d.net.cfg.slots}

@pytest.fixture
def toy(monkeypatch): # what `Devil.load` gives, with the number of passes through its encoder
    d = devil()
    d.net.means, d.passes = means(d), []
    real = type(d.encoder).features
    def seen(x, layers=None, **kw):
        d.passes.append(len(x))
        return real(d.encoder, x, layers, **kw)
    d.encoder.features = seen
    monkeypatch.setattr(Devil, "load", classmethod(lambda *a, **k: d))
    return d

def cfg(out, **kw): return {"model": "toy", "out": str(out), "batch": 4, "repeats": 20, "device": "cpu", **kw}

def evaluated(out, **kw):
    result = runs.launch("devil.evaluate", cfg(out, **kw), 1, out)
    return result, {p.name: runs.read_json(p) for p in Path(out).glob("*_features_val-*.json")}


# ---- one batch

def test_ways_of_asking():
    d = devil()
    assert ways(d) == {"all": ["low", "mid", "high"], **{l: [l] for l in ("low", "mid", "high")}}
    assert list(ways(d, [None])) == ["all"] and ways(d, ["mid", None]) == {"mid": ["mid"], "all": ["low", "mid", "high"]}
    assert list(ways(d, "low")) == ["low"] and list(ways(d, [-1])) == ["high"] and list(ways(d, 2)) == ["mid", "high"]
    assert ways(devil(("mid",))) == {"all": ["mid"]}
    for bad in ([], ["lwo"]):
        with pytest.raises(ValueError) as e: ways(d, bad)
        assert one_sentence(e)

def test_an_answer_is_that_of_every_way_alone(toy):
    x, texts = images(5), [[SENTENCES[k % 4]] for k in range(5)]
    got = answer(toy, {"x": x, "texts": texts}, ways(toy))
    assert toy.passes == [5] # one pass for all ways
    f = toy.encoder.features(x, toy.layers)
    for way, layers in WAYS.items():
        prompts = whole(toy.net, f, layers)
        assert got[way]["said"] == [c.text for c in captions(toy.lm, prompts, 12)]
        ids, mask = collate(toy.lm.tokenizer, [t[0] for t in texts], 12, toy.lm.bos)
        loss, count = caption_loss(toy.lm, prompts, ids, mask)
        assert np.allclose(got[way]["nll"], loss.numpy(), atol=1e-4) and got[way]["tokens"] == count.tolist()

def test_rows_do_not_depend_on_their_batch():
    d, x, texts = devil(), images(4), [[SENTENCES[k]] for k in range(4)]
    got = answer(d, {"x": x, "texts": texts}, ways(d))
    for k in range(4):
        alone = answer(d, {"x": x[k:k + 1], "texts": texts[k:k + 1]}, ways(d))
        for way in got:
            assert alone[way]["said"][0] == got[way]["said"][k] and np.isclose(alone[way]["nll"][0], got[way]["nll"][k], atol=1e-4)

def test_losses_add_up_over_references():
    d = devil()
    p = whole(d.net, feats(), ["low"])
    both = losses(d.lm, p, [["a red square", "blue"], ["green"], ["red", "red and blue", "a"], ["a square ."]])
    apart = [[sum(v) for v in zip(*(tuple(v[0] for v in losses(d.lm, p[k:k + 1], [[t]])) for t in ts))] for k, ts in
             enumerate([["a red square", "blue"], ["green"], ["red", "red and blue", "a"], ["a square ."]])]
    assert np.allclose(both[0], [a[0] for a in apart], atol=1e-4) and both[1] == [a[1] for a in apart] == [6, 2, 8, 4] # EOS counts
    few = losses(d.lm, p, [["a red square", "blue"], ["green"], ["red", "red and blue", "a"], ["a square ."]], rows=2)
    assert np.allclose(few[0], both[0], atol=1e-4) and few[1] == both[1]
    assert losses(d.lm, p[:1], [["red " * 50]], max_length=12)[1] == [11] # cut as captions are

def test_the_loss_is_a_mean_over_tokens():
    got = per_token([(6., 3), (2., 1), (0., 0)], 50)
    assert got["loss"] == 2 and got["tokens"] == 4 and got["loss_lo"] <= 2 <= got["loss_hi"]
    assert per_token([(0., 0)]) == {"loss": None, "tokens": 0}

def test_units_are_read_from_their_features_and_the_unseen_say_nothing():
    d, f = devil(), feats()
    pooled = [f[l].x.mean(1) for l, _ in d.net.cfg.slots] # high, mid, low
    absent = torch.tensor([[False, False, False], [True, False, True], [True, True, True], [False, True, True]])
    got = answer(d, {"feats": pooled, "absent": absent, "texts": [["red"]] * 4}, ways(d))
    prompts = d.net(pooled, absent.clone().index_fill(0, torch.tensor([2]), False))
    said = [c.text for c in captions(d.lm, prompts, 12)]
    assert got["all"]["said"] == [said[0], said[1], "", said[3]] and got["all"]["tokens"] == [2, 2, 0, 2]
    assert [bool(n) for n in got["high"]["tokens"]] == [True, False, False, True] and got["high"]["said"][1] == ""
    alone = d.net([pooled[1][1:2]], slots=[1])
    assert got["mid"]["said"][1] == captions(d.lm, alone, 12)[0].text == got["all"]["said"][1]
    assert answer(d, {"feats": pooled, "absent": torch.ones(4, 3, dtype=torch.bool), "texts": [["red"]] * 4}, ways(d))["all"]["said"] == [""] * 4


# ---- the files

def test_files_and_their_form(toy, tmp_path):
    result, files = evaluated(tmp_path/"run", data=folder(tmp_path/"in"), layers=[None, "mid"], outname="step_00000100")
    assert set(files) == {f"step_00000100-{w}_features_val-{k}.json" for w in ("all", "layermid") for k in ("captions", "metrics-overall")} == set(result["files"])
    said, scores = (files[f"step_00000100-all_features_val-{k}.json"] for k in ("captions", "metrics-overall"))
    assert list(said) == [f"im{k:02}.png" for k in range(10)] and all(isinstance(t, str) for t in said.values())
    x = torch.stack([toy.encoder.transform(picture(k)) for k in range(10)])
    assert list(said.values()) == answer(toy, {"x": x, "texts": [["a"]] * 10}, {"all": toy.layers})["all"]["said"]
    assert {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr", "Bleu_1_lo", "CIDEr_hi", "loss", "loss_lo", "loss_hi", "n", "tokenizer"} <= set(scores)
    assert scores["n"] == 10 and scores["tokenizer"] == "python" and set(scores["baselines"]) == {"constant", "shuffled", "blind"}
    assert all({"Bleu_4", "CIDEr", "tokenizer"} <= set(b) for b in scores["baselines"].values())
    assert set(scores["skipped"]) == {"METEOR", "SPICE", "BERTScore"} and scores["layers"] == toy.layers and scores["left_out"]["count"] == 0
    assert [r["who"] for r in result["rows"]] == ["all", "mid", "constant", "shuffled", "blind", "shuffled", "blind"] and result["n"] == 10
    assert not list((tmp_path/"run").glob("parts-*"))
    refs = {f"im{k:02}.png": [SENTENCES[k % 4]] for k in range(10)}
    assert scores["CIDEr"] == pytest.approx(metrics(said, refs, intervals=False)["CIDEr"])

def test_names_of_layers_in_names_of_files():
    assert [stem("x", w) for w in ("all", "layer4", "stages.3")] == ["x-all_features_val", "x-layer4_features_val", "x-layerstages.3_features_val"]
    assert metrics is judges.metrics and table is judges.table

def test_the_loss_is_that_of_the_whole_set(toy, tmp_path):
    data = folder(tmp_path/"in", 7, lambda k: SENTENCES[k % 4] + "\n" + "red") # two captions each
    scores = evaluated(tmp_path/"run", data=data, layers=[None])[1]["devil-all_features_val-metrics-overall.json"]
    x = torch.stack([toy.encoder.transform(picture(k)) for k in range(7)])
    p = whole(toy.net, toy.encoder.features(x, toy.layers), toy.layers)
    total, tokens = 0, 0
    for t in (0, 1):
        ids, mask = collate(toy.lm.tokenizer, [(SENTENCES[k % 4], "red")[t] for k in range(7)], 12, toy.lm.bos)
        loss, count = caption_loss(toy.lm, p, ids, mask)
        total, tokens = total + float(loss.sum()), tokens + int(count.sum())
    assert scores["loss"] == pytest.approx(total / tokens, abs=1e-5) and scores["tokens"] == tokens

def test_batches_are_encoded_once_and_the_last_one_is_not_dropped(toy, tmp_path):
    result, files = evaluated(tmp_path/"run", data=folder(tmp_path/"in"))
    assert toy.passes == [4, 4, 2] and len(files) == 8 and result["n"] == 10

def test_what_cannot_be_used_is_listed(toy, tmp_path):
    data = folder(tmp_path/"in", 6, lambda k: (None, " ", "red")[min(k, 2)])
    (tmp_path/"in/im03.png").write_bytes(b"\x89PNG nothing")
    result, files = evaluated(tmp_path/"run", data=data, layers=[None])
    left = dict(result["left_out"]["items"])
    assert set(left) == {"im00.png", "im01.png", "im03.png"} and "no caption" in left["im00.png"]
    assert list(files["devil-all_features_val-captions.json"]) == ["im02.png", "im04.png", "im05.png"]
    assert files["devil-all_features_val-metrics-overall.json"]["left_out"]["count"] == 3

def test_nothing_to_score_is_one_sentence(toy, tmp_path):
    with pytest.raises(ValueError, match="captioned and scored") as e: evaluated(tmp_path/"run", data=folder(tmp_path/"in", 2, lambda k: None))
    assert one_sentence(e) and "no caption" in str(e.value)

def test_limit_is_the_first_so_many(toy, tmp_path):
    data = folder(tmp_path/"in")
    result, files = evaluated(tmp_path/"run", data=data, layers=[None], limit=7)
    assert list(files["devil-all_features_val-captions.json"]) == [f"im{k:02}.png" for k in range(7)] and result["n"] == 7

def test_ids_that_come_twice_count_once(toy, tmp_path):
    rows = [{"image": f"im{k:02}.png", "caption": "red"} for k in (0, 1)]
    (tmp_path/"parts").mkdir()
    line = {"names": ["a", "b", "a"], "texts": [["x"], ["y"], ["z"]], "place": 3, "ways": {"all": {"said": ["1", "2", "3"], "nll": [1., 1., 1.], "tokens": [1, 1, 1]}}}
    (tmp_path/"parts/0000-of-0001.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line)[:40])
    from vlnotes.sources import Skipped
    refs, said = evaluate.gathered(tmp_path/"parts", skipped := Skipped())
    assert refs == {"a": ["x"], "b": ["y"]} and said["all"]["a"][0] == "1" and [i for i, _ in skipped] == ["a"] and rows

def test_a_judge_that_is_missing_is_said_first_and_kept(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(judges.shutil, "which", lambda name: None)
    scores = evaluated(tmp_path/"run", data=folder(tmp_path/"in"), layers=[None], java=["METEOR"])[1]["devil-all_features_val-metrics-overall.json"]
    assert "METEOR" in capsys.readouterr().out and "METEOR" not in scores and "`java`" in scores["skipped"]["METEOR"] or "vlnotes[java]" in scores["skipped"]["METEOR"]
    with pytest.raises(FileNotFoundError, match="tokenizer='python'"): evaluated(tmp_path/"two", data=str(tmp_path/"in"), tokenizer="stanford")
    assert toy.passes == [4, 4, 2] # it was known before anything was captioned

def test_without_mean_features_blind_is_left_out_with_a_sentence(toy, tmp_path):
    toy.net.means = {}
    scores = evaluated(tmp_path/"run", data=folder(tmp_path/"in"), layers=[None])[1]["devil-all_features_val-metrics-overall.json"]
    assert "mean training features" in scores["skipped"]["blind"] and "skipped" in scores["baselines"]["blind"]

def test_the_constant_caption_comes_from_the_training_set(toy, tmp_path):
    train = folder(tmp_path/"train", 6, lambda k: "a red square")
    scores = evaluated(tmp_path/"run", data=folder(tmp_path/"in"), layers=[None], train=train)[1]["devil-all_features_val-metrics-overall.json"]
    assert scores["baselines"]["constant"]["text"] == "a red square" and "other data" in scores["baselines"]["constant"]["how"]

def test_drawn_scenes_are_the_default(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "losses", lambda lm, p, texts, n: ([1.] * len(p), [1] * len(p))) # the toy does not know their words
    result, files = evaluated(tmp_path/"run", layers=[None], limit=6, scenes={"seed": 3, "regions": [1, 1]})
    from vlnotes.docmnist import generate
    scenes = generate(6, regions=(1, 1), split="test", seed=3, order="reading", unique=False)
    assert list(files["devil-all_features_val-captions.json"]) == sorted(scenes.ids) and " . " in result["rows"][1]["text"]


# ---- killed, and resumed

def killed(monkeypatch, after):
    real, calls = evaluate.answer, []
    def once(*a, **k):
        calls.append(1)
        if len(calls) > after: raise KeyboardInterrupt
        return real(*a, **k)
    monkeypatch.setattr(evaluate, "answer", once)

@pytest.mark.parametrize("drawn", [False, True])
def test_killed_and_resumed_equals_whole(toy, tmp_path, monkeypatch, drawn):
    monkeypatch.setattr(evaluate, "losses", lambda lm, p, texts, n: (p.mean((1, 2)).tolist(), [1] * len(p)))
    kw = dict(limit=10, scenes={"regions": [1, 1]}) if drawn else dict(data=folder(tmp_path/"in"))
    want = evaluated(tmp_path/"whole", **kw)[1]
    toy.passes.clear()
    with monkeypatch.context() as m:
        killed(m, 2)
        with pytest.raises(KeyboardInterrupt): evaluated(tmp_path/"cut", **kw)
    part = next((tmp_path/"cut").glob("parts-*/0000-of-0001.jsonl"))
    with open(part, "a", encoding="utf-8") as f: f.write('{"names": ["im0') # the line that was being written
    assert toy.passes == [4, 4]
    got = evaluated(tmp_path/"cut", **kw)[1]
    assert toy.passes == [4, 4, 2] and got == want

def test_other_settings_do_not_continue_old_captions(toy, tmp_path, monkeypatch):
    data = folder(tmp_path/"in")
    with monkeypatch.context() as m:
        killed(m, 2)
        with pytest.raises(KeyboardInterrupt): evaluated(tmp_path/"run", data=data, layers=[None])
    toy.passes.clear()
    files = evaluated(tmp_path/"run", data=data, layers=["mid"])[1]
    assert toy.passes == [4, 4, 2] and len(files) == 2
    assert evaluate._parts(cfg(tmp_path, seed=1)) == evaluate._parts(cfg(tmp_path)) != evaluate._parts(cfg(tmp_path, limit=3)) # scoring does not shape captions

def test_parts_of_any_number_of_processes_make_the_same_files(toy, tmp_path):
    data = folder(tmp_path/"in", 11)
    want = evaluated(tmp_path/"one", data=data, layers=[None])[1]
    c, asked = cfg(tmp_path/"three", data=data, layers=[None]), ways(toy, [None])
    for rank in (2, 0): parts = evaluate.caption_set(c, toy, asked, rank, 3)
    assert len(list(parts.glob("*-of-0003.jsonl"))) == 2
    evaluate.caption_set(c, toy, asked, 0, 1) # resumed on one process: the share of the third is missing
    evaluate.write(c, toy, asked, parts)
    got = {p.name: runs.read_json(p) for p in (tmp_path/"three").glob("*.json")}
    assert got["devil-all_features_val-captions.json"] == want["devil-all_features_val-captions.json"]
    a, b = (f["devil-all_features_val-metrics-overall.json"] for f in (got, want))
    assert a["n"] == b["n"] == 11 and a["loss"] == pytest.approx(b["loss"], abs=1e-5) and a["CIDEr"] == b["CIDEr"]

@pytest.mark.slow
def test_two_processes_write_the_same_files(tmp_path):
    c = {"model": "zoo/devil-convnet", "limit": 10, "batch": 4, "layers": [None, "layer4"], "repeats": 20, "device": "cpu", "scenes": {"regions": [1, 2]}}
    found = {}
    for n in (1, 2):
        result = runs.launch("devil.evaluate", {**c, "out": str(tmp_path/str(n))}, n, tmp_path/str(n))
        assert result["processes"] == n and result["n"] == 10
        found[n] = {p.name: p.read_bytes() for p in (tmp_path/str(n)).glob("*_val-*.json")}
    assert len(found[1]) == 4 and found[1] == found[2]


# ---- units

@pytest.fixture
def milan(tmp_path):
    root = write_milan(tmp_path/"milan", {"alexnet/places365": ["conv1", "conv2"]}, units=4)
    m = np.load(root/"alexnet/places365/conv1/masks.npy"); m[1] = 0 # a unit with nothing under its masks
    np.save(root/"alexnet/places365/conv1/masks.npy", m)
    return {"root": str(root), "names": "alexnet/places365", "split": str(tmp_path/"split.json"), "cache": str(tmp_path/"cache")}

def test_units_are_captioned_under_their_place(toy, milan, tmp_path):
    ids = [f"alexnet/places365/conv{l}/{u}" for l in (1, 2) for u in range(4)]
    runs.write_json(milan["split"], {"train": ids[4:6], "val": [], "test": ids[:4] + ids[6:]})
    result, files = evaluated(tmp_path/"run", units=milan, layers=[None, "mid"])
    said, scores = (files[f"devil-all_features_val-{k}.json"] for k in ("captions", "metrics-overall"))
    assert list(said) == [*ids[:4], *ids[6:]] and said[ids[0]].keys() == {"dataset", "layer", "neuron", "caption"}
    assert said[ids[2]] | {"caption": ""} == {"dataset": "alexnet/places365", "layer": "conv1", "neuron": 2, "caption": ""}
    assert said[ids[1]]["caption"] == "" and scores["empty"] >= 1 and scores["n"] == 6 # listed and scored, not dropped
    assert dict(result["left_out"]["items"]).keys() == {ids[1]} and scores["baselines"]["constant"]["how"].endswith("at most")


# ---- pages

def page(path): return path.read_text(encoding="utf-8").split("\n")

def test_pages_hold_everything_from_one_pass(toy, tmp_path):
    rows = [(f"im{k}", picture(k, 20), ["a red\nsquare", "blue"]) for k in range(3)]
    notes = qualitative(toy, rows, tmp_path/"out", layers=["mid", "low"], cells={"high": "all", "mid": [(3, 0), (0, 2)]}, batch=2)
    assert toy.passes == [2, 1] and sorted(p.name for p in (tmp_path/"out").iterdir()) == sorted(f"im{k}.{e}" for k in range(3) for e in ("png", "txt"))
    x = torch.stack([toy.encoder.transform(im) for _, im, _ in rows])
    f = toy.encoder.features(x, toy.layers)
    say = lambda p: [c.text for c in captions(toy.lm, p, 12)]
    k = 1
    full = [say(whole(toy.net, f, w))[k] for w in (["low", "mid", "high"], ["low"], ["mid"])]
    high, mid = (say(per_cell(toy.net, f[l]).flatten(0, 1)) for l in ("high", "mid"))
    assert page(tmp_path/"out/im1.txt") == ["# references", "a red square", "blue", "", "# all", full[0], "", "# low", full[1], "", "# mid", full[2],
        "", "# high, cells", *(f"({r}, {c}): {high[4 * k + 2 * r + c]}" for r in (0, 1) for c in (0, 1)),
        "", "# mid, cells", f"(3, 0): {mid[16 * k + 12]}", f"(0, 2): {mid[16 * k + 2]}", ""]
    assert len(notes) == 3 * (3 + 4 + 2) and {(n.layer, n.row, n.col, n.grid_h) for n in notes if n.image_id == "im1" and n.row is not None} >= {("mid", 3, 0, 4)}
    shown = np.asarray(Image.open(tmp_path/"out/im1.png").convert("RGB"))
    assert shown.shape == (SIDE, SIDE, 3) and np.abs(shown / 255 - x[1].permute(1, 2, 0).numpy()).max() <= .5 / 255 + 1e-6

def test_pages_of_a_stream_and_of_tensors(toy, tmp_path):
    toy.encoder.mean, toy.encoder.std = (.5, .4, .3), (.2, .3, .4)
    x = toy.encoder.transform(picture(0))
    qualitative(toy, [Sample("a", picture(0), ["red"]), ("b", (x - torch.tensor(toy.encoder.mean).view(3, 1, 1)) / torch.tensor(toy.encoder.std).view(3, 1, 1))], tmp_path)
    shown = np.asarray(Image.open(tmp_path/"b.png")) / 255
    assert np.abs(shown - x.permute(1, 2, 0).numpy()).max() < .5 / 255 + 1e-6 # un-normalised
    assert page(tmp_path/"b.txt")[:3] == ["# references", "", "# all"] and page(tmp_path/"a.txt")[1] == "red"

def test_cells_smoothed_as_asked(toy, tmp_path):
    notes = qualitative(toy, [("a", picture(0))], tmp_path/"one", layers=[], cells={"low": [[-1, -1]]}, kernel=3)
    want = toy.describe([("a", picture(0))], ["low"], cells="all", kernel=3)
    assert [n.text for n in notes if n.row is not None] == [n.text for n in want] and {n.layer for n in notes} == {"all", "low"}

@pytest.mark.parametrize("kw, told", [(dict(cells={"mid": [(4, 0)]}), r"\(4, 0\) is outside the 4 x 4"), (dict(cells={"mdi": "all"}), "mdi"), (dict(layers="x"), "x"),
                                      (dict(kernel=2, cells={"mid": "all"}), "odd")])
def test_bad_requests_for_pages(toy, tmp_path, kw, told):
    with pytest.raises(ValueError, match=told) as e: qualitative(toy, [("a", picture(0))], tmp_path/"out", **kw)
    assert one_sentence(e) and not (tmp_path/"out").exists()

def test_odd_ids_stay_inside_the_folder(toy, tmp_path):
    odd = ["../x", "a/b", "a_b", "/etc/passwd", "..", ".", "", ".hidden", "a\\b", "a\0b", "c:d", "x" * 400, "é/" * 100, "plain name.jpg"]
    qualitative(toy, [(n, picture(k)) for k, n in enumerate(odd)], tmp_path/"in/out", layers=[])
    made = list((tmp_path/"in/out").iterdir())
    assert len(made) == 2 * len(odd) and [p.name for p in (tmp_path/"in").iterdir()] == ["out"] and all(not p.name.startswith(".") for p in made)
    assert (tmp_path/"in/out/plain name.jpg.png").exists() and (tmp_path/"in/out/a_b.txt").exists()

def test_an_id_twice_is_refused(toy, tmp_path):
    with pytest.raises(ValueError, match="'a' comes twice"): qualitative(toy, [("a", picture(0)), ("b", picture(1)), ("a", picture(2))], tmp_path, batch=2)

@given(st.lists(st.text(max_size=150), unique=True, max_size=30))
def test_file_names_are_plain_and_unique(names):
    found = [filename(n) for n in names]
    assert len(set(found)) == len(found) and all("/" not in f and "\\" not in f and "\0" not in f and not f.startswith(".") and 0 < len(f.encode()) <= 200 for f in found)
