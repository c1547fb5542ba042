"Small pictures and tars that several tests read."
import io
import tarfile

import numpy as np
from PIL import Image


def coded(im, form="PNG", **k):
    im.save(b := io.BytesIO(), form, **k)
    return b.getvalue()


def picture(i=0, size=(8, 6)): return Image.new("RGB", size, (i % 256, i // 256, 7))
def ids(samples): return [s.id for s in samples]
def noise(n=64, seed=0): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (n, n, 3), np.uint8))


def tar(path, n=4, first=0, mode="w", extra=(), end=True):
    with tarfile.open(path, mode) as t:
        for name, data in [*[(f"d/{i:04d}.{s}", d) for i in range(first, first + n) for s, d in (("png", coded(picture(i))), ("txt", b"number %d\n" % i),
                           ("json", b'{"regions": [{"box": [0, 0, 2, 2]}], "n": %d}' % i))], *extra]:
            if isinstance(name, tarfile.TarInfo): t.addfile(name); continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return path


def one(x): return x.id # a module's function, so that worker processes find it
