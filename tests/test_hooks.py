"Feat, layer selection, tapping and probing: properties, and what goes wrong."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from vlnotes.hooks import Feat, blocks, first, layout, probe, select, tap, to_feat, units

NAMES = ["act1", "layer1", "layer2", "layer3", "layer4"]
sizes = st.integers(1, 4)

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.LazyLinear(2)).eval()

@settings(max_examples=25, deadline=None)
@given(sizes, sizes, sizes, sizes, st.integers(0, 2))
def test_every_layout_folds_to_the_same_cells(b, c, h, w, prefix):
    m = torch.arange(b * c * h * w, dtype=torch.float32).view(b, c, h, w)
    tokens = torch.cat([torch.full((b, prefix, c), -1.), m.flatten(2).mT], 1)
    for f in (to_feat(m, "l"), to_feat(m.permute(0, 2, 3, 1), "l", fmt="NHWC"), to_feat(tokens, "l", (h, w), prefix, "NLC")):
        assert f.map().equal(m) and f.grid == (h, w) and f.shape == (b, h * w, c) and f.mean().shape == (b, c)
        assert all(f.cell(i, j).equal(m[..., i, j]) for i in range(h) for j in range(w))
    assert (f.cls is None) == (prefix == 0)

def test_feat_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="layer3"): Feat(torch.zeros(1, 6, 2), (2, 2), "layer3")
    with pytest.raises(ValueError, match=r"cell \(0, 3\) is outside the 2x3 grid"): Feat(torch.zeros(1, 6, 2), (2, 3), "l").cell(0, 3)
    with pytest.raises(ValueError, match="not NLC"): to_feat(torch.zeros(1, 2, 3, 4), "l", fmt="NLC")
    with pytest.raises(ValueError, match="which grid"): to_feat(torch.zeros(1, 2, 3), "l", fmt="NLC")
    with pytest.raises(ValueError, match="holds no tensor"): to_feat("text", "l")

def test_feat_moves_with_its_class_token():
    f = Feat(torch.zeros(1, 6, 2), (2, 3), "l", torch.zeros(1, 2)).to(torch.float16)
    assert f.x.dtype == f.cls.dtype == torch.float16 and f.layer == "l"

def test_first_finds_the_tensor():
    t = torch.zeros(1)
    assert all(first(o) is t for o in (t, (t, 1), [None, t], {"a": None, "b": t}))

@pytest.mark.parametrize("spec,want", [
    (None, NAMES), (1, NAMES[-1:]), (5, NAMES), ("3", NAMES[-3:]), (-1, ["layer4"]), ("-1", ["layer4"]), ([-1, -4], ["layer1", "layer4"]), ([0], ["act1"]),
    ((1, 1, "layer1"), ["layer1"]), ("layer3,-1", ["layer3", "layer4"]), (" layer3 , 0 ", ["act1", "layer3"]), (["layer4", "act1"], ["act1", "layer4"]),
    ("layer2.0,layer1", ["layer1", "layer2.0"])])
def test_select(spec, want):
    assert select(NAMES, spec, ["act1", "layer1", "layer2.0", "layer2", "layer3", "layer4"]) == want

@pytest.mark.parametrize("spec,words", [("layr3", "the nearest is 'layer3'"), (["layer3", "x"], "no layer 'x'"), (6, "only 5"), ([5], "index 5"), (-6, "index -6"), (0, "index 0"),
                                        ([], "no layer was asked for"), (" , ", "no layer was asked for")])
def test_select_refuses(spec, words):
    with pytest.raises(ValueError, match=words): select(NAMES, spec)

def test_numbers_that_are_names():
    assert select(["0", "1", "2"], "0") == ["0"] and select(["0", "1", "2"], ["2", 0]) == ["0", "2"]

def test_tap_stops_copies_and_cleans_up():
    m, x, ran = net(), torch.randn(2, 3, 8, 8), []
    m[4].register_forward_pre_hook(lambda *a: ran.append(1))
    own = len(m[4]._forward_pre_hooks)
    got = tap(m, ["2", "0"], x)
    assert list(got) == ["2", "0"] and not ran and (got["0"] < 0).any()
    assert got["0"].equal(m[0](x)) and got["2"].equal(m[:3](x))
    assert len(m[4]._forward_pre_hooks) == own and not any(c._forward_hooks for c in m.modules())
    tap(m, ["0"], x, stop=False)
    assert ran

def test_tap_without_copies_shows_what_a_later_operation_wrote():
    m, x = net(), torch.randn(1, 3, 8, 8)
    assert (tap(m, ["0", "2"], x, copy=False)["0"] >= 0).all()
    assert (tap(m, ["0", "2"], x, copy=lambda n: n == "0")["0"] < 0).any()

def test_tap_leaves_no_hook_after_an_error():
    m = net()
    with pytest.raises(RuntimeError): tap(m, ["4"], torch.randn(1, 5, 8, 8))
    assert not any(c._forward_hooks for c in m.modules())

def test_tap_counts_calls():
    class Twice(nn.Module):
        def __init__(self): super().__init__(); self.a = nn.ReLU()
        def forward(self, x): return self.a(self.a(x) - 1)
    x = torch.tensor([0.5, 3.])
    assert tap(Twice(), ["a"], x)["a"].tolist() == [0.5, 3.] and tap(Twice(), ["a"], x, calls={"a": 2})["a"].tolist() == [0., 2.]

def test_tap_refuses():
    with pytest.raises(ValueError, match="no module '9'"): tap(net(), ["9"], torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="no module ''"): tap(net(), [""], torch.zeros(1, 3, 8, 8))
    m = net(); m.add_module("never", nn.ModuleList([nn.ReLU()]))
    with pytest.raises(RuntimeError, match="'never.0' did not run"): tap(m, ["0", "never.0"], torch.zeros(1, 3, 8, 8), run=lambda x: m[:5](x))

def test_tap_lets_gradients_through_where_asked():
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    tap(net(), ["2"], x)["2"].sum().backward()
    assert x.grad is not None

@pytest.mark.parametrize("budget", [1 << 30, 1])
def test_probe_sees_writes_within_its_budget(budget):
    seen, kept, out = probe(net(), torch.randn(1, 3, 8, 8), keep=["2"], budget=budget)
    assert list(seen) == ["0", "1", "2", "3", "4"] and seen["2"].shape == (1, 6, 4, 4) == tuple(kept["2"].shape)
    if budget > 1: assert seen["0"].changed and not seen["2"].changed
    assert out.shape == (1, 2)

@pytest.mark.parametrize("shape,size,patch,want", [
    ((1, 64, 7, 7), (224, 224), None, ("NCHW", (7, 7), 0)), ((1, 7, 7, 64), (224, 224), None, ("NHWC", (7, 7), 0)), ((1, 8, 8, 8), (64, 64), None, ("NCHW", (8, 8), 0)),
    ((1, 64, 4, 6), (64, 96), None, ("NCHW", (4, 6), 0)), ((1, 10), (64, 64), None, ("NC", (1, 1), 0)), ((1, 50, 8), (224, 224), (32, 32), ("NLC", (7, 7), 1)),
    ((1, 9, 8), (32, 32), (16, 16), ("NLC", (2, 2), 5)), ((1, 3136, 8), (224, 224), (8, 8), ("NLC", (56, 56), 0)), ((1, 7, 8), (64, 64), None, None), ((5,), (64, 64), None, None)])
def test_layout(shape, size, patch, want): assert layout(shape, size, patch) == want

def test_blocks_of_a_plain_stack():
    m = net()
    seen, *_ = probe(m, torch.randn(1, 3, 8, 8))
    assert blocks(m, seen, (8, 8)) == ["0", "2"]

def test_units():
    f = Feat(torch.randn(2, 6, 3), (2, 3), "layer3")
    assert units(f, 2).equal(f.x[..., 2:]) and units(f, [2, 0]).equal(f.x[..., [2, 0]]) and units(f, lambda f: f.x @ torch.ones(3, 5)).shape == (2, 6, 5)
    with pytest.raises(ValueError, match="channels 0 to 2, not 3"): units(f, 3)
    with pytest.raises(ValueError, match="channels 0 to 2, not -1"): units(f, -1)
    with pytest.raises(ValueError, match=r"\(2, 6\) \+ \(K,\)"): units(f, lambda f: f.mean())
