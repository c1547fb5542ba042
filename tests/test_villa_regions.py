"ViLLA's vectors on disk, the region encoder and its retrieval scores."
import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vlnotes import docmnist, metrics
from vlnotes.runs import launch, read_json
from vlnotes.villa import corpora, embeddings, mapping, region_encoder, retrieval

NET = dict(arch="resnet", kw=dict(layers=[1, 1, 1, 1], channels=[4, 4, 8, 8], stem_width=4, output_stride=16))
TOWER = dict(net=NET, side=2, pool="flat")


def world(n=12, target=16, split="val", seed=0): return corpora.drawn(docmnist.generate(n, target=target, split=split, seed=seed))


# ---- vectors on disk

def test_the_store_goes_on_after_a_fault(tmp_path):
    c, pix = world(20), embeddings.Pixels.fit(world(20), 8)
    calls, real = [], pix.read
    def read(*a):
        calls.append(1)
        if len(calls) == 3: raise KeyboardInterrupt
        return real(*a)
    pix.read = read
    with pytest.raises(KeyboardInterrupt): embeddings.embed(c, pix, tmp_path, shard=5, bs=5)
    done = len(list(tmp_path.rglob("shard.json")))
    assert done == 2
    x = np.asarray(embeddings.embed(c, pix, tmp_path, shard=5, bs=5)[1])
    assert len(calls) == 5 # two shards were there, the third was cut, two more to come
    pix.read = real
    assert (x == np.asarray(embeddings.embed(c, pix, tmp_path/"other", shard=7)[1])).all()


@pytest.mark.parametrize("n, target", [(6, 40), (11, 16), (1, 16)]) # nine regions each; one more than a shard; one image
def test_equal_counts_and_odd_totals(n, target, tmp_path):
    c = world(n, target)
    same, x = embeddings.embed(c, pix := embeddings.Pixels.fit(world(20), 8), tmp_path, shard=10, dtype="float32")
    want = pix.read([c.open(i) for i in range(n)], [c.boxes[slice(*c.offsets[[i, i + 1]])] for i in range(n)])[0]
    assert same is c and np.allclose(np.asarray(x), want)


def test_another_corpus_with_the_same_ids_is_told_apart(tmp_path):
    pix, a, b = embeddings.Pixels.fit(world(20), 8), world(4, seed=0), world(4, seed=1)
    assert a.ids == b.ids
    assert not np.array_equal(np.asarray(embeddings.embed(a, pix, tmp_path)[1])[:4], np.asarray(embeddings.embed(b, pix, tmp_path)[1])[:4])


def test_images_that_cannot_be_read_are_left_out(tmp_path):
    for k in range(3): Image.new("RGB", (84, 84), (90 * k, 10, 10)).save(tmp_path/f"{k}.png")
    c = corpora.gather([dict(id=str(k), image=tmp_path/f"{k}.png", regions=[(0, 0, 40, 40), (1, 1, 30, 30)], text="a red thing") for k in range(3)], ["red"])
    (tmp_path/"1.png").write_bytes((tmp_path/"1.png").read_bytes()[:60])
    small, x = embeddings.embed(c, embeddings.reader("zoo/convnet"), tmp_path/"store")
    assert small.ids == ["0", "2"] and x.shape == (4, 128) and any(what == "1" for what, _ in small.skipped)
    again, y = embeddings.embed(c, embeddings.reader("zoo/convnet"), tmp_path/"store")
    assert again.ids == ["0", "2"] and np.array_equal(np.asarray(x), np.asarray(y))
    for k in (0, 2): (tmp_path/f"{k}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 6 regions"): embeddings.embed(c, embeddings.reader("zoo/convnet"), tmp_path/"other")


def test_boxes_outside_the_encoders_crop_have_no_vector():
    r = embeddings.reader("timm/resnet10t@random")
    im = Image.new("RGB", (600, 200), "red")
    z, ok = r.read([im], [np.array([[0., 0, 20, 20], [250, 50, 350, 150]])])
    assert ok.tolist() == [False, True] and z.shape == (2, 512)


def test_boxes_follow_the_image():
    r = embeddings.reader("timm/resnet10t@random", layers="layer1", side=2)
    a = Image.new("RGB", (300, 300))
    a.paste((255, 255, 255), (30, 30, 150, 150))
    b = a.resize((600, 600), Image.Resampling.NEAREST)
    box = np.array([[60., 60, 120, 120]])
    assert torch.allclose(r.read([a], [box])[0], r.read([b], [box * 2])[0], atol=.05)


def test_attribute_vectors_are_means_before_normalisation():
    class Named:
        name = "toy"
        def encode(self, texts): return torch.tensor([[float(len(t)), 1.] for t in texts])
    t = embeddings.attribute_vectors([["a", "aaa"]], Named())
    assert torch.allclose(t, F.normalize(torch.tensor([[2., 1.]]), dim=1))
    with pytest.raises(ValueError, match="no prompt"): embeddings.attribute_vectors([[]], Named())
    with pytest.raises(ValueError, match="need an X"): embeddings.prompts(["a"], ["the"])
    with pytest.raises(ValueError, match="no direction"): embeddings.attribute_vectors([["."]], "hash")
    with pytest.raises(ValueError, match="random or embedder"): embeddings.vectors_of({}, world(2))


def test_settings_of_a_store():
    with pytest.raises(ValueError, match="float16 or float32"): embeddings.embed(world(2), None, dtype="int8")
    with pytest.raises(ValueError, match="principal components"): embeddings.Pixels.fit(world(2), 200)


# ---- the region encoder

def test_gradients_reach_the_tower_and_not_the_texts():
    c = world()
    enc = region_encoder.RegionEncoder(TOWER, 16)
    p = region_encoder.pair(c, mapping.phrases(c, c.truth), "hash/16", enc.prepare)
    loss, n = region_encoder.Stage2(enc)(p.batch([0, 1, 2]))
    (loss / n).backward()
    assert all(q.grad is not None and q.grad.isfinite().all() for q in enc.parameters()) and not p.table.requires_grad


def test_texts_are_means_of_unit_sentences():
    from vlnotes.text import embedder
    c = world(3)
    said = [["one", "two three"], ["one"]] + [[]] * (len(c.boxes) - 2)
    enc = region_encoder.RegionEncoder(TOWER, 32)
    p = region_encoder.pair(c, said, "hash/32", enc.prepare, whole=False)
    e = embedder("hash/32")(["one", "two three"])
    assert torch.allclose(p.table[p.region[0]], F.normalize(e.mean(0), dim=0), atol=1e-6) and p.region.tolist()[2:] == [-1] * (len(said) - 2)
    assert p.images.tolist() == [0] and p.pairs == 2
    with pytest.raises(ValueError, match="nothing to train"): region_encoder.pair(c, [[]] * len(said), "hash/32", enc.prepare)
    with pytest.raises(ValueError, match="lists of sentences"): region_encoder.pair(c, said[1:], "hash/32", enc.prepare)


def test_batch_of_two_is_two_batches_of_one_and_boxes_stay_with_their_image():
    c = world()
    enc = region_encoder.RegionEncoder(TOWER, 16).eval()
    p = region_encoder.pair(c, mapping.phrases(c, c.truth), "hash/16", enc.prepare)
    with torch.no_grad():
        both, ones = enc(*p.batch([3, 5])[:3]), [enc(*p.batch([i])[:3]) for i in (3, 5)]
        turned = enc(*p.batch([5, 3])[:3])
    assert torch.allclose(both, torch.cat(ones), atol=1e-5) and torch.allclose(turned, torch.cat(ones[::-1]), atol=1e-5)


def test_batch_normalisation_may_stay_frozen():
    c = world()
    for frozen in (True, False):
        enc = region_encoder.RegionEncoder(TOWER, 16, freeze_bn=frozen).train()
        p = region_encoder.pair(c, mapping.phrases(c, c.truth), "hash/16", enc.prepare)
        before = {k: v.clone() for k, v in enc.state_dict().items() if "running_mean" in k}
        enc(*p.batch([0, 1])[:3])
        assert all(v.equal(enc.state_dict()[k]) for k, v in before.items()) == frozen


def test_training_resumes_to_the_same_weights(tmp_path):
    c = world()
    go = dict(bs=4, lr=1e-3, device="cpu", schedule="constant", save_every=2)
    def fresh():
        enc = region_encoder.RegionEncoder(TOWER, 16, seed=1)
        return enc, region_encoder.pair(c, mapping.phrases(c, c.truth), "hash/16", enc.prepare)
    whole = region_encoder.train(*fresh(), steps=4, **go)[0].state_dict()
    region_encoder.train(*fresh(), out=tmp_path, steps=2, **go)
    again = region_encoder.train(*fresh(), out=tmp_path, steps=4, **go)[0].state_dict()
    assert all(v.equal(again[k]) for k, v in whole.items())


def test_the_best_weights_of_the_validation_are_kept(tmp_path):
    c = world()
    enc = region_encoder.RegionEncoder(TOWER, 16)
    p = region_encoder.pair(c, mapping.phrases(c, c.truth), "hash/16", enc.prepare)
    enc, done = region_encoder.train(enc, p, p, tmp_path, steps=6, bs=4, lr=.05, save_every=1, device="cpu")
    best = min(done["val"], key=lambda h: h["loss"])
    assert math.isclose(region_encoder.validate(region_encoder.Stage2(enc).eval(), p, 4), best["loss"], rel_tol=1e-4) and len(done["val"]) == 6
    assert not enc.training and read_json(tmp_path/"val.json") == done["val"]


def test_decay_spares_norms_unless_it_is_coupled_as_released():
    "A decay that drowns the gradient: Adam's first update is then one `lr` towards zero in every entry, norms' gains too; AdamW leaves the gains to the gradient."
    c = world(4)
    def moved(**how):
        e = region_encoder.RegionEncoder(TOWER, 16)
        before = {k: v.detach().clone() for k, v in e.named_parameters()}
        pairs = region_encoder.pair(c, mapping.phrases(c, c.truth), "hash/16", e.prepare)
        region_encoder.train(e, pairs, steps=1, bs=4, lr=1e-3, decay=1e6, schedule="constant", **how)
        return {k: (v.detach() - before[k], before[k]) for k, v in e.named_parameters()}
    coupled, plain = moved(coupled=True), moved()
    for d, p in coupled.values(): assert torch.allclose(d[p != 0], -1e-3 * p[p != 0].sign(), atol=1e-5)
    gains = [k for k, (_, p) in coupled.items() if p.dim() == 1 and (p == 1).all()]
    assert gains and all(plain[k][0].abs().max() < 1.1e-3 for k in gains)
    assert any(not torch.allclose(plain[k][0], coupled[k][0], atol=1e-5) for k in gains) and max(d.abs().max() for k, (d, _) in plain.items() if k not in gains) > 1


def test_bf16_trains():
    c = world()
    enc = region_encoder.RegionEncoder(TOWER, 16)
    p = region_encoder.pair(c, mapping.phrases(c, c.truth), "hash/16", enc.prepare)
    done = region_encoder.train(enc, p, steps=3, bs=4, precision="bf16", device="cpu")[1]
    assert math.isfinite(done["loss"]) and next(enc.parameters()).dtype == torch.float32


def test_step_on_two_processes(tmp_path):
    spec = {"docmnist": dict(n=16, target=16, split="val", seed=0)}
    c = corpora.made(spec)
    np.save(tmp_path/"found.npy", c.truth)
    cfg = dict(corpus=spec, found=str(tmp_path/"found.npy"), embedder="hash/16", tower=TOWER, out=str(tmp_path/"two"), device="cpu", fit=dict(steps=2, bs=4, save_every=1), progress=False)
    (tmp_path/"two").mkdir()
    done = launch("villa.region_encoder", cfg, 2, tmp_path/"two")
    assert done["world"] == 2 and done["steps"] == 2
    enc, about, vectors = region_encoder.load(tmp_path/"two/model")
    assert about["attributes"] == list(c.attributes) and vectors.shape == (20, 16) and not any(p.requires_grad for p in enc.parameters())
    np.save(tmp_path/"found.npy", c.truth[1:])
    with pytest.raises(ValueError, match="holds links"): region_encoder.step(cfg | dict(out=str(tmp_path/"bad")))
    assert os.environ.get("RANK") is None


def test_wrong_folders_are_refused(tmp_path):
    enc = region_encoder.RegionEncoder(TOWER, 16)
    region_encoder.save(tmp_path/"a", enc, "hash/16")
    other = dict(TOWER, net=dict(NET, kw=dict(NET["kw"], channels=[4, 4, 8, 16])))
    region_encoder.save(tmp_path/"b", region_encoder.RegionEncoder(other, 16), "hash/16")
    (tmp_path/"a/weights.safetensors").write_bytes((tmp_path/"b/weights.safetensors").read_bytes())
    with pytest.raises(ValueError, match="does not fit"): region_encoder.load(tmp_path/"a")
    with pytest.raises(FileNotFoundError): region_encoder.load(tmp_path/"c")
    mapping.save(tmp_path/"m", mapping.Mapper(mapping.MappingConfig(4, 1)), ["a"], torch.eye(4)[:1])
    with pytest.raises(ValueError, match="no region encoder"): region_encoder.load(tmp_path/"m")


def test_multi_positive_pulls_duplicates_together_and_negatives_push_them_apart():
    g = torch.Generator().manual_seed(0)
    z, text = F.normalize(torch.randn(4, 8, generator=g), dim=1), torch.tensor([0, 0, 1, 2])
    t = F.normalize(torch.randn(3, 8, generator=g), dim=1)[text]
    kl = region_encoder.contrastive(z, t, text)
    s = z @ t.T / .07
    want = (text[:, None] == text[None]).float()
    want = want / want.sum(1, keepdim=True)
    by_hand = sum((want * (want.clamp_min(1e-12).log() - m.log_softmax(1))).sum() for m in (s, s.T)) / 2
    assert torch.isclose(kl, by_hand, rtol=1e-5) and kl < region_encoder.contrastive(z, t, text, duplicates="negatives")
    distinct = torch.arange(4)
    a, b = (region_encoder.contrastive(z, t, distinct, duplicates=k) for k in ("multi-positive", "mask"))
    assert torch.isclose(a, b) and torch.isclose(a, region_encoder.contrastive(z, t, distinct, duplicates="negatives"))
    with pytest.raises(ValueError, match="duplicates"): region_encoder.contrastive(z, t, text, duplicates="none")


# ---- retrieval

def test_ranked_equals_the_plain_scores_with_and_without_ties():
    rng = np.random.default_rng(0)
    for s in (rng.normal(size=(30, 25)), rng.normal(size=(30, 25)).round()):
        right = rng.random((30, 25)) < .2
        right[4] = False
        got = retrieval.ranked(s, right, (1, 3, 40))
        for k, f in {"r_precision": metrics.r_precision(s, right), "mrr": metrics.mrr(s, right), "p@3": metrics.precision_at_k(s, right, 3)}.items():
            assert np.allclose(got[k], f, equal_nan=True), k
        assert np.isnan(got["mrr"][4]) and np.allclose(got["p@40"], np.where(right.any(1), right.sum(1) / 40, np.nan), equal_nan=True)
    with pytest.raises(ValueError, match="NaN"): retrieval.ranked(np.full((1, 2), np.nan), np.ones((1, 2), bool))
    with pytest.raises(ValueError, match="both are"): retrieval.ranked(np.ones((1, 2)), np.ones((2, 2), bool))
    with pytest.raises(ValueError, match="no query"): retrieval.ranked(np.ones((0, 2)), np.ones((0, 2), bool))


def test_a_resample_is_read_off_the_ranking():
    rng = np.random.default_rng(1)
    s, right, owner = rng.normal(size=40), rng.random(40) < .3, np.repeat(np.arange(10), 4)
    w = rng.multinomial(10, np.full(10, .1), 5)
    got = retrieval._r_precision(np.argsort(-s), right, w[:, owner])
    for k in range(5): # the resample written out
        rows = np.repeat(np.arange(40), w[k][owner])
        assert math.isclose(got[k], metrics.r_precision(s[rows], right[rows])[0], abs_tol=1e-9)


def test_random_vectors_score_as_often_as_an_answer_is_right():
    c = world(300)
    r = retrieval.retrieval(retrieval.random_regions((len(c.boxes), 32)), retrieval.random_regions((20, 32), 1), c.truth, c.owner, repeats=50)
    assert abs(r["t2r_r_precision"] - c.truth.mean()) < .03 and r["t2r_r_precision_lo"] < r["t2r_r_precision"] < r["t2r_r_precision_hi"]
    with pytest.raises(ValueError, match="do not fit"): retrieval.retrieval(np.ones((3, 2)), np.ones((20, 2)), c.truth, c.owner)
    with pytest.raises(ValueError, match="nothing can be found"): retrieval.retrieval(np.ones((len(c.boxes), 2)), np.ones((20, 2)), c.truth & False, c.owner)


def test_zero_shot_counts_only_regions_that_have_one():
    truth = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1]], bool)
    out = retrieval.zero_shot(np.array([[1., 0, 0], [0, 1, 0], [1, 0, 0]]), np.eye(3), truth, {"ab": [0, 1], "none": []})
    assert out["ab"]["n"] == 2 and out["ab"]["accuracy"] == 1 and "none" not in out


@pytest.mark.parametrize("tower", [dict(encoder="timm/resnet10t@random", layers="layer2", side=2), dict(encoder="timm/vit_tiny_patch16_224@random", layers=2, side=3, pool="flat")])
def test_any_timm_encoder_trains(tower):
    c = world(4)
    enc = region_encoder.RegionEncoder(tower, 16)
    p = region_encoder.pair(c, mapping.phrases(c, c.truth), "hash/16", enc.prepare)
    before = {k: v.clone() for k, v in enc.named_parameters()}
    region_encoder.train(enc, p, steps=1, bs=2, lr=1e-2, schedule="constant", device="cpu")
    moved = {k for k, v in enc.named_parameters() if not v.equal(before[k])}
    assert any(k.startswith("tower") for k in moved) and any(k.startswith("proj") for k in moved)
    assert all(v.requires_grad == (k in moved) or v.requires_grad for k, v in enc.named_parameters()) and not all(v.requires_grad for v in enc.parameters())


def test_a_caption_may_be_one_text():
    from vlnotes.text import embedder
    c = world(3)
    enc = region_encoder.RegionEncoder(TOWER, 16)
    one, mean = (region_encoder.pair(c, mapping.phrases(c, c.truth), "hash/16", enc.prepare, caption=k) for k in (True, False))
    e = embedder("hash/16")
    assert torch.allclose(one.table[one.whole[0]], e([c.texts[0]])[0], atol=1e-6)
    assert torch.allclose(mean.table[mean.whole[0]], F.normalize(e(c.sentences[0]).mean(0), dim=0), atol=1e-6)
