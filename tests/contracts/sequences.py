"""Tiny decoders and methods for the tests of the sequence contract."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from workbench.contracts.sequence import Press

SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": None, "initializer_range": 0.3}
KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM), "mistral": (MistralConfig, MistralForCausalLM)}


def decoder(kind="llama", seed=0, attention="sdpa", **sizes):
    torch.manual_seed(seed)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=61, n_embd=32, n_layer=3, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=None, initializer_range=0.3)
        model = GPT2LMHeadModel(config)
    else:
        config, net = KINDS[kind]
        model = net(config(**SIZES | ({"sliding_window": None} if kind == "mistral" else {}) | sizes))
    model.set_attn_implementation(attention)
    return model.eval()


def prompt(batch=2, n=24, seed=0):
    return torch.randint(2, 61, (batch, n), generator=torch.Generator().manual_seed(seed))


def generate(model, ids, steps=8, **settings):
    return model.generate(ids, max_new_tokens=steps, do_sample=False, pad_token_id=0, **settings)


@dataclass(frozen=True)
class Ragged(Press):
    """Random scores; every layer and head keeps another number of tokens."""

    ratio: float = 0.5
    seed: int = 0

    def scores(self, layer) -> Tensor:
        return torch.rand(layer.keys.shape[:3], generator=torch.Generator().manual_seed(self.seed + layer.index))

    def budgets(self, layers) -> list[Tensor]:
        b, h, n, _ = layers[0].keys.shape
        return [1 + (torch.arange(b * h).view(b, h) * 5 + 3 * layer.index) % (n - 2) for layer in layers]
