"ViLLA's corpora, towers and mapping: bad input, invariants, resume."
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlnotes import docmnist, pretrain
from vlnotes.sources import Skipped
from vlnotes.villa import corpora, mapping, towers


def world(n=60, target=16, split="val", seed=0): return corpora.drawn(docmnist.generate(n, target=target, split=split, seed=seed))


def toy(A=5, d=8, n=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 4, (n,), generator=g)
    x, t = torch.randn(int(counts.sum()), d, generator=g), F.normalize(torch.randn(A, d, generator=g), dim=1)
    y = torch.rand(n, A, generator=g) < .5
    y[0, 0] = True
    return x, t, y, counts


# ---- corpora

GOOD = dict(id="a", image=np.zeros((3, 20, 30), np.uint8), regions=[(0, 0, 10, 10)], text="A red thing.")

@pytest.mark.parametrize("change, told", [
    (dict(text=""), "text is empty"), (dict(text=None), "text is empty"), (dict(regions=[]), "no region"), (dict(regions=None), "no region"),
    (dict(regions=[(40, 0, 50, 10)]), "outside"), (dict(regions=[(5, 5, 5, 9)]), "empty"), (dict(regions=[(0, 0, 5)]), "four finite numbers"),
    (dict(regions=[(0, 0, float("nan"), 9)]), "four finite numbers"), (dict(regions=["box"]), "neither"), (dict(regions=[np.zeros((20, 30), bool)]), "mask is empty"),
    (dict(regions=[np.ones((5, 5), bool)]), "its mask is"), (dict(image="no/such.png"), "no file")])
def test_bad_records_are_counted_and_the_rest_is_kept(change, told):
    skipped = Skipped()
    c = corpora.gather([GOOD, GOOD | dict(id="b") | change], ["red"], skipped=skipped)
    assert c.ids == ["a"] and any("b" in what and told in why for what, why in skipped), list(skipped)
    assert all(why.count("\n") == 0 for _, why in skipped)


def test_nothing_usable_is_one_sentence():
    with pytest.raises(ValueError, match="nothing can be used"): corpora.gather([GOOD | dict(text="")], ["red"])
    with pytest.raises(ValueError, match="no text mentions"): corpora.gather([GOOD], ["blue"])
    with pytest.raises(ValueError, match="twice"): corpora.gather([GOOD], ["red", "red"])
    with pytest.raises(ValueError, match="at least one"): corpora.gather([GOOD], [])
    with pytest.raises(ValueError, match="docmnist or source"): corpora.made({"name": 1})


def test_an_attribute_that_never_occurs_is_told():
    c = corpora.gather([GOOD], ["red", "blue"])
    assert any("'blue'" in what for what, _ in c.skipped) and not c.said[:, 1].any()


def test_equal_counts_are_no_special_case():
    scenes = docmnist.generate(5, target=40, split="val") # nine regions each
    c = corpora.drawn(scenes)
    assert set(c.counts) == {9} and len(c[[4, 1]].boxes) == 18 and c[[4, 1]].open(0).tolist() == scenes.pixels([4])[0].tolist()


def test_coco_with_masks(tmp_path):
    import json
    Image.new("RGB", (40, 30), "red").save(tmp_path/"x.png")
    ann = [dict(id=1, image_id=7, category_id=1, bbox=[5, 5, 10, 10], segmentation=[[5, 5, 15, 5, 15, 15, 5, 15]]),
           dict(id=2, image_id=7, category_id=2, bbox=[0, 0, 4, 4], segmentation=dict(size=[30, 40], counts=[0, 4, 1196])), dict(id=3, image_id=7, caption="a cat and a dog")]
    (tmp_path/"c.json").write_text(json.dumps(dict(images=[dict(id=7, file_name="x.png")], categories=[dict(id=1, name="cat"), dict(id=2, name="dog")], annotations=ann)))
    c = corpora.read(str(tmp_path/"c.json"), masks=True)
    assert c.attributes == ("cat", "dog") and c.truth.tolist() == [[True, False], [False, True]] and c.said.all()
    assert c.boxes[1].tolist() == [0, 0, 1, 4] and c.masks[0].mean() > .9 # run lengths go down the columns
    assert corpora.read(str(tmp_path/"c.json")).boxes[1].tolist() == [0, 0, 4, 4]
    with pytest.raises(FileNotFoundError): corpora.read(str(tmp_path/"none.json"))


def test_regions_can_be_left_out():
    c = world(10)
    keep = c.owner != 3
    keep[c.rows([5])[0]] = False
    small = c.only(keep)
    assert 3 not in [c.ids.index(i) for i in small.ids] and len(small.boxes) == keep.sum() and (small.boxes == c.boxes[keep]).all()


# ---- towers

def test_clip_tower_in_a_batch_and_alone():
    pytest.importorskip("open_clip")
    tower = towers.ClipTower(towers.modified_resnet(layers=(1, 1, 1, 1), width=16, out=24, image=96)).eval()
    x, boxes, own = torch.rand(2, 3, 84, 84), torch.tensor([[0., 0, 28, 28], [28, 28, 84, 84], [0, 0, 84, 84]]), torch.tensor([0, 1, 1])
    with torch.no_grad():
        z = tower(x, boxes, own)
        alone = torch.cat([tower(x[:1], boxes[:1], own[:1]), tower(x[1:], boxes[1:], own[1:] - 1)])
        swapped = tower(x.flip(0), boxes, 1 - own)
    assert torch.allclose(z, alone, atol=1e-5) and torch.allclose(z, swapped, atol=1e-5)
    with pytest.raises(ValueError, match="not masks"): tower(x, boxes, own, torch.ones(3, 3, 3))


def test_a_weight_file_that_does_not_match_is_refused():
    pytest.importorskip("open_clip")
    state = towers.modified_resnet(layers=(1, 1, 1, 1), width=16, out=24, image=96).state_dict()
    with pytest.raises(ValueError, match="missing"): towers.modified_resnet({k: v for k, v in state.items() if "layer2.0.bn1" not in k})
    with pytest.raises(ValueError, match="no square"): towers.modified_resnet(state | {"attnpool.positional_embedding": torch.zeros(8, 512)})
    with pytest.raises(ValueError, match="no weights of CLIP"): towers.modified_resnet({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="no CLIP ResNet"): towers.ClipTower(torch.nn.Linear(2, 2))


def test_far_boxes_keep_their_pixels_in_half_precision():
    f = torch.arange(64.).view(1, 1, 8, 8).to(torch.bfloat16)
    box = torch.tensor([[4001., 4001, 4501, 4501]])
    assert torch.allclose(towers.align(f, box, torch.zeros(1), (8000, 8000), 2).float(), towers.align(f.float(), box, torch.zeros(1), (8000, 8000), 2), rtol=.01)


def test_a_mask_counts_only_what_it_covers():
    grid = towers.GridTower("zoo/convnet", 1, side=4)
    s = docmnist.generate(1, regions=(9, 9), seed=0)
    x, half = pretrain.normalise(s.pixels()), np.zeros((56, 56), bool)
    half[:28, :28] = True
    with torch.no_grad():
        z = grid(x, torch.tensor([[0., 0, 56, 56]]), torch.zeros(1, dtype=int), towers.covered(half, 4)[None])
        part = towers.align(grid.maps(x)[0], torch.tensor([[0., 0, 56, 56]]), torch.zeros(1), (84, 84), 4)[:, :, :2, :2].mean((2, 3))
    assert torch.allclose(z, part, atol=1e-5)
    with pytest.raises(ValueError, match="mean or flat"): towers.GridTower("zoo/convnet", pool="max")


# ---- mapping

def test_gradcheck():
    x, t, y, counts = toy(d=4, A=3, n=4)
    m = mapping.Mapper(mapping.MappingConfig(4, 3)).double()
    t = F.normalize(torch.randn(3, 4, dtype=torch.double), dim=1)
    y = y[:, :3].clone(); y[0, 0] = True
    def value(x): # the similarity is computed in float32 in `similarity`; here in double, through the same parts
        z = F.normalize(m(x), dim=-1)
        s = mapping.best(torch.einsum("pnd,pd->np", z, t), counts)
        return torch.stack([mapping.loss(s / .5, y, k)[0] for k in ("exclude", "legacy")])
    assert torch.autograd.gradcheck(value, x.double().requires_grad_())


def test_gradients_are_finite_where_every_image_has_an_attribute():
    s = torch.randn(4, 3, requires_grad=True)
    y = torch.tensor([[True, False, True]] * 4)
    for kind in ("exclude", "legacy"):
        g, = torch.autograd.grad(mapping.loss(s, y, kind)[0], s)
        assert g.isfinite().all()
    assert (torch.autograd.grad(mapping.loss(s, torch.ones(4, 3, dtype=bool))[0], s)[0] == 0).all()
    assert (torch.autograd.grad(mapping.loss(s, torch.ones(4, 3, dtype=bool), "legacy")[0], s)[0] != 0).all() # why the released form keeps learning there


def test_legacy_where_all_have_all():
    s = torch.randn(4, 3)
    total, n = mapping.loss(s, torch.ones(4, 3, dtype=bool), "legacy")
    assert torch.isclose(total / n, (1 + 4 * (-s).exp()).log().mean())


def test_gradient_goes_to_the_best_region_alone():
    v = torch.tensor([[1.], [3.], [3.], [0.]], requires_grad=True)
    mapping.best(v, torch.tensor([3, 1])).sum().backward()
    assert v.grad[0] == 0 and v.grad[1:3].sum() == 1 and set(v.grad[1:3].flatten().tolist()) == {0., 1.}


def test_one_region_and_one_attribute_left():
    x, t, _, _ = toy(A=1)
    m = mapping.Mapper(mapping.MappingConfig(8, 1, shared=True))
    assert m.similarity(x[:1], t).shape == (1, 1) and mapping.Stage1(m, t)((x[:1], torch.tensor([1]), torch.tensor([[True]])))[1] == 1
    total, n = mapping.Stage1(m, t)((x[:1], torch.tensor([1]), torch.tensor([[False]])))
    assert total == 0 and n == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_mapping_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    counts, A = rng.integers(1, 5, 6), 4
    off = np.concatenate([[0], np.cumsum(counts)])
    v, said, truth = rng.normal(size=(off[-1], A)).round(1), rng.random((6, A)) < .5, rng.random((off[-1], A)) < .3
    said[0, 0] = truth[0, 0] = True
    eps, hit, n = float(rng.random()), 0, 0
    found = mapping.assign(v, said, off, eps)
    for i in range(6):
        for k in range(A):
            top = v[off[i]:off[i + 1], k].max()
            for r in range(off[i], off[i + 1]):
                want = said[i, k] and top - v[r, k] <= eps
                assert found[r, k] == want
                hit += want and truth[r, k]; n += want
    s = mapping.score(found, truth, off, repeats=20)
    assert math.isclose(s["precision"], 100 * hit / max(n, 1), abs_tol=.006) and s["pairs"] == n
    curve = mapping.sweep(v, said, truth, off)
    assert (np.diff(curve["recall"]) >= 0).all() and (np.diff(curve["epsilon"]) > 0).all()
    e = mapping.choose(v, said, truth, off)
    assert mapping.score(mapping.assign(v, said, off, e + 1e-9), truth, off, 2)["f1"] >= s["f1"] - .01


def test_epsilon_above_two_gives_everything():
    c = world(30)
    v = np.random.default_rng(0).uniform(-1, 1, c.truth.shape)
    s = mapping.score(mapping.assign(v, c.said, c.offsets, 2.01), c.truth, c.offsets, 10)
    assert s["recall"] == 100 and math.isclose(s["precision"], 100 * c.truth.sum() / (c.said.sum(1) * c.counts).sum(), abs_tol=.01)
    assert not mapping.assign(v, c.said, c.offsets, 0, strict=True).any() and (mapping.assign(v, c.said, c.offsets, 0).sum() == c.said.sum())
    with pytest.raises(ValueError, match="epsilon"): mapping.assign(v, c.said, c.offsets, -.1)


def test_a_random_mapping_keeps_the_counts():
    c = world(20)
    found = mapping.assign(np.random.default_rng(0).uniform(-1, 1, c.truth.shape), c.said, c.offsets, .3)
    other = mapping.shuffled(found, c.offsets, 1)
    assert (np.add.reduceat(found, c.offsets[:-1], 0) == np.add.reduceat(other, c.offsets[:-1], 0)).all() and (found != other).any()


def test_phrases():
    c = world(8)
    found = c.truth
    for choice in ("first", "random", "all"):
        said = mapping.phrases(c, found, choice, 3)
        assert said == mapping.phrases(c, found, choice, 3)
        for r, texts in enumerate(said): assert {corpora.finder(c.attributes)(s) for s in texts} == {(k,) for k in np.flatnonzero(found[r])}
    with pytest.raises(ValueError, match="choice"): mapping.phrases(c, found, "best")


def test_bad_bags_and_configs():
    x, t, y, counts = toy()
    off = np.concatenate([[0], np.cumsum(counts.numpy())])
    with pytest.raises(ValueError, match="do not fit"): mapping.Bags(x[1:], off, y.numpy())
    with pytest.raises(ValueError, match="no region"): mapping.Bags(x, np.insert(off, 2, off[2]), np.concatenate([y, y[:1]]).astype(bool))
    with pytest.raises(ValueError, match="nothing to learn"): mapping.Bags(x, off, np.zeros_like(y.numpy()))
    with pytest.raises(ValueError, match="positives"): mapping.MappingConfig(8, 5, positives="none")
    with pytest.raises(ValueError, match="adapter"): mapping.MappingConfig(8, 5, out=4, adapter=True)
    with pytest.raises(ValueError, match="do not fit a mapping model"): mapping.train(x, off, y.numpy(), t, mapping.MappingConfig(7, 5))
    assert mapping.MappingConfig.released(8, 5).positives == "legacy" and mapping.MappingConfig.paper(8, 5).positives == "exclude"


def test_training_is_seeded_and_resumes_to_the_same_weights(tmp_path):
    x, t, y, counts = toy(n=20)
    off, go = np.concatenate([[0], np.cumsum(counts.numpy())]), dict(epochs=4, bs=5, lr=1e-2, device="cpu")
    whole = mapping.train(x, off, y.numpy(), t, **go)[0]
    mapping.train(x, off, y.numpy(), t, **go | dict(epochs=2), out=tmp_path/"fit")
    again = mapping.train(x, off, y.numpy(), t, **go, out=tmp_path/"fit")[0]
    assert all(a.equal(b) for a, b in zip(whole.parameters(), again.parameters()))


def test_how_good_at_target_16():
    "A head per attribute from 64 numbers of pixels reaches 66, one shared head less, the zoo's encoder more, and everything everywhere is the floor."
    from vlnotes.villa import embeddings
    made = [corpora.drawn(docmnist.generate(budget=b, target=16, split=s, seed=7)) for s, b in (("train", 6000), ("val", 2000), ("test", 2000))]
    train, val, test = made
    f1 = {}
    for name, spec, d, shared in (("own", {"pixels": 64}, 64, False), ("shared", {"pixels": 64}, 64, True), ("zoo", {"encoder": "zoo/convnet"}, 128, False)):
        r, t = embeddings.reader_of(spec, train), embeddings.vectors_of({"random": d}, train)
        x = [r.read([c.open(i) for i in range(len(c))], [c.boxes[slice(*c.offsets[[i, i + 1]])] for i in range(len(c))])[0] for c in made]
        m, _ = mapping.train(x[0], train.offsets, train.said, t, mapping.MappingConfig(d, 20, shared=shared), epochs=10 if name == "zoo" else 30, lr=1e-3, device="cpu")
        v = [mapping.scores(m, t, y) for y in x]
        eps = mapping.choose(v[1], val.said, val.truth, val.offsets)
        f1[name] = mapping.score(mapping.assign(v[2], test.said, test.offsets, eps), test.truth, test.offsets, 10)["f1"]
    floor = mapping.score(mapping.everything(test.said, test.offsets), test.truth, test.offsets, 10)["f1"]
    assert f1["own"] >= 66 and f1["zoo"] > f1["own"] > f1["shared"] > floor and 44 < floor < 50


def test_several_processes_train_one_mapping(tmp_path):
    from vlnotes.runs import launch
    cfg = dict(corpus={"docmnist": dict(n=24, target=16, split="val", seed=0)}, features={"pixels": 8}, attributes={"random": 8}, root=str(tmp_path/"vectors"), out=str(tmp_path/"out"), device="cpu",
               train=dict(epochs=2, bs=4), progress=False)
    (tmp_path/"out").mkdir()
    done = launch("villa.mapping", cfg, 2, tmp_path/"out")
    assert done["world"] == 2 and len(mapping.load(tmp_path/"out/model")[1]) == 20


def test_folder_round_trip_and_wrong_files(tmp_path):
    m, t = mapping.Mapper(mapping.MappingConfig(4, 3)), torch.eye(4)[:3]
    mapping.save(tmp_path/"m", m, ["a", "b", "c"], t, epsilon=.2)
    back, names, t2, about = mapping.load(tmp_path/"m")
    assert names == ["a", "b", "c"] and t2.equal(t) and all(a.equal(b) for a, b in zip(m.parameters(), back.parameters())) and about["epsilon"] == .2
    mapping.save(tmp_path/"n", mapping.Mapper(mapping.MappingConfig(5, 3)), ["a", "b", "c"], torch.eye(5)[:3])
    (tmp_path/"m/weights.safetensors").write_bytes((tmp_path/"n/weights.safetensors").read_bytes())
    with pytest.raises(ValueError, match="does not fit"): mapping.load(tmp_path/"m")
    (tmp_path/"m/config.json").write_text("{}")
    with pytest.raises(ValueError, match="no mapping model"): mapping.load(tmp_path/"m")
    with pytest.raises(FileNotFoundError): mapping.load(tmp_path/"none")
