"MILANNOTATIONS and ImageNet's validation folder in their published layouts, small."
import csv
from pathlib import Path

import numpy as np
from PIL import Image

SETS = {"alexnet/imagenet": ["conv1", "conv2"], "alexnet/places365": ["conv1", "conv10", "conv2"]}
WITHOUT = ("alexnet/imagenet", "resnet152/imagenet", "dino_vits8/imagenet") # come without images
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "yellow": (220, 210, 40)}


def note(unit, k=0): # what is true of a unit: the colour inside its masks
    colour = list(COLOURS)[unit % len(COLOURS)]
    return (f"{colour} things", f"something {colour}, on the left", f"a {colour} \"patch\"")[k % 3]


def exemplars(units, images, size, rng): # (U, K, 3, S, S) and (U, K, 1, S, S): grey noise, and a patch of the unit's colour under the mask
    x = np.repeat(rng.integers(90, 160, (units, images, 1, size, size), np.uint8), 3, 2)
    m = np.zeros((units, images, 1, size, size), np.uint8)
    for u in range(units):
        for k in range(images):
            r, c, h, w = *rng.integers(0, size // 2, 2), *rng.integers(size // 4, size // 2 + 1, 2)
            m[u, k, 0, r:r + h, c:c + w] = 1
            x[u, k, :, r:r + h, c:c + w] = np.array(list(COLOURS.values())[u % len(COLOURS)])[:, None, None]
    return x, m


def write_layer(folder, x, m, ids=None, numbers=None, form="layers", images=True):
    "The arrays of one layer: whole (`layers`), or a pair of files per unit (`units`)."
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(len(m)) if numbers is None else numbers
    if form == "units":
        for u, a, b in zip(numbers, x, m): np.save(folder / f"images_{u}.npy", a); np.save(folder / f"masks_{u}.npy", b)
        return
    if images: np.save(folder / "images.npy", x)
    np.save(folder / "masks.npy", m)
    if list(numbers) != list(range(len(m))): np.save(folder / "units.npy", np.array(numbers))
    if ids is not None: (folder / "ids.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in ids))


def write_notes(path, rows, head=("split", "layer", "unit", "summary")):
    with open(path, "w", newline="", encoding="utf-8") as f:
        w = csv.writer(f)
        w.writerow(head)
        w.writerows(rows)


def write_milan(root, sets=None, units=4, images=3, seed=0, *, size=16, notes=3, form="layers", merged=True, numbers=False, pictures=12) -> Path:
    "The folder of some sets ({name: layers}); `merged=False` leaves ImageNet's pictures out; `numbers=True` writes `units.npy`, every second unit."
    for k, (name, layers) in enumerate((sets or SETS).items()):
        rng, home, rows = np.random.default_rng([seed, k]), Path(root) / name, []
        for layer in layers:
            x, m = exemplars(units, images, size, rng)
            own = [2 * u for u in range(units)] if numbers else list(range(units))
            ids = rng.integers(0, pictures, (units, images))
            write_layer(home / layer, x, m, ids, own, form, merged or name not in WITHOUT)
            rows += [("train", layer, u, note(i, n)) for i, u in enumerate(own) for n in range(notes)]
        write_notes(home / "annotations.csv", [rows[i] for i in rng.permutation(len(rows))])
    return Path(root)


def write_imagenet(root, classes=4, each=3, seed=0, size=(30, 22)) -> Path:
    "Pictures in class folders, photographs' shape; JPEG, and one PNG under a JPEG's name."
    rng, root = np.random.default_rng(seed), Path(root)
    for c in rng.permutation(classes):
        (root / f"n{c:08}").mkdir(parents=True)
        for i in rng.permutation(each):
            im = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
            im.save(root / f"n{c:08}" / f"ILSVRC2012_val_{i:08}.JPEG", "PNG" if c == i == 1 else "JPEG")
    return root
