"Plots: every function draws on the axis it is given, changes nothing global and says what is wrong with bad input."
import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from vlnotes import plots

IMAGE = np.random.default_rng(0).random((24, 32, 3))
TABLE = {"a": {"l1": .1, "l2": .5}, "b": {"l2": .3}}
DRAWINGS = {
    "show": lambda ax: plots.show(ax, IMAGE, "title"),
    "boxes": lambda ax: plots.boxes(ax, [(0, 0, 8, 8)], ["one"]),
    "overlay": lambda ax: plots.overlay(ax, IMAGE, np.eye(3), bar="p"),
    "caption_grid": lambda ax: plots.caption_grid(ax, IMAGE, (2, 2), ["a", "b", 1, .5]),
    "layer_curves": lambda ax: plots.layer_curves(ax, TABLE, {"a": {"l1": (0, .2)}}, baselines={"chance": .1}),
    "stacked": lambda ax: plots.stacked(ax, TABLE),
    "bars": lambda ax: plots.bars(ax, ["x", "y"], [.5, .6], [(.4, .6), (.5, .7)], {"blind": [.1, .2], "constant": .1}),
}


def axis(): return Figure((3, 3)).add_subplot()


@pytest.mark.parametrize("name", DRAWINGS)
def test_takes_and_returns_the_axis_and_renders(name):
    ax = axis()
    assert DRAWINGS[name](ax) is ax
    assert plots.png(ax.figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", DRAWINGS)
def test_same_input_same_bytes(name):
    first, second = (plots.png(DRAWINGS[name](axis()).figure) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", DRAWINGS)
def test_no_global_setting_changes(name):
    before = dict(mpl.rcParams)
    DRAWINGS[name](axis())
    assert dict(mpl.rcParams) == before


def test_style_is_undone_also_after_an_error():
    before = dict(mpl.rcParams)
    with pytest.raises(RuntimeError), plots.style(font__size=30):
        assert mpl.rcParams["font.size"] == 30 and not mpl.rcParams["axes.spines.top"]
        raise RuntimeError("inside")
    assert dict(mpl.rcParams) == before


def test_style_refuses_an_unknown_setting_and_leaves_nothing_behind():
    before = dict(mpl.rcParams)
    with pytest.raises(ValueError, match="no.such"), plots.style(no__such=1): pass
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("form", ["float", "uint8", "tensor", "bf16", "pil", "rgba", "first"])
def test_pixels_reads_the_same_picture_in_every_form(form):
    u8 = (IMAGE * 255).round().astype(np.uint8)
    image = {"float": IMAGE, "uint8": u8, "tensor": torch.tensor(IMAGE).permute(2, 0, 1),
             "bf16": torch.tensor(IMAGE).permute(2, 0, 1).bfloat16(), "pil": Image.fromarray(u8),
             "rgba": np.dstack([u8, np.zeros((24, 32), np.uint8)]), "first": u8.transpose(2, 0, 1)}[form]
    a = plots.pixels(image)
    assert a.shape == (24, 32, 3) and a.dtype == np.float32
    assert np.abs(a - IMAGE).max() < 1 / 200 # eight bits of bfloat16 or of a byte


@pytest.mark.parametrize("image", [np.zeros((24, 32)), np.zeros((1, 24, 32)), np.zeros((24, 32, 1)), np.zeros((24, 32), bool)])
def test_pixels_makes_grey_pictures_three_channels(image):
    assert plots.pixels(image).shape == (24, 32, 3)


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5), (2, 8, 8), (0, 4, 3)])
def test_pixels_names_the_shape_it_refuses(shape):
    with pytest.raises(ValueError, match=str(shape[0])): plots.pixels(np.zeros(shape))


@given(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.tuples(st.integers(1, 30), st.integers(1, 30)), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_resize_is_torch_bilinear(small, big, seed):
    m = torch.randn(small, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    want = F.interpolate(m[None, None], size=big, mode="bilinear", align_corners=False)[0, 0]
    assert np.allclose(plots.resize(m.numpy(), big), want.numpy(), atol=1e-12)


def test_scaled_keeps_order_nan_and_shared_limits():
    assert plots.scaled([2., 4., 3.]).tolist() == [0, 1, .5]
    assert plots.scaled([2., 4.], (0, 8)).tolist() == [.25, .5]
    assert plots.scaled([5., 5.]).tolist() == [0, 0]
    assert np.isnan(plots.scaled([np.nan, 1., 2.])[0])
    assert plots.scaled([-np.inf, 0., 1.]).tolist() == [0, 0, 1]


@pytest.mark.parametrize("smooth", [True, False])
def test_overlay_leaves_the_image_visible_and_peaks_where_the_map_does(smooth):
    m = np.zeros((4, 4)); m[2, 1] = 1
    image, heat = plots.overlay(axis(), IMAGE, m, smooth=smooth).images
    alpha = np.asarray(heat.get_alpha())
    assert alpha.max() <= .65 and alpha.min() > 0
    assert image.get_array().shape == (24, 32, 3)
    r, c = np.unravel_index(np.asarray(heat.get_array()).argmax(), heat.get_array().shape)
    assert (r * 4 // heat.get_array().shape[0], c * 4 // heat.get_array().shape[1]) == (2, 1)
    assert list(heat.get_extent()) == [-.5, 31.5, 23.5, -.5]


def test_a_map_lies_over_its_box_only():
    wide = np.zeros((40, 100, 3))
    _, heat = plots.overlay(axis(), wide, np.eye(2), box=(30, 0, 70, 40)).images
    assert heat.get_extent() == [29.5, 69.5, 39.5, -.5] and heat.get_array().shape == (40, 40) and heat.axes.get_xlim() == (-.5, 99.5)

def test_overlay_leaves_nan_cells_clear():
    m = np.ones((2, 2)); m[0, 0] = np.nan; m[1, 1] = 2
    heat = plots.overlay(axis(), IMAGE, m, smooth=False).images[1]
    assert np.asarray(heat.get_alpha())[0, 0] == 0


def test_overlay_bar_shows_the_map_s_own_values():
    ax = plots.overlay(axis(), IMAGE, torch.tensor([[-6., -1.], [-2., -3.]]), bar=True)
    assert [t.get_text() for t in ax.figure.axes[1].get_yticklabels()] == ["-6", "-1"]


@pytest.mark.parametrize("m, words", [(np.ones(4), "(4,)"), (np.full((2, 2), np.nan), "finite"), (np.ones((1, 2, 2)), "(1, 2, 2)")])
def test_overlay_refuses(m, words):
    with pytest.raises(ValueError) as e: plots.overlay(axis(), IMAGE, m)
    assert words in str(e.value)


def test_boxes_run_between_pixels_and_repeat_colours():
    ax = plots.boxes(axis(), np.tile([2, 3, 10, 12], (9, 1)))
    rims = ax.patches[1::2]
    assert rims[0].get_xy() == (1.5, 2.5) and (rims[0].get_width(), rims[0].get_height()) == (8, 9)
    assert rims[0].get_edgecolor() == rims[8].get_edgecolor() != rims[1].get_edgecolor()
    assert len(plots.boxes(axis(), []).patches) == 0
    with pytest.raises(ValueError, match="1 boxes have 2 labels"): plots.boxes(axis(), [(0, 0, 1, 1)], ["a", "b"])


@pytest.mark.parametrize("colour", plots.COLOURS)
def test_label_text_reads_on_every_colour(colour):
    def lum(c):
        c = np.array(mpl.colors.to_rgb(c))
        return np.where(c <= .04045, c / 12.92, ((c + .055) / 1.055) ** 2.4) @ [.2126, .7152, .0722]
    lo, hi = sorted([lum(colour), lum(plots.ink(colour))])
    assert (hi + .05) / (lo + .05) >= 4.5 # WCAG AA


def test_caption_grid_places_words_in_their_cells():
    ax = plots.caption_grid(axis(), IMAGE, (2, 4), [f"w{i}" for i in range(8)])
    where = {t.get_text(): t.get_position() for t in ax.texts}
    assert where["w0"] == (3.5, 5.5) and where["w7"] == (27.5, 17.5) # centres of 8 x 12 pixel cells, minus half a pixel
    some = plots.caption_grid(axis(), IMAGE, (2, 4), {(1, 3): .123})
    assert [(t.get_text(), t.get_position()) for t in some.texts] == [("0.12", (27.5, 17.5))]


@pytest.mark.parametrize("texts, words", [(["a"], "needs 4 texts, not 1"), ({(2, 0): "a"}, r"cell \(2, 0\) is outside")])
def test_caption_grid_refuses(texts, words):
    with pytest.raises(ValueError, match=words): plots.caption_grid(axis(), IMAGE, (2, 2), texts)


def test_long_words_get_smaller_letters_and_keep_all_letters():
    short, _ = plots.fit(["red"], 60, 30)
    long, wrapped = plots.fit(["the digit appears to be drawn in a dark blue"], 60, 30)
    assert short > long >= 4 and wrapped[0].replace("\n", " ") == "the digit appears to be drawn in a dark blue"
    assert plots.fit([""], 60, 30)[1] == [""]


def test_layer_curves_keep_network_order_and_gaps():
    ax = plots.layer_curves(axis(), TABLE)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["l1", "l2"]
    assert np.isnan(ax.lines[1].get_ydata()[0]) and ax.lines[1].get_ydata()[1] == .3
    assert ax.lines[0].get_marker() != ax.lines[1].get_marker() # told apart without colour
    with pytest.raises(ValueError, match="at least one"): plots.layer_curves(axis(), {})
    with pytest.raises(ValueError, match="unknown series: zz"): plots.layer_curves(axis(), TABLE, {"zz": {}})


def test_bars_first_on_top_with_all_baselines_in_the_legend():
    ax = DRAWINGS["bars"](axis())
    assert ax.get_ylim()[0] > ax.get_ylim()[1] and [t.get_text() for t in ax.get_yticklabels()] == ["x", "y"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["blind", "constant"]
    assert len(plots.bars(axis(), [], []).patches) == 0


@pytest.mark.parametrize("kw, words", [({"values": [1]}, "values has 1"), ({"intervals": [(0, 1)]}, "intervals has 1"),
                                       ({"baselines": {"blind": [1]}}, "blind has 1")])
def test_bars_refuse_counts_that_differ(kw, words):
    with pytest.raises(ValueError, match=f"2 labels, but {words}"): plots.bars(axis(), **{"labels": ["a", "b"], "values": [1, 2], **kw})


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 99))
def test_stacked_areas_lie_on_one_another(series, layers, seed):
    y = np.random.default_rng(seed).random((series, layers))
    ax = plots.stacked(axis(), {f"s{i}": {f"l{k}": v for k, v in enumerate(row)} for i, row in enumerate(y)}, limits=(0, series))
    for i, p in enumerate(ax.collections):
        at = p.get_paths()[0].vertices
        assert np.isclose(at[:, 1].max(), max(y[:i + 1].sum(0))) and np.isclose(at[:, 1].min(), min(y[:i].sum(0)) if i else 0)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [f"s{i}" for i in range(series)][::-1] # in the order of the eye
    for t in ax.texts: # a name stands in its own area
        i, (x, h) = int(t.get_text()[1:]), t.get_position()
        low, high = (np.interp(x, range(layers), y[:k].sum(0)) for k in (i, i + 1))
        assert low < h < high


def test_stacked_gaps_colours_and_refusals():
    ax = plots.stacked(axis(), {"a": {"x": 1, "y": float("nan"), "z": 2}, "b": {"x": 3, "z": 1}}, {"b": "#ff0000"})
    assert len(ax.collections[0].get_paths()) == 2 # nothing is drawn at y, where no series has a number
    assert ax.collections[1].get_facecolor()[0].tolist() == [1, 0, 0, 1]
    first, second = (plots.stacked(axis(), TABLE, c).collections[0].get_facecolor()[0] for c in (None, "tab20"))
    assert not np.allclose(first, second) and np.allclose(second[:3], mpl.colormaps["tab20"](0)[:3])
    assert len(set(plots.areas(21))) == 21 and plots.areas(3) == plots.areas(9)[:3]
    with pytest.raises(ValueError, match="at least one series"): plots.stacked(axis(), {})
    with pytest.raises(ValueError, match="'b' has a negative"): plots.stacked(axis(), {"a": {"x": 1}, "b": {"x": -1}})
