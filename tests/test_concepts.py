"Concept search: the ceiling by labels, the baseline without, units of any kind, the command line, bad input."
import json

import numpy as np
import pytest
from click.testing import CliRunner

from vlnotes import claims, describe, planted
from vlnotes.cli import main
from vlnotes.concepts import search as cs
from vlnotes.docmnist import generate
from vlnotes.notes import Notes

pytest.importorskip("open_clip")
SCENES = generate(60, regions=(1, 4), split="test", seed=8)
IMAGES = [(k, SCENES.image(i)) for i, k in enumerate(SCENES.ids)]


@pytest.fixture(scope="module")
def clip(): return cs.contrastive("zoo/coca")


def test_the_oracle_recovers_planted_channels_in_any_random_network():
    found = []
    scenes = generate(200, regions=(3, 6), split="val", seed=3)
    names, vectors = planted.candidates(scenes)
    for seed in range(3):
        words = planted.pairs_to_plant(24, seed)
        bb = planted.planted(words, "layer2", seed)
        acts, at = planted.activations(bb, scenes, "net.layer2", range(24))
        said, score = cs.oracle(acts, planted.on_cells(vectors, scenes, at), names)
        for w, s in zip(words, said):
            t = claims.regions(claims.both(*w), scenes)
            if t.sum() >= 10: found.append((claims.regions(s, scenes) == t).all())
        assert (score <= 1 + 1e-4).all()
    assert len(found) > 50 and np.mean(found) >= .95


def test_the_contrastive_model_knows_the_drawn_world(clip):
    z = clip.image(clip.encoder.normalise(SCENES.pixels()))
    sims = (z @ clip.text([f"the image shows a {w}" if w in SCENES.vocab.digits else f"the color is {w}" for w in SCENES.vocab.attributes[:15]]).T).numpy().T
    truth = claims.vectors([claims.word(w) for w in SCENES.vocab.attributes[:15]], SCENES, "images")
    own = [np.corrcoef(s, t)[0, 1] for s, t in zip(sims, truth)]
    other = [np.corrcoef(s, t)[0, 1] for s, t in zip(sims, np.roll(truth, 5, 0))]
    assert np.mean(own) > np.mean(other) + .15
    alone, among = clip.text(["the color is red"]), clip.text(["a three", "the color is red", "the shape is a circle"])
    assert np.allclose(alone[0], among[1], atol=1e-5) # padding changes nothing


def test_search_is_the_best_correlation_and_soft_wpmi_finds_it_too():
    rng = np.random.default_rng(0)
    sims = .3 + .05 * rng.normal(size=(9, 500))
    acts = np.maximum(sims[[2, 7, 4]] - .3 + .01 * rng.normal(size=(3, 500)), 0)
    for metric in ("pearson", "spearman", "soft-wpmi"):
        said, score, why = cs.search(acts, sims, list("abcdefghi"), metric)
        assert said == ["c", "h", "e"] and not why
        order = rng.permutation(500)
        assert cs.search(acts[:, order], sims[:, order], list("abcdefghi"), metric)[0] == said
    assert "every sample" in cs.search(np.zeros((1, 500)), sims, list("abcdefghi"))[2][0]
    with pytest.raises(ValueError, match="needs labels"): cs.search(acts, sims, list("abcdefghi"), "auprc")
    with pytest.raises(ValueError, match="is nan"): cs.search(acts * np.nan, sims, list("abcdefghi"))


def test_channels_and_functions_are_named_alike():
    who = cs.describer(encoder="zoo/convnet")
    channels = who.look(IMAGES, {"layer4": [0, 5, 9]}).describe(units={"layer4": [9, 0]})
    pick = cs.Concepts(who.encoder, who.clip, who.words, prompt=who.prompt, unit=lambda f: f.x[..., [0, 5, 9]])
    same = pick.describe(IMAGES, units={"layer4": [2, 0]})
    assert [n.text for n in channels] == [n.text for n in same] and [n.unit for n in channels] == [9, 0]
    assert np.allclose(channels.column("score"), same.column("score")) and len(channels[0].extra["next"]) == 4
    assert who.blind() in who.words


def test_a_backbone_of_ones_own_is_taken_as_it_is():
    by_name, units = cs.describer(encoder="zoo/convnet"), {"layer4": [0, 5, 9]}
    own = cs.describer(encoder=by_name.encoder, clip="zoo/coca")
    assert own.encoder is by_name.encoder and own.spec == "zoo/convnet"
    assert own.describe(IMAGES, units=units) == by_name.describe(IMAGES, units=units)


def test_bad_input_is_told(tmp_path):
    empty, many, raw = (tmp_path/n for n in ("empty.txt", "many.txt", "raw.txt"))
    empty.write_text("\n\n"); many.write_text("a red thing\nred\nred\n"); raw.write_bytes(b"\xff\xfe\x00r")
    assert cs.word_list(many) == ["a red thing", "red"]
    for bad, why in ((empty, "holds no words"), (tmp_path/"none.txt", "no file of words"), (raw, "no text in UTF-8"), (["red"], "leaves nothing to choose")):
        with pytest.raises((ValueError, OSError), match=why): cs.word_list(bad)
    for kw, why in ((dict(clip="zoo/convnet"), "does not read texts"), (dict(clip="timm/resnet18"), "does not compare images with texts"), (dict(metric="auprc"), "no metric 'auprc'"), (dict(prompt="a photo"), "no place for the word")):
        with pytest.raises(ValueError, match=why): cs.describer(**kw)
    who = cs.describer()
    with pytest.raises(ValueError, match="give --units"): who.describe(IMAGES)
    with pytest.raises(ValueError, match="at least 10, not 3"): who.look(IMAGES[:3], {"layer4": [0]})
    with pytest.raises(ValueError, match="layer 'layer4' has channels 0 to 127, not 500"): who.look(IMAGES, {"layer4": [500]})
    with pytest.raises(ValueError, match="no layer 'layer9'"): who.look(IMAGES, {"layer9": [0]})
    with pytest.raises(ValueError, match="does not take 'words'"): describe.make("devil", words="w.txt")


def test_a_model_of_open_clip_from_a_file(tmp_path):
    cfg = tmp_path/"tiny-contrast.json"
    cfg.write_text(json.dumps(dict(embed_dim=16, vision_cfg=dict(image_size=32, layers=1, width=16, patch_size=16, head_width=8), text_cfg=dict(context_length=77, vocab_size=49408, width=16, heads=2, layers=1))))
    who = cs.describer(encoder="timm/resnet10t@random", clip=f"open_clip/{cfg}@random", words=["a dog", "a cat", "the sky"])
    notes = who.look(IMAGES[:12], {"layer4": [0, 1]}, batch=5).describe(units={"layer4": [0, 1]})
    assert [n.text in who.words for n in notes] == [True, True] and notes[0].extra["images"] == 12


def test_the_command_line_names_units_of_any_encoder(tmp_path):
    folder, words = tmp_path/"photos", tmp_path/"words.txt"
    folder.mkdir(); words.write_text("red\nblue\na circle\nthe digit three\n")
    for k, im in IMAGES[:24]: im.save(folder/f"{k}.png")
    (folder/"broken.png").write_bytes(b"no picture")
    out = CliRunner().invoke(main, ["describe", "--by", "concepts", "--encoder", "timm/resnet10t@random", "--units", "layer4:0-2", "--words", str(words), "-o", "clip=zoo/coca", "--out", str(tmp_path/"run"), str(folder)])
    assert out.exit_code == 0, out.output
    notes, made = Notes.read(tmp_path/"run/notes.parquet"), json.loads((tmp_path/"run/manifest.json").read_text())
    assert [n.unit for n in notes] == [0, 1, 2] and all(n.text in words.read_text().splitlines() or n.extra["undescribed"] for n in notes) and notes[0].extra["images"] == 24
    assert made["skipped"]["count"] >= 1 and (tmp_path/"run/report.html").exists()
    out = CliRunner().invoke(main, ["describe", "--by", "concepts", "--out", str(tmp_path/"other")])
    assert out.exit_code == 2 and "give --units" in out.output
