"LGSSL: every objective through the same invariants, losses against their formulas, several processes, the text tower."
import math

import pytest
import torch
from lgssl_toys import batch, gradients, points, toy, worker
from torch.multiprocessing import spawn
from torch.nn.functional import cosine_similarity, log_softmax, normalize

from vlnotes.lgssl.losses import Queue, clip, nnclr, simclr, simsiam, sinkhorn, swav
from vlnotes.lgssl.objectives import OBJECTIVES, mlp, objective
from vlnotes.lgssl.tower import Clip, TextTower, Words


# ---- the contract

@pytest.mark.parametrize("name", OBJECTIVES)
def test_contract(name):
    net = toy(name)
    b = batch(text=net.text or "ids")
    loss, n = net(b)
    loss.backward()
    assert n == 6 and loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert any(p.grad.abs().sum() > 0 for p in net.visual_backbone.parameters()) # the trunk learns
    again, other = toy(name), toy(name, seed=1)
    assert torch.equal(again(b)[0], loss) and not torch.equal(other(b)[0], loss) # same weights, same loss
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(toy(name)({k: v[order] for k, v in b.items()})[0], loss, rtol=1e-4) # rows may come in any order
    state = net.state_dict()
    fresh = toy(name, seed=2)
    fresh.load_state_dict(state) # weights, queues and counters travel together
    assert torch.allclose(fresh(b)[0], net(b)[0])
    opt = torch.optim.SGD(net.parameters(), .05)
    before = {k: v.clone() for k, v in net.named_parameters()}
    opt.step()
    assert all(not torch.equal(v, before[k]) for k, v in net.named_parameters() if v.grad.abs().sum() > 0)
    assert net.sampling in ("self", "nn", "image", "slip") and (net.text in ("ids", "vectors")) == hasattr(net, "clip_scale")


@pytest.mark.parametrize("name", [k for k, c in OBJECTIVES.items() if "view1" in c.views and k not in ("slip", "lgslip", "nnclr")])
def test_views_may_change_places(name):
    net, b = toy(name), batch()
    swapped = b | {"view0": b["view1"], "view1": b["view0"]}
    assert torch.allclose(toy(name)(swapped)[0], net(b)[0], rtol=1e-4)


@pytest.mark.parametrize("name", ["simclr", "simsiam"])
def test_language_guided_ones_are_the_same_loss_on_other_pairs(name):
    b = batch()
    assert torch.equal(toy(name)(b)[0], toy(f"lg{name}")(b)[0]) and OBJECTIVES[f"lg{name}"].sampling == "nn" and OBJECTIVES[f"lg{name}"].augmentation == "global_crop"


def test_unknown_names():
    with pytest.raises(ValueError, match="nearest is 'simclr'"): objective("simcl", torch.nn.Identity(), 3)
    with pytest.raises(ValueError, match="simclr.*hiden"): objective("simclr", torch.nn.Identity(), 3, hiden=4)


# ---- formulas

def rows(n=7, d=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g), torch.randn(n, d, generator=g)


def test_simclr_is_nt_xent_by_a_double_loop():
    a, b = rows()
    u, total = normalize(torch.cat([a, b]).double(), dim=1), 0.
    for i in range(14):
        partner = (i + 7) % 14
        logits = {j: float(u[i] @ u[j]) / .1 for j in range(14) if j != i}
        total += math.log(sum(math.exp(v) for v in logits.values())) - logits[partner]
    assert float(simclr(a, b)[0]) == pytest.approx(total / 14, rel=1e-5)
    scaled = simclr(a * torch.rand(7, 1).add(.5), 3 * b)[0]
    assert torch.allclose(scaled, simclr(a, b)[0], rtol=1e-5) and torch.allclose(simclr(b, a)[0], simclr(a, b)[0])


def test_masked_negatives_count_as_if_they_were_not_there():
    a, b = rows(4)
    ids = torch.tensor([0, 1, 0, 2])
    # row 0 without row 2 among its negatives, and the other way round
    u, n = normalize(torch.cat([a, b]).double(), dim=1), 4
    total = 0.
    for i in range(8):
        own, partner = i % 4, (i + 4) % 8
        negatives = [j for j in range(8) if j not in (i, partner) and ids[j % 4] != ids[own]]
        e = [math.exp(float(u[i] @ u[j]) / .1) for j in [partner, *negatives]]
        total += math.log(sum(e)) - math.log(e[0])
    assert float(simclr(a, b, ids=ids)[0]) == pytest.approx(total / (2 * n), rel=1e-5)


def test_clip_gradient_of_the_scale():
    a, b = rows()
    s = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    f = lambda v: clip(a.double(), b.double(), v.exp())[0]
    f(s).backward()
    e = 1e-5
    assert float(s.grad) == pytest.approx(float(f(s.detach() + e) - f(s.detach() - e)) / (2 * e), rel=1e-5)


def test_nnclr_is_clip_with_neighbours_at_scale_ten():
    (p0, p1), (n0, n1) = rows(), rows(seed=1)
    n0.requires_grad_(); p0.requires_grad_()
    loss, _ = nnclr(p0, p1, n0, n1)
    loss.backward()
    assert n0.grad is None and p0.grad is not None
    y = torch.arange(7)
    want = [-log_softmax(10 * normalize(p, dim=1) @ normalize(n, dim=1).T, 1)[y, y].mean() for p, n in ((p0, n1), (p1, n0))]
    assert torch.allclose(loss, sum(want) / 2, rtol=1e-5)


def test_simsiam_stays_still_on_one_side():
    a, b = rows()
    p, z = a.clone().requires_grad_(), b.clone().requires_grad_()
    loss = simsiam(p, p, z, z)
    loss.backward()
    assert z.grad is None and torch.allclose(loss, -cosine_similarity(a, b).mean()) and -1 <= loss <= 1


def test_slip_is_the_sum_of_its_parts():
    net, b = toy("slip"), batch()
    f0, f1, fc = net.seen(b)
    want = clip(net.clip_vis_project(fc), net.words(b), net.scale)[0] + simclr(net.visual_project(f0), net.visual_project(f1))[0]
    assert torch.allclose(toy("slip").loss(b), want, rtol=1e-5)
    net = toy("lgslip")
    z0, z1 = (net.visual_project(f) for f in net.seen(b))
    assert torch.allclose(toy("lgslip").loss(b), clip(z0, net.words(b), net.scale)[0] + simclr(z0, z1)[0], rtol=1e-5)


def test_declip_neighbours_give_text_no_gradient():
    net, b = toy("declip_nns", own=0., neighbour=1.), batch()
    net.queue.push(torch.randn(20, 8))
    net.loss(b).backward()
    assert net.language_project.weight.grad is None or not net.language_project.weight.grad.any()
    assert net.visual_project.weight.grad.abs().any()


def test_the_scale_is_clamped_and_the_legacy_one_is_not():
    for clamp, want in ((100., 100.), (None, math.exp(6.))):
        net = toy("clip", clamp=clamp)
        net.clip_scale.data.fill_(6.)
        assert float(net.scale) == pytest.approx(want, rel=1e-5)


def test_views_apart_and_together_differ_with_batch_norm():
    def net(together):
        torch.manual_seed(0)
        trunk = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 16), torch.nn.BatchNorm1d(16))
        o = objective("simclr", trunk, 16, hidden=12, out=8)
        o.together = together
        return o
    b = batch()
    assert not torch.allclose(net(True).loss(b), net(False).loss(b))


# ---- SwAV

def test_sinkhorn():
    s = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    q = (s / .05).double().exp().T # as the paper writes it
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True) * 6
        q /= q.sum(0, keepdim=True) * 30
    assert torch.allclose(sinkhorn(s).double(), (q * 30).T, atol=1e-4)
    assert torch.allclose(sinkhorn(s, rounds=300).sum(0), torch.full((6,), 5.), atol=.02)


def test_swav_axes_and_stages():
    g = torch.Generator().manual_seed(0)
    p0, p1 = torch.randn(6, 4, generator=g), torch.randn(6, 4, generator=g)
    q0, q1 = sinkhorn(p0), sinkhorn(p1)
    for axis, dim in (("prototypes", 1), ("batch", 0)):
        want = -((q0 * log_softmax(p1 / .1, dim)).sum(1).mean() + (q1 * log_softmax(p0 / .1, dim)).sum(1).mean()) / 2
        assert torch.allclose(swav(p0, p1, q0, q1, axis=axis), want)
    with pytest.raises(ValueError, match="rows"): swav(p0, p1, q0, q1, axis="rows")
    net, b = toy("swav", queue_from=2), batch()
    net.freeze = 1
    net.loss(b).backward()
    assert not net.prototypes.weight.grad.any() and torch.allclose(net.prototypes.weight.norm(dim=1), torch.ones(10))
    net.zero_grad()
    for _ in range(2): net.loss(b).backward()
    assert net.prototypes.weight.grad.abs().any() and int(net.step) == 3 and int(net.queues[0].filled) == 6 # from step 2 on
    for _ in range(3): net.loss(b)
    assert int(net.queues[0].filled) == 16
    net.eval()
    net.loss(b)
    assert int(net.step) == 6 # looking does not count
    net = toy("swav", queue_from=2)
    net.parts = 2 # of every update: the third update begins with the fifth part
    for filled in (0, 0, 0, 0, 6):
        net.loss(b)
        assert int(net.queues[0].filled) == filled


def test_the_queue():
    q = Queue(4, 2)
    z = torch.tensor([[1., 0], [0, 2], [-3, 0]])
    assert torch.equal(q.nearest(z), z) # nothing is there yet: a row stands for itself
    q.push(z)
    assert torch.equal(q.nearest(torch.tensor([[.1, 5]])), z[1:2]) and int(q.filled) == 3 # as pushed, not scaled
    q.push(5 * z)
    assert int(q.pointer) == 2 and torch.equal(q.rows[[3, 0, 1, 2]], torch.cat([5 * z, z[2:]])[[0, 1, 2, 3]])
    q.push(torch.arange(20.).view(10, 2))
    assert torch.equal(q.rows.sort(0)[0][:, 0], torch.tensor([12., 14, 16, 18])) # more rows than places: the last stay


# ---- processes

@pytest.mark.parametrize("cuts", [(0, 5, 10), (0, 6, 11)])
def test_two_processes_are_one_batch(cuts, tmp_path):
    spawn(worker, (2, cuts, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path/f"{r}.pt", weights_only=True) for r in (0, 1)]
    a, b = points()
    n = cuts[-1]
    torch.manual_seed(0)
    w = torch.randn(6, 6).requires_grad_()
    one = gradients(w, a[:n], b[:n], slice(0, n))
    for f in found:
        assert f["world"] == 2
        for k, v in one.items(): assert torch.allclose(f[k] * len(a), v, atol=2e-5), k # loss and gradient, summed over rows
    assert torch.equal(found[0]["queue"], found[1]["queue"]) # and the same queue everywhere


# ---- text

def test_the_tower_is_clips_text_tower():
    open_clip = pytest.importorskip("open_clip")
    ours = TextTower(12, 50, 32, 4, 2).eval()
    theirs = open_clip.transformer.TextTransformer(context_length=12, vocab_size=50, width=32, heads=4, layers=2, output_dim=32, act_layer=open_clip.transformer.QuickGELU).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert missing == ["text_projection"] or set(missing) <= {"text_projection", "attn_mask"}
    assert not unexpected
    theirs.text_projection.data.copy_(torch.eye(32))
    ids = torch.randint(1, 40, (5, 12), generator=torch.Generator().manual_seed(0))
    ids[torch.arange(5), torch.tensor([3, 11, 5, 7, 9])] = 49
    with torch.no_grad(): assert torch.allclose(ours(ids), theirs(ids), atol=1e-5)
    with pytest.raises(ValueError, match="13 tokens; 12 fit"): ours(torch.ones(1, 13, dtype=torch.long))


def test_tokens_end_with_the_end():
    pytest.importorskip("open_clip")
    ids = Clip()(["a photo of a dog", "word " * 200])
    assert ids.shape == (2, 77) and ids[1, -1] == 49407 and (ids.argmax(1) == torch.tensor([6, 76])).all()
    w = Words(["red", "blue"], 4)
    assert w(["red green blue red red"])[0].tolist() == [2, 1, 3, 4] and w.vocab == 5


def test_heads():
    assert [tuple(p.shape) for p in mlp(4, 5, 3).parameters()] == [(5, 4), (5,), (5,), (3, 5)] # no bias but the norm's
