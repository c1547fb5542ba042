"Small worlds for the DeViL tests: an encoder whose features are colours, a language model with a handful of words."
import torch
from torch import nn
from torch.nn import functional as F
from transformers import OPTConfig, OPTForCausalLM

from vlnotes.backbones import Backbone, freeze
from vlnotes.checkpoints import seeded
from vlnotes.devil.explain import Devil
from vlnotes.devil.translator import DevilConfig, Translator
from vlnotes.hooks import Feat
from vlnotes.text import make_lm, word_tokenizer

WORDS = ["red", "green", "blue", "a", "square", "and", "."]
SIDE = 16 # pixels
CHANNELS, GRIDS = {"low": 6, "mid": 8, "high": 10}, {"low": (8, 8), "mid": (4, 4), "high": (2, 2)}


class Stages(nn.Module):
    "Three stages that halve the map; `plain` keeps the colours as they are."
    def __init__(self, plain=False):
        super().__init__()
        stage = lambda a, b: nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(a, b, 1), *([] if plain else [nn.Tanh()]))
        self.low, self.mid, self.high = stage(3, 6), stage(6, 8), stage(8, 10)
        if plain:
            for m in self.modules():
                if isinstance(m, nn.Conv2d): nn.init.eye_(m.weight.data[:, :, 0, 0]); nn.init.zeros_(m.bias)
    def forward(self, x): return self.high(self.mid(self.low(x)))


def encoder(plain=False):
    with seeded(0): net = Stages(plain)
    return Backbone(freeze(net), "toy/stages", input_size=(SIDE, SIDE), mean=(0.,) * 3, std=(1.,) * 3)

def lm(words=WORDS, width=32, seed=0, **kw):
    tok = word_tokenizer(words)
    cfg = dict(vocab_size=len(tok), hidden_size=width, word_embed_proj_dim=width, ffn_dim=32, num_hidden_layers=2, num_attention_heads=4,
               max_position_embeddings=40, bos_token_id=2, eos_token_id=2, pad_token_id=1, init_std=.3)
    with seeded(seed): model = OPTForCausalLM(OPTConfig(**{**cfg, **kw}))
    return make_lm(model, tok, "toy/lm")

def config(layers=("high", "mid", "low"), **kw):
    sizes = dict(lm_dim=32, prompt=3, hidden=16, depth=2, heads=2, ff=24, max_length=12, init=.2)
    return DevilConfig(layers, [CHANNELS[l] for l in layers], **{**sizes, **kw})

def devil(layers=("high", "mid", "low"), seed=1, words=WORDS, **kw):
    return Devil(encoder(), Translator(config(layers, **kw), seed).requires_grad_(False).eval(), lm(words), "toy")

def images(n=4, seed=0): return torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))

def feats(n=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {l: Feat(torch.randn(n, h * w, CHANNELS[l], generator=g), (h, w), l) for l, (h, w) in GRIDS.items()}

@torch.no_grad()
def logits(lm, prompt, ids): # (T, E), tokens after BOS -> (1 + n, V): what comes after the prompt and after each token
    e = lm.model.get_input_embeddings()
    x = torch.cat([e(torch.tensor([[lm.bos]])), prompt[None], e(torch.tensor([list(ids)], dtype=torch.long))], 1)
    return F.log_softmax(lm.model(inputs_embeds=x, use_cache=False).logits[0, prompt.shape[0]:].float(), -1)
