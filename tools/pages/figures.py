"""Pictures of kept results, drawn from the numbers in their files with the functions of `vlnotes.plots`.

Each function takes the metrics of a manifest and returns a figure and what it shows; a result without one has its tables alone.
"""
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

FACTORS = ("digit", "colour", "shape", "size")


def canvas(columns=1, width=7.2, height=3.2, **more):
    fig = Figure(figsize=(width, height), layout="constrained")
    axes = fig.subplots(1, columns, squeeze=False, **more)[0]
    return fig, axes[0] if columns == 1 else axes


def last(name): return name.replace("transformer.resblocks.", "block ")
def bounds(r, key): return r[f"{key}_lo"], r[f"{key}_hi"]


def curves(plots, ax, rows, keys, layer="who", **more): # a curve per key over rows, with bands
    return plots.layer_curves(ax, {k: {last(r[layer]): r[k] for r in rows} for k in keys}, {k: {last(r[layer]): bounds(r, k) for r in rows} for k in keys}, **more)


def levels(plots, ax, rows, key, xlabel, name="who", limits=(0, 1)):
    return plots.bars(ax, [last(r[name]) for r in rows], [r[key] for r in rows], [bounds(r, key) if f"{key}_lo" in r else (r["lo"], r["hi"]) for r in rows], xlabel=xlabel, limits=limits)


def coca_layers(plots, m):
    fig, (a, b) = canvas(2, 9.6)
    plots.layer_curves(a, {k: {last(r["layer"]): r["entropy"] for r in v} for k, v in m["curves"].items() if k != "coca+lens"}, ylabel="entropy of the next word, nats")
    rows = [r for r in m["right"] if r["who"].startswith("transformer")]
    curves(plots, b, rows, FACTORS, ylabel="F1 of the words named", baselines={"best baseline, digit": max(r["digit"] for r in m["right"] if r not in rows)})
    b.set_ylim(0, 1.04)
    return fig, "Left: how undecided the decoder is, reading each layer of its own tower and of four controls (*mean* and *zero* are one input each). Right: which words are right, with 95 % intervals."


def coca_categories(plots, m):
    fig, ax = canvas(height=3.4)
    layers = [last(r["layer"]) for r in m["layers"]]
    plots.stacked(ax, {g: {n: r["shares"][g][0] for n, r in zip(layers, m["layers"])} for g in m["layers"][0]["shares"]}, ylabel="share of the phrases, %")
    return fig, "Of what kinds of things the captions speak, by layer."


def devil_captions(plots, m):
    fig, ax = canvas()
    rows = [r for r in m["cells"] if r["who"] not in ("constant", "shuffled", "blind")]
    curves(plots, ax, rows, FACTORS, ylabel="named right", baselines={"constant caption, digit": next(r["digit"] for r in m["cells"] if r["who"] == "constant")})
    return fig, "How often the caption of the cell at a region's centre names its digit, colour, shape and size, by layer, with 95 % intervals."


def devil_neurons(plots, m):
    fig, ax = canvas(height=2)
    levels(plots, ax, m["attribute"], "right", "share of held-out units whose planted attribute is named")
    return fig, "Descriptions of units beside their baselines, with 95 % intervals."


def devil_saliency(plots, m):
    fig, ax = canvas(height=3.2)
    rows = m["pointing"]
    plots.bars(ax, [f"{r['layer']}, {r['factor']}" for r in rows], [r["inside"] for r in rows], [(r["lo"], r["hi"]) for r in rows],
               {"map of another phrase": [r["shuffled_phrase"] for r in rows], "chance": [r["chance"] for r in rows]}, "peak of the map inside a right region", (0, 1.1))
    return fig, "Where the saliency map of a true phrase has its peak."


def devil_train(plots, m):
    fig, ax = canvas(height=2.8)
    plots.layer_curves(ax, {"validation": {f"{r['step']:,}": r["loss"] for r in m["validation"]}}, ylabel="nats per token")
    ax.set_xlabel("update")
    return fig, "Held-out loss while the translator is trained."


def lavise_filters(plots, m):
    fig, axes = canvas(2, 9.6, 2.4)
    for ax, g in zip(axes, ("taught", "held out")): levels(plots, ax, [r for r in m["recall"] if r["words"] == g], "recall@5", f"recall@5, words {g}")
    return fig, "Words of filters beside their baselines. Of words that nobody taught, the head is no better than a random network or another filter's words."


def lavise_train(plots, m):
    names = list(m["regions"]) if "regions" in m and isinstance(m["regions"], dict) else [k for k in m if k.startswith("layer")]
    of = m["regions"] if isinstance(m.get("regions"), dict) else m
    fig, ax = canvas()
    def one(who, n): return next(r for r in of[n] if r["who"] == who and r["words"] == "taught")
    whos = list(dict.fromkeys(r["who"] for r in of[names[0]]))
    plots.layer_curves(ax, {w: {n: one(w, n)["recall@5"] for n in names} for w in whos}, {w: {n: bounds(one(w, n), "recall@5") for n in names} for w in whos}, ylabel="recall@5, taught words")
    return fig, "Words of held-out regions by layer, beside the baselines."


def docmnist_complexity(plots, m):
    kinds = list(dict.fromkeys(r["regime"] for r in m["text_to_region"]))
    fig, axes = canvas(len(kinds), 9.6, 3.8, sharey=True)
    arms = ("true", "villa", "shared", "everything", "whole", "random", "untrained")
    for ax, kind in zip(axes, kinds):
        rows = [r for r in m["text_to_region"] if r["regime"] == kind]
        table = {a: {str(r["target"]): r["mean"] for r in rows if r["arm"] == a} for a in arms}
        band = {a: {str(r["target"]): (r["lo"], r["hi"]) for r in rows if r["arm"] == a} for a in arms}
        plots.layer_curves(ax, table, band, ylabel="R-Precision, text to region" if ax is axes[0] else "")
        ax.set(xlabel="target complexity, pairs per image"); ax.set_title("equal number of pairs" if kind == "pairs" else "equal number of images")
        ax.get_legend().remove()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig, "Retrieval by the complexity of the captions, with the pairs that ViLLA's mapping finds and with those of the other arms; intervals over seeds."


def faithfulness_layers(plots, m):
    fig, axes = canvas(4, 11, 2.8, sharey=True)
    for ax, f in zip(axes, m["curves"]):
        plots.layer_curves(ax, m["curves"][f], baselines={"chance": m["chance"][f]}); ax.set_title(f); ax.set_ylim(0, 1.02)
        if ax is not axes[0]: ax.get_legend().remove()
    return fig, "What a linear probe reads from a layer, and what the words say."


def faithfulness_units(plots, m):
    fig, axes = canvas(2, 9.6, 3.4)
    for ax, (noise, found) in zip(axes, m["sanity"].items()):
        plots.bars(ax, list(found), [v["missing"] for v in found.values()], None, {"extra labels": [v["extra"] for v in found.values()]}, f"score with labels missing / true score ({noise})")
        ax.axvline(.9, color=plots.MUTED, linewidth=.8)
    return fig, "A score that does not fall when half of the labels are missing, or when wrong ones are added, cannot tell good words from bad; left of the line it falls."


def scoreboard(plots, m):
    rows = sorted((r for r in m["images"] if r["kind"] == "describer" and "f1" in r), key=lambda r: -r["f1"])
    fig, ax = canvas(height=.28 * len(rows) + 1)
    def base(k): return [next(o["f1"] for o in m["images"] if o["who"] == k and (o.get("of"), o["encoder"], o.get("layer")) in ((r["who"], r["encoder"], r.get("layer")), (None, "none", None))) for r in rows]
    plots.bars(ax, [f"{r['who']}, {r['encoder'].rpartition('/')[2]}, {last(r.get('layer') or '')}" for r in rows], [r["f1"] for r in rows], [bounds(r, "f1") for r in rows],
               {k: base(k) for k in ("constant", "blind", "shuffled image")}, "F1 of the words said of whole images", (0, 1.1))
    return fig, "Every describer on whole images, beside its baselines. A bar that ends left of a mark is no better than that baseline."


def lgssl_study(plots, m):
    fig, ax = canvas(height=3.2)
    levels(plots, ax, m["table"], "probe", "linear probe, handwriting never seen (chance 0.125)", limits=(0, 1.12))
    return fig, "Encoders trained with pairs from different sources, and two that were not trained; intervals over seeds."


def lgssl_probe(plots, m):
    fig, ax = canvas(height=2.2)
    rows = m["table"]
    plots.bars(ax, [f"{r['encoder']}, {r['data']}" for r in rows], [r["accuracy"] for r in rows], [(r["lo"], r["hi"]) for r in rows], {"majority class": [r["majority"] for r in rows]}, "accuracy of the linear probe", (0, 1.12))
    return fig, "Linear probes with 95 % intervals."


def lgssl_pretrain(plots, m):
    fig, ax = canvas(height=1.7)
    levels(plots, ax, [{"who": k, **m[k]} for k in ("trained", "untrained")], "accuracy", "accuracy of a linear probe for the digit (majority 0.101)", limits=(0, 1))
    return fig, "Six hundred updates on four thousand scenes: better than chance, and far from good."


def villa_stage1(plots, m):
    fig, ax = canvas(height=1.9)
    levels(plots, ax, [{"who": k, **{n: v / 100 for n, v in r.items() if n.startswith("f1")}} for k, r in m["scores"].items()], "f1", "F1 of the links between regions and attributes", limits=(0, 1))
    return fig, "Links that the mapping finds in images it was not trained on, beside two floors."


def villa_stage2(plots, m):
    fig, ax = canvas(height=2.1)
    levels(plots, ax, [{"who": k, **r} for k, r in m["retrieval"].items()], "t2r_r_precision", "R-Precision, text to region")
    return fig, "Retrieval of regions by text, with 95 % intervals."


def speed(plots, m):
    rows = [r for r in m["rows"] if r.get("ratio")]
    if not rows: return None
    fig, ax = canvas(width=8.4, height=.3 * len(rows) + .9)
    plots.bars(ax, [r["what"] for r in rows], [r["ratio"] for r in rows], [(r["low"], r["high"]) for r in rows], xlabel="how many times faster than the plain way (the range over repeats)")
    ax.set_xscale("log"); ax.set_xlim(.5, 3 * max(r["high"] for r in rows)); ax.axvline(1, color=plots.MUTED, linewidth=.8)
    return fig, "Each job beside the plain way of doing it, on the same machine in turns."


DRAWN = {f.__name__: f for f in (coca_layers, coca_categories, devil_captions, devil_neurons, devil_saliency, devil_train, lavise_filters, lavise_train, docmnist_complexity,
                                 faithfulness_layers, faithfulness_units, scoreboard, lgssl_study, lgssl_probe, lgssl_pretrain, villa_stage1, villa_stage2, speed)}


def draw(results, folder):
    "Write a picture for every kept result that has one; file's stem -> (address seen from an experiment's page, caption)."
    from vlnotes import plots
    mpl.use("Agg")
    folder, made = Path(folder), {}
    folder.mkdir(parents=True, exist_ok=True)
    for found in results.values():
        for path, m in found:
            if m["name"] not in DRAWN or not m.get("metrics"): continue
            with plots.style():
                if (drawn := DRAWN[m["name"]](plots, m["metrics"])) is None: continue
                (folder/f"result-{path.stem}.png").write_bytes(plots.png(drawn[0], 110))
            made[path.stem] = (f"../images/result-{path.stem}.png", drawn[1])
    return made
