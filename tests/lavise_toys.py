"Small networks and worlds that the tests of LaViSE share."
import numpy as np
import torch
from torch import nn

from vlnotes import docmnist
from vlnotes.backbones import Backbone, freeze
from vlnotes.lavise.concepts import docmnist_regions
from vlnotes.lavise.train import TrainConfig, train


class Colours(nn.Module):
    "The mean colour of each of 3 x 3 cells: channels that mean something, and nothing was learnt."
    def __init__(self):
        super().__init__()
        self.map, self.gain = nn.AvgPool2d(28), nn.Parameter(torch.ones(1))
    def forward(self, x): return self.map(x * self.gain)


class Hues(Colours):
    "Random mixtures of the mean colours, after a ReLU: a colour between two others gives features between theirs."
    def __init__(self, channels=24):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.mix = nn.Conv2d(3, channels, 1)
    def forward(self, x): return self.map(self.mix(x * self.gain).relu() * 9)


class Mixed(nn.Module):
    "Random channels of a 6 x 6 map, after a ReLU, then a vector."
    def __init__(self, channels=12, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv, self.relu, self.pool = nn.Conv2d(3, channels, 14, 14), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    def forward(self, x): return self.pool(self.relu(self.conv(x))).flatten(1)


def toy(net=None, layers=None): # as an encoder of 84 x 84 pixels
    net = net or Mixed()
    return Backbone(freeze(net), f"toy/{type(net).__name__.lower()}", input_size=(84, 84), mean=(0.,) * 3, std=(1.,) * 3, layers=layers or (["map"] if isinstance(net, Colours) else ["relu"]))

def drawn(n, split="train", seed=1, regions=(1, 4), **kw): return docmnist_regions(docmnist.generate(n, regions=regions, split=split, seed=seed, **kw))

def taught(out, encoder, source, **kw): # train a small explainer into a folder
    cfg = TrainConfig(**{**dict(encoder=encoder.name, layer=encoder.layer_names[-1], epochs=4, lr=2e-3, bs=64, stop=None, cache=str(out/"cache"), out=str(out/"run"), progress=False, device="cpu"), **kw})
    return cfg, train(cfg, encoder=encoder, source=source)

def gammas(shape, seed=0): # activations with many equal ones, as after a ReLU
    return torch.from_numpy(np.random.default_rng(seed).gamma(1., 1., shape).astype(np.float32)).clamp_min(.4)
