"The head, its loss, nearest words, folders: closed forms and invariants."
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lavise_toys import Mixed, drawn, toy
from torch import nn
from torch.nn import functional as F
from torchvision.models import alexnet

from vlnotes import backbones
from vlnotes.hooks import Feat
from vlnotes.lavise import explainer
from vlnotes.lavise.explainer import POOLS, Explainer, Head, HeadConfig, closest, frozen, load, margin_loss, margin_sum, pooled, save, unit


def rng(seed=0): return torch.Generator().manual_seed(seed)


# ---- pooling

def test_pooling_is_what_it_says():
    x, w = torch.rand(2, 12, 5, generator=rng()), torch.rand(2, 3, 12, generator=rng(1)).round()
    f = Feat(x, (3, 4), "l")
    for b in range(2):
        for m in range(3):
            part = x[b] * w[b, m, :, None]
            assert pooled(f, w)[b, m].allclose(part.mean(0), atol=1e-6)
            assert pooled(f, w, "masked")[b, m].allclose(part.sum(0) / w[b, m].sum(), atol=1e-6)
            assert pooled(f, w, "flat", (3, 4))[b, m].allclose(part.T.flatten(), atol=1e-6) # channel by channel, as a flattened map

def test_flat_is_the_way_of_alexnet():
    net = alexnet(weights=None).eval()
    f, mask = torch.rand(1, 256, 8, 7, generator=rng()), torch.zeros(1, 1, 8, 7)
    mask[..., 2:5, 1:6] = 1
    want = net.avgpool(f * mask).flatten(1)
    assert pooled(Feat(f.flatten(2).mT, (8, 7), "features"), mask.flatten(2), "flat").allclose(want[:, None], atol=1e-6)
    assert HeadConfig("features", 256, 300, "flat").width == net.classifier[1].in_features == 9216

def test_weights_of_another_grid_and_unknown_ways_are_refused():
    f = Feat(torch.rand(2, 12, 5), (3, 4), "l")
    for w in (torch.ones(2, 1, 11), torch.ones(1, 1, 12), torch.ones(2, 12)):
        with pytest.raises(ValueError, match="do not lie on"): pooled(f, w)
    with pytest.raises(ValueError, match="'masked'"): pooled(f, torch.ones(2, 1, 12), "maskd")

@pytest.mark.parametrize("pool", POOLS)
def test_nothing_under_a_mask_is_zero(pool): assert not pooled(Feat(torch.rand(1, 12, 5), (3, 4), "l"), torch.zeros(1, 1, 12), pool).any()


# ---- head

def test_the_head_is_the_originals():
    cfg = HeadConfig("l", 7, 4, dropout=.3)
    head = Head(cfg, seed=3)
    plain = nn.Sequential(nn.BatchNorm1d(7), nn.Dropout(.3), nn.Linear(7, 7), nn.ReLU(), nn.BatchNorm1d(7), nn.Dropout(.3), nn.Linear(7, 4))
    assert {k: v.shape for k, v in head.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    with torch.no_grad():
        for p in head.parameters(): p.normal_(generator=rng(1))
    plain.load_state_dict(head.state_dict())
    z = torch.randn(5, 7, generator=rng(2))
    assert head.eval()(z).equal(plain.eval()(z)) and head.training is False
    assert head(z.view(5, 1, 7)).equal(head(z).view(5, 1, 4))

def test_batch_norms_stand_still_and_dropout_does_not():
    head = Head(HeadConfig("l", 6, 3, dropout=.5)).train()
    before = {k: v.clone() for k, v in head.named_buffers()}
    z = torch.randn(40, 6, generator=rng())
    opt = torch.optim.SGD(head.parameters(), .01)
    outs = []
    for i in range(5):
        outs.append(head(z, rng(i)))
        opt.zero_grad(); outs[-1].square().mean().backward(); opt.step()
    assert all(v.equal(before[k]) for k, v in head.named_buffers()) and head[0].num_batches_tracked == 0
    assert not head(z, rng(0)).equal(head(z, rng(1))) and head(z, rng(0)).equal(head(z, rng(0)))
    head.eval()
    assert head(z).equal(head(z)) and head(z)[3:4].allclose(head(z[3:4]), atol=1e-6)

def test_dropout_keeps_the_mean():
    head = Head(HeadConfig("l", 50, 50, dropout=.4)).train()
    with torch.no_grad():
        for k in (2, 6): head[k].weight.copy_(torch.eye(50)); head[k].bias.zero_()
    seen = torch.stack([head(torch.ones(100, 50), rng(i)) for i in range(30)])
    assert abs((seen == 0).float().mean() - (1 - .6 * .6)) < .01 # either of the two may drop it
    assert abs(seen.mean() - head.eval()(torch.ones(1, 50)).mean()) < .02

def test_settings_are_checked():
    for bad, told in ((dict(dropout=1.), "dropout"), (dict(pool="max"), "mean")):
        with pytest.raises(ValueError, match=told): HeadConfig("l", 3, 3, **bad)
    with pytest.raises(ValueError, match="chanels.*channels"): HeadConfig.from_dict({"layer": "l", "chanels": 3, "dim": 3})
    cfg = HeadConfig("l", 3, 4, "flat", (2, 2))
    assert HeadConfig.from_dict(json.loads(json.dumps(cfg.__dict__))) == cfg


# ---- loss

AXES = torch.eye(6)

@pytest.mark.parametrize("margin", [.5, 1., 2.])
def test_by_hand(margin):
    E, one = AXES[:5], torch.tensor([[True, False, False, False, False]])
    for v, want in ((AXES[0], 4 * max(0, margin - 1)), (AXES[5], 4 * margin), (-AXES[0], 4 * (margin + 1))):
        assert margin_loss(v[None], E, one, margin)[0].item() == pytest.approx(want, abs=1e-5)
    two = torch.tensor([[True, True, False, False, False]])
    v = (AXES[0] + AXES[1])[None] # cos is 1/sqrt 2 with both
    assert margin_loss(v, E, two, margin)[0].item() == pytest.approx(3 * max(0, margin - .5**.5), abs=1e-5)

def cases(seed, B=6, L=9, D=4):
    v, E = torch.randn(B, D, generator=rng(seed)), torch.randn(L, D, generator=rng(seed + 1))
    t = torch.rand(B, L, generator=rng(seed + 2)) < .3
    t[0], t[1] = False, True
    return v, E, t

@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_the_formula_whatever_the_lengths(seed):
    v, E, t = cases(seed)
    loss, counts = margin_loss(v, E, t)
    for b in range(len(v)):
        c = F.cosine_similarity(v[b][None], E)
        want = sum(max(0., 1 - c[t[b]].mean().item() + c[l].item()) for l in range(len(E)) if not t[b, l]) if t[b].any() else 0.
        assert loss[b].item() == pytest.approx(want, abs=1e-4) and counts[b] == t[b].any()
    scaled = margin_loss(v * torch.rand(6, 1, generator=rng(9)).add(.1), E * torch.rand(9, 1, generator=rng(8)).add(.1), t)[0]
    assert scaled.allclose(loss, atol=1e-4)
    assert margin_loss(v[2:3], E, t[2:3])[0].allclose(loss[2:3], atol=1e-5) # a row alone

@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_is_finite_everywhere_and_right(seed):
    v, E, t = cases(seed)
    v[2] = 0
    v = v.requires_grad_()
    loss, _ = margin_loss(v, E, t, seen=torch.arange(9) < 4)
    loss.sum().backward()
    assert v.grad.isfinite().all() and not v.grad[0].any() # nothing true: no gradient
    v2 = cases(seed)[0].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: margin_loss(v, E.double(), t)[0], v2, eps=1e-6, atol=1e-5)
    margin_loss(v2, E.double(), t)[0].sum().backward()
    assert ((v2.grad * v2).sum(1).abs() < 1e-9).all() # its length does not matter

def test_restricted_supervision_is_a_table_with_fewer_columns():
    v, E, t = cases(3)
    seen = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0, 1], dtype=torch.bool)
    a, na = margin_loss(v, E, t, seen=seen)
    b, nb = margin_loss(v, E[seen], t[:, seen])
    assert a.equal(b) and na.equal(nb)
    with pytest.raises(ValueError, match="none of the labels is seen"): margin_loss(v, E, t, seen=~torch.ones(9, dtype=torch.bool))

@pytest.mark.parametrize("seed", range(4))
def test_lists_of_true_labels_give_the_same_loss_and_gradient(seed):
    v, E, t = cases(seed)
    E, most = unit(E), int(t.sum(1).max())
    y = torch.full((6, most), -1)
    for b in range(6): y[b, :int(t[b].sum())] = t[b].nonzero()[:, 0]
    grads = []
    for f, truth in ((margin_loss, t), (margin_sum, y)):
        w = v.clone().requires_grad_()
        loss, counts = f(w, E, truth, .8)
        loss.sum().backward()
        grads.append((loss.detach(), counts, w.grad))
    assert grads[0][0].allclose(grads[1][0], atol=1e-4) and grads[0][1].equal(grads[1][1]) and grads[0][2].allclose(grads[1][2], atol=1e-4) and grads[1][2].isfinite().all()


# ---- nearest words

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 70), st.integers(0, 10**6))
def test_nearest_words_are_a_stable_sort(V, R, k, seed):
    table = torch.cat([torch.eye(3), -torch.eye(3)])[torch.randint(0, 6, (V,), generator=rng(seed))] # many equal ones
    v = torch.randint(-2, 3, (R, 3), generator=rng(seed + 1)).float()
    want = (unit(v) @ table.T).sort(dim=1, descending=True, stable=True)
    rows, cos = closest(table, v, k, memory=1e-4)
    assert rows.equal(want.indices[:, :k]) and cos.equal(want.values[:, :k])

def test_another_order_of_the_words_changes_their_numbers_alone():
    table, v = unit(torch.randn(300, 8, generator=rng())), torch.randn(20, 8, generator=rng(1))
    order = torch.randperm(300, generator=rng(2))
    a, b = closest(table, v, 7)[0], closest(table[order], v, 7)[0]
    assert order[b].equal(a)

def test_odd_vectors():
    table = unit(torch.randn(5, 3, generator=rng()))
    with pytest.raises(ValueError, match="vector 1 is not finite"): closest(table, torch.tensor([[0., 1, 2], [np.nan, 0, 0]]), 2)
    assert closest(table, torch.zeros(1, 3), 3)[0].tolist() == [[0, 1, 2]] # equally far from all: in order
    assert closest(table, torch.zeros(0, 3), 3)[0].shape == (0, 3)


# ---- explainer and folder

def made(encoder=None, words=("red", "blue", "three"), dim=5, **kw):
    encoder = encoder or toy()
    c = encoder.info("relu").channels
    return Explainer(encoder, Head(HeadConfig("relu", c, dim), 1).eval().requires_grad_(False), list(words), torch.randn(len(words), dim, generator=rng(4)), ["red"], ["blue"], mean=torch.rand(c), **kw)

def folder(tmp_path, e, **kw): return save(tmp_path/"e", e, "zoo/convnet", **kw)

def test_a_folder_comes_back(tmp_path):
    e = made()
    home = folder(tmp_path, e, trained_on="toys")
    again = load(home, encoder=toy())
    z = torch.rand(4, 2, 12, generator=rng())
    assert all(a.equal(b) for a, b in zip(e.read(z), again.read(z))) and again.words == e.words and again.seen == ["red"] and again.unseen == ["blue"] and again.mean.equal(e.mean)
    config = json.loads((home/"config.json").read_text())
    assert config["method"] == "lavise" and config["lavise"]["layer"] == "relu" and config["trained_on"] == "toys" and {p.name for p in home.iterdir()} == {"config.json", "weights.safetensors"}
    assert [again.kind(w) for w in ("red", "blue", "three", "zebra")] == ["seen", "unseen", "unannotated", "unannotated"]
    other = load(home, encoder=toy(), words=["x"], vectors=np.ones((1, 5), np.float32))
    assert other.words == ["x"] and other.read(z)[0].max() == 0
    assert other.limited(["x"]).words == ["x"]
    with pytest.raises(ValueError, match="no word 'y'"): other.limited(["y"])

def test_a_large_vocabulary_is_named_and_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(explainer, "MOST", 2)
    with pytest.raises(ValueError, match="3 words does not travel.*space="): folder(tmp_path, made())
    text = tmp_path/"toy.5d.txt"
    text.write_text("".join(f"{w} {' '.join(map(str, v))}\n" for w, v in zip(("red", "blue", "three"), np.eye(5)[:3])))
    e = made()
    e.vectors = torch.eye(5)[:3]
    home = folder(tmp_path, e, space={"source": str(text)})
    assert (home/"weights.safetensors").stat().st_size < 5000
    again = load(home, encoder=toy())
    assert again.words == ["red", "blue", "three"] and again.vectors.equal(torch.eye(5)[:3])

def test_an_encoder_that_no_name_makes_again_lies_in_the_folder(tmp_path):
    spec = "timm/resnet10t"
    net = backbones.load(spec + "@random", seed=5)
    head = Head(HeadConfig("layer2", net.info("layer2").channels, 4), 1).eval()
    e = Explainer(net, head, ["a", "b"], torch.rand(2, 4), ["a"], [])
    home = save(tmp_path/"e", e, {"spec": spec, "options": {}, "prefix": "backbone."}, {f"backbone.{k}": v for k, v in net.model.state_dict().items()})
    again = load(home)
    x = torch.rand(1, 3, *net.input_size, generator=rng())
    assert again.features(x).x.allclose(e.features(x).x, atol=1e-5)

def test_what_is_no_explainer_is_refused(tmp_path):
    home = folder(tmp_path, made())
    with pytest.raises(FileNotFoundError, match="no trained explainer.*config.json"): load(tmp_path/"nothing")
    with pytest.raises(ValueError, match="'devil', not as a LaViSE"): load("zoo/devil-convnet")
    with pytest.raises(ValueError, match="reads 12 channels from 'relu', toy/mixed has 9"): load(home, encoder=toy(Mixed(9)))
    shutil.copytree(home, tmp_path/"half")
    (tmp_path/"half/weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="weights.safetensors"): load(tmp_path/"half")
    config = json.loads((home/"config.json").read_text())
    (home/"config.json").write_text(json.dumps(config | {"lavise": config["lavise"] | {"dim": 9}}))
    with pytest.raises(ValueError, match="do not fit its config.json: 2 tensors differ, first '6.weight'"): load(home, encoder=toy())

def test_a_layer_without_a_map_is_refused():
    with pytest.raises(ValueError, match="'pool' of toy/mixed gives one vector per image"):
        Explainer(toy(), Head(HeadConfig("pool", 12, 5)), ["a"], torch.ones(1, 5), ["a"], [])

def test_tokens_of_a_transformer_are_a_grid():
    vit = backbones.load("zoo/vit")
    layer = vit.layer_names[-1]
    e = Explainer(vit, Head(HeadConfig(layer, vit.info(layer).channels, 5)).eval(), ["a", "b"], torch.rand(2, 5), ["a"], [])
    x = vit.normalise(drawn(2).source.scenes.pixels())
    f = e.features(x)
    rows, cos = e.read(e.pool(f, torch.eye(f.x.shape[1]).expand(2, -1, -1)))
    assert f.grid == (6, 6) and rows.shape == (2, 36, 2) and cos.isfinite().all()

@pytest.mark.parametrize("spec", ["zoo/convnet", "timm/resnet10t@random"])
def test_the_untrained_twin(spec):
    twins = [frozen(spec, random=True, seed=s) for s in (0, 0, 1)]
    x = torch.rand(1, 3, *twins[0].input_size, generator=rng())
    layer = twins[0].layer_names[-1]
    a, b, c = (t.features(x, [layer])[layer].x for t in twins)
    assert a.equal(b) and not a.allclose(c) and twins[0].layer_names == frozen(spec).layer_names
    if spec.startswith("zoo/"): assert not a.allclose(frozen(spec).features(x, [layer])[layer].x)
