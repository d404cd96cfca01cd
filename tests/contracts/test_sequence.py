"""Compressed caches against what they stand for: plain generation, explicit masks over a full cache, each prompt alone, bytes counted by hand."""

import copy
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
import torch
from sequences import Ragged, decoder, generate, prompt
from torch import nn
from transformers import BertConfig, BertLMHeadModel, DynamicCache, StaticCache, T5Config, T5ForConditionalGeneration

from workbench.contracts.files import artifact
from workbench.contracts.sequence import ArtifactError, Press, decode, kept, kept_tokens, load, nbytes, prefill, protect, reading, save
from workbench.papers.context.classics import H2O, Full, HeavyRecent, KeyNorm, PyramidKV, RandomTokens, SinkWindow, SnapKV, StreamingLLM
from workbench.papers.context.quantized import KIVI, Quantized

KINDS = ("llama", "qwen2", "mistral", "gpt2")


@dataclass(frozen=True)
class Share(Press):
    layer_map: dict

    def __hash__(self):
        return id(self)


def tokens_after(model, cache, ids, n):
    """Logits of ``ids`` from the ``n``-th on, after a *full* plain cache in which each layer and head sees only what ``cache`` holds of the first ``n``."""
    heads = model.config.num_attention_heads
    full = ids[:, :n]
    hooks = []
    for module in [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "is_causal")]:
        sets = kept(cache, module.layer_idx)
        sees = torch.zeros(len(ids), len(sets[0]), ids.shape[1], dtype=torch.bool)
        sees[..., n:] = True
        for b, row in enumerate(sets):
            for h, places in enumerate(row):
                sees[b, h, places[places < n]] = True
        sees = sees.repeat_interleave(heads // len(sets[0]), 1)

        def masked(_module, args, kwargs, sees=sees):
            q = kwargs["hidden_states"].shape[1] if "hidden_states" in kwargs else args[0].shape[1]
            if q == n:
                return None
            causal = torch.arange(ids.shape[1]) <= torch.arange(n, n + q)[:, None]
            return args, {**kwargs, "attention_mask": sees[:, :, None] & causal}

        hooks.append(module.register_forward_pre_hook(masked, with_kwargs=True))
    past = DynamicCache()
    with torch.no_grad():
        model(full, past_key_values=past)
        logits = model(ids[:, n:], past_key_values=past).logits
    for hook in hooks:
        hook.remove()
    return logits


def compressed(model, ids, *methods):
    """The cache of a plain forward pass with the methods at work."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), ExitStack() as stack:
        for method in methods:
            stack.enter_context(method(model))
        model(ids, past_key_values=cache)
    return cache


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_ratio_0_is_plain_generation_token_for_token(kind, attention):
    model, ids = decoder(kind, attention=attention), prompt()
    plain = generate(model, ids, return_dict_in_generate=True, output_logits=True)
    for method in (Full(), SnapKV(0, window=4), H2O(0), KeyNorm(0)):
        with method(model):
            out = generate(model, ids, return_dict_in_generate=True, output_logits=True)
        assert torch.equal(out.sequences, plain.sequences) and all(torch.equal(a, b) for a, b in zip(out.logits, plain.logits, strict=True))
        assert nbytes(out.past_key_values) == nbytes(plain.past_key_values)
    with SnapKV(0.8, window=2)(model):
        assert not torch.equal(generate(model, ids), plain.sequences)  # the test can fail


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_second_turn_at_ratio_0_is_the_plain_one(kind):
    model, ids, more = decoder(kind), prompt(), prompt(n=5, seed=1)
    turns = []
    for method in (None, SnapKV(0, window=4)):
        cache = DynamicCache(config=model.config)
        with reading(model) if method is None else method(model):
            first = generate(model, ids, past_key_values=cache)
            turns.append(generate(model, torch.cat([first, more], 1), past_key_values=cache))
    plain = DynamicCache(config=model.config)
    first = generate(model, ids, past_key_values=plain)
    assert torch.equal(turns[1], generate(model, torch.cat([first, more], 1), past_key_values=plain)) and torch.equal(turns[0], turns[1])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("method", [Ragged(), KeyNorm(0.4), StreamingLLM(0.6), PyramidKV(0.5, window=4)], ids=lambda m: type(m).__name__)
def test_a_shrunk_cache_is_a_full_one_with_a_mask(kind, method, attention):
    """Later tokens at their true positions, one by one and five at once, when layers and heads hold different tokens and different numbers of them."""
    model, ids = decoder(kind, attention=attention).double(), prompt(n=30)
    cache = compressed(model, ids[:, :24], method)
    if method == Ragged():
        assert len({len(head) for i in range(3) for row in kept(cache, i) for head in row}) > 6
    model.set_attn_implementation("sdpa")  # takes the test's boolean masks
    expected = tokens_after(model, cache, ids, 24)
    model.set_attn_implementation(attention)
    single = copy.deepcopy(cache)
    with torch.no_grad(), reading(model):
        at_once = model(ids[:, 24:], past_key_values=cache).logits
        singly = torch.cat([model(ids[:, i:i + 1], past_key_values=single).logits for i in range(24, 30)], 1)
    assert cache.get_seq_length() == 30
    assert torch.allclose(at_once, expected, atol=1e-5) and torch.allclose(singly, expected, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(expected, model(ids).logits[:, 24:], atol=1e-3)  # eviction is felt


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [Full(), SnapKV(0.5, window=4), H2O(0.5), StreamingLLM(0.5, sinks=2)], ids=lambda m: type(m).__name__)
def test_padded_prompts_are_compressed_as_if_alone(kind, method):
    model, ids = decoder(kind), prompt(3)
    mask = torch.ones_like(ids)
    for row, pad in ((1, 7), (2, 11)):
        ids[row, :pad], mask[row, :pad] = 0, 0
    with method(model) as run:
        together = generate(model, ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True)
        sets = [kept(run.cache, 1)[row] for row in range(3)]
    for row in range(3):
        alone_ids = ids[row:row + 1, int((mask[row] == 0).sum()):]
        with method(model) as run:
            alone = generate(model, alone_ids, return_dict_in_generate=True, output_logits=True)
        assert torch.equal(alone.sequences[0, -8:], together.sequences[row, -8:])
        assert all(torch.allclose(a[0], t[row], atol=1e-4) for a, t in zip(alone.logits, together.logits, strict=True))
        pad = ids.shape[1] - alone_ids.shape[1]
        if method != Full():  # which holds the padding, masked, as a plain cache does
            assert all(torch.equal(a + pad, b) for a, b in zip(kept(run.cache, 1)[0], sets[row], strict=True))


def test_a_sliding_window_holds_for_what_is_left():
    """Mistral's window hides by true distance, whatever was evicted in between."""
    model, ids = decoder("mistral", sliding_window=9), prompt()
    plain = generate(model, ids)
    with SnapKV(0, window=4)(model):
        assert torch.equal(generate(model, ids), plain)
    with RandomTokens(0.5)(model) as run:
        generate(model, ids, 1)
        assert all(place >= 24 - 9 for row in kept(run.cache, 0) for head in row for place in head)
        assert all(len(head) == 5 for row in kept(run.cache, 0) for head in row)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_bytes_are_those_of_the_formula(kind):
    model, ids = decoder(kind), prompt(2, 40)
    layers, heads, d = 3, 4 if kind == "gpt2" else 2, 8
    for ratio, k in ((0.0, 40), (0.25, 30), (0.9, 4)):
        cache, one_set = compressed(model, ids, KeyNorm(ratio)), compressed(model, ids, StreamingLLM(ratio))
        index = layers * 2 * k * 4 if ratio else 0
        assert kept_tokens(40, ratio) == k and nbytes(cache) == 2 * layers * 2 * heads * k * d * 4 + index * heads
        assert nbytes(one_set) == 2 * layers * 2 * heads * k * d * 4 + index
    assert [kept_tokens(100, r) for r in (0.29, 0.57, 0.58, 0.999)] == [71, 43, 42, 1]  # 0.29 · 100 is 28.999… in binary
    assert nbytes(compressed(model, ids, Full())) == nbytes(DynamicCache()) + 2 * layers * 2 * heads * 40 * d * 4


def test_a_slice_of_a_large_tensor_counts_in_full():
    model = decoder()
    cache = compressed(model, prompt(1, 40), Full())
    before = nbytes(cache)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, :1], layer.values[:, :, :1]
    assert nbytes(cache) == before


def test_ragged_heads_hold_no_padding():
    model, ids = decoder(), prompt()
    cache = compressed(model, ids, Ragged())
    held = sum(len(head) for i in range(3) for row in kept(cache, i) for head in row)
    assert nbytes(cache) == held * (2 * 8 * 4 + 4) + 3 * 4 * 4  # keys, values, places; and how many each head has


def test_the_prefill_of_many_methods_runs_once():
    model, ids = decoder(), prompt()
    ready = prefill(model, ids)
    for press in (None, SnapKV(0.5, window=4), H2O(0.4), Ragged(), HeavyRecent(4, 4), Quantized(8), (SnapKV(0.5, window=4), Quantized(4))):
        a, b = decode(model, ids, 6, press), decode(model, ready, 6, press)
        assert torch.equal(a.tokens, b.tokens) and torch.allclose(a.logits, b.logits, atol=1e-5) and nbytes(a.cache) == nbytes(b.cache)
        assert a.attention_entries == b.attention_entries
    assert torch.equal(decode(model, ready, 6).tokens, generate(model, ids, 6)[:, 24:])


def test_decode_sees_the_compressed_cache_from_its_first_token():
    model, ids = decoder(), prompt()
    full, half = decode(model, ids, 4), decode(model, ids, 4, KeyNorm(0.5))
    assert not torch.allclose(full.logits[:, 0], half.logits[:, 0], atol=1e-3)
    assert half.cache.get_seq_length() == 24 + 3 and len(kept(half.cache, 0)[0][0]) == 12 + 3
    for press in (KeyNorm(0.5), H2O(0.5), Ragged()):
        out = decode(model, ids, 1, press)
        assert torch.allclose(out.logits, tokens_after(model, out.cache, ids, 23), atol=1e-4)
    budgets = Ragged().budgets(prefill(model, ids).layers)
    assert [[len(head) for head in row] for row in kept(out.cache, 1)] == budgets[1].tolist()  # the last prompt token included


def test_followed_tokens_give_the_likelihood_of_an_answer():
    model, ids, answer = decoder(), prompt(), prompt(n=5, seed=3)
    forced = decode(model, ids, 5, follow=answer)
    with torch.no_grad():
        whole = model(torch.cat([ids, answer], 1)).logits[:, 23:28]
    assert torch.allclose(forced.logits, whole, atol=1e-5)


def test_crop_takes_back_questions_and_reaches_into_what_was_kept():
    model, ids, question = decoder(), prompt(), prompt(n=5, seed=1)
    cache = compressed(model, ids, KeyNorm(0.5))
    with torch.no_grad(), reading(model):
        first = model(question, past_key_values=cache).logits
        cache.crop(-5)
        assert torch.equal(model(question, past_key_values=cache).logits, first) and cache.get_seq_length() == 29
        cache.crop(-9)
    sets = [head for i in range(3) for row in kept(cache, i) for head in row]
    assert cache.get_seq_length() == 20 and all((head < 20).all() for head in sets) and len({len(head) for head in sets}) > 1
    packed = compressed(model, ids, Quantized(8))
    with pytest.raises(ValueError, match="packed"):
        packed.crop(-3)


@pytest.mark.parametrize("pair", [(SnapKV(0.5, window=4), Quantized(8)), (Quantized(8), SnapKV(0.5, window=4))], ids=["evict, pack", "pack, evict"])
def test_eviction_and_packing_combine_in_either_order(pair):
    model, ids = decoder(), prompt()
    alone, both = decode(model, ids, 6, SnapKV(0.5, window=4)), decode(model, ids, 6, pair)
    assert all(torch.equal(a, b) for i in range(3) for x, y in zip(kept(alone.cache, i), kept(both.cache, i), strict=True) for a, b in zip(x, y, strict=True))
    assert torch.allclose(alone.logits, both.logits, atol=0.2) and not torch.equal(alone.logits, both.logits)
    packed = 3 * 2 * 2 * 11 * (2 * (8 + 4) + 4)  # 11 of 12: the last prompt token is decoded again, into the tail
    assert nbytes(both.cache) == packed + 2 * 3 * 2 * 2 * 6 * 8 * 4


def test_ragged_heads_can_be_packed():
    model, ids = decoder(), prompt()
    assert torch.allclose(decode(model, ids, 4, (Ragged(), Quantized(8))).logits, decode(model, ids, 4, Ragged()).logits, atol=0.2)


def test_the_tail_is_packed_when_it_is_long_enough():
    model, ids = decoder(), prompt()
    with Quantized(8, residual=4)(model) as run:
        generate(model, ids, 12)
    parts = [part.n for part in run.cache.layers[0].held]
    assert parts == [24, 4, 4] and run.cache.layers[0].keys.shape[2] == 3 and run.cache.get_seq_length() == 35


def test_shared_layers_attend_to_their_root_in_the_prefill_too():
    model, ids = decoder("llama"), prompt()
    twin = copy.deepcopy(model)
    calls = []
    model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda _, inputs, output: calls.append(bool(output.any())))
    out = decode(model, ids, 5, Share({1: 0}))
    assert calls == [False] * 6  # the projection does nothing there
    full = decode(model, ids, 5)
    assert nbytes(out.cache) * 3 == nbytes(full.cache) * 2 and out.cache.layers[1].tensors() == []

    root = {}

    def remember(module, args, kwargs):
        root["kv"] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

    attention = twin.model.layers[1].self_attn
    twin.model.layers[0].self_attn.register_forward_pre_hook(remember, with_kwargs=True)
    for name in ("k_proj", "v_proj"):  # layer 1 projects layer 0's input by layer 0's weights: what sharing means
        getattr(attention, name).register_forward_pre_hook(lambda module, args: (root["kv"],))
        getattr(attention, name).weight = getattr(twin.model.layers[0].self_attn, name).weight
    reference = decode(twin, ids, 5)
    assert torch.allclose(out.logits, reference.logits, atol=1e-5) and not torch.allclose(out.logits, full.logits, atol=1e-3)
    both = decode(model, ids, 5, (Share({1: 0}), KeyNorm(0.5)))
    assert torch.allclose(both.logits, decode(twin, ids, 5, KeyNorm(0.5)).logits, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(kept(both.cache, 1)[0], kept(both.cache, 0)[0], strict=True))
    assert nbytes(both.cache) * 3 == nbytes(decode(model, ids, 5, KeyNorm(0.5)).cache) * 2
    assert "forward" not in model.model.layers[1].self_attn.k_proj.__dict__


@dataclass(frozen=True)
class Window(Press):
    """Attends to the last ``size`` tokens only, by hand."""

    size: int

    def attend(self, layer):
        (q, n) = layer.queries.shape[2], layer.keys.shape[2]
        keys, values = (x.repeat_interleave(layer.queries.shape[1] // x.shape[1], 1) for x in (layer.keys, layer.values))
        distance = torch.arange(n - q, n)[:, None] - torch.arange(n)
        logits = (layer.queries @ keys.transpose(2, 3) * layer.scaling).masked_fill((distance < 0) | (distance >= self.size), -torch.inf)
        return (logits.softmax(-1) @ values).transpose(1, 2)


def test_a_method_may_attend_itself():
    model, windowed, ids = decoder("mistral"), decoder("mistral", sliding_window=5), prompt()
    with Window(5)(model):
        assert torch.equal(generate(model, ids), generate(windowed, ids))
    assert not torch.equal(generate(model, ids), generate(windowed, ids))


def test_rows_of_attention_are_those_of_the_model():
    model, ids = decoder("qwen2", attention="eager"), prompt()
    with torch.no_grad():
        rows = model(ids, output_attentions=True).attentions
    for layer, expected in zip(prefill(model, ids).layers, rows, strict=True):
        assert torch.allclose(layer.attention(), expected, atol=1e-6) and torch.allclose(layer.attention(5), expected[:, :, -5:], atol=1e-6)
        assert torch.allclose(layer.received(strip=7), expected.sum(2), atol=1e-5)
        some = torch.tensor([3, 20, 21])
        assert torch.allclose(layer.attention(some), expected[:, :, some], atol=1e-6)
        assert layer.tally["attention entries"] == 2 * 4 * 24 * (24 + 5 + 24 + 3) * (layer.index + 1)


def test_a_prefill_can_end_early():
    model, ids, calls = decoder(), prompt(), []
    for i, block in enumerate(model.model.layers):
        block.self_attn.q_proj.register_forward_hook(lambda *_, i=i: calls.append(i))
    whole, part = prefill(model, ids), prefill(model, ids, until=1)
    assert calls == [0, 1, 2, 0, 1] and len(part.layers) == 2
    assert all(torch.equal(a.keys, b.keys) and torch.equal(a.queries, b.queries) for a, b in zip(part.layers, whole.layers, strict=False))
    with KeyNorm(0.5)(model):  # a prefill inside a block leaves the block's method at work
        prefill(model, ids)
        cache = DynamicCache()
        with torch.no_grad():
            model(ids, past_key_values=cache)
    assert len(kept(cache, 0)[0][0]) == 12
    with pytest.raises(ValueError, match="ended after 2 of 3 layers"):
        decode(model, part, 1)
    with pytest.raises(ValueError, match="until: a layer from 0 to 2"):
        prefill(model, ids, until=3)


@dataclass(frozen=True)
class Relay(Press):
    """Layers above the first keep what the first one scored, but never the token ``dropped``."""

    ratio: float = 0.5
    dropped: int = 7

    def scores(self, layer):
        if layer.index == 0:
            assert not layer.notes
            layer.notes["scores"] = torch.rand(layer.keys.shape[:3], generator=torch.Generator().manual_seed(1))
        return layer.notes["scores"].masked_fill((layer.ids == self.dropped)[:, None], -1)


def test_layers_of_one_pass_share_notes_and_know_the_tokens():
    model, ids = decoder(), prompt()
    ids[:, [3, 9]] = 7
    for source in (ids, prefill(model, ids)):
        cache = decode(model, source, 1, Relay()).cache
        for b in range(2):
            for h in range(2):
                assert torch.equal(kept(cache, 0)[b][h], kept(cache, 2)[b][h]) and not {3, 9} & set(kept(cache, 0)[b][h].tolist())
    embeddings = model.get_input_embeddings()(ids)
    with pytest.raises(TypeError), Relay()(model):  # ids are None then
        model(inputs_embeds=embeddings, use_cache=True)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with Relay()(model) as run:
        generate(model, ids, 1, attention_mask=mask)
        assert [len(head) for head in kept(run.cache, 1)[1]] == [10, 10]
        generate(model, ids, 1)  # notes of the pass before are gone


def test_a_mask_of_ones_own_is_not_taken_for_padding():
    """The newest query of a sparse prefill may skip tokens that others look at."""
    model, ids = decoder(), prompt()
    sparse = torch.ones(24, 24, dtype=torch.bool).tril()
    sparse[-1, 5:20] = False
    with KeyNorm(0.5)(model) as run, torch.no_grad():
        model(ids, attention_mask=sparse.expand(2, 1, 24, 24), use_cache=True)
    assert all(len(head) == 12 for head in kept(run.cache, 0)[0]) and any(5 <= place < 20 for head in kept(run.cache, 0)[0] for place in head)


def test_keys_before_rope_are_the_projections():
    model, ids = decoder("qwen2"), prompt()
    inputs = {}
    for module in model.model.layers:
        module.self_attn.k_proj.register_forward_hook(lambda m, _, out: inputs.setdefault(m, out))
    for layer, module in zip(prefill(model, ids).layers, model.model.layers, strict=True):
        assert torch.allclose(layer.keys_before_rope(), inputs[module.self_attn.k_proj].unflatten(-1, (2, 8)).transpose(1, 2), atol=1e-5)
    with pytest.raises(ValueError, match="keys_before_rope: layer 0"):
        prefill(decoder("gpt2"), ids).layers[0].keys_before_rope()


def state_of(model):
    return model.config._attn_implementation, [len(m._forward_pre_hooks) for m in model.modules()], [sorted(m.__dict__) for m in model.modules()]


@dataclass(frozen=True)
class Broken(Press):
    where: str = "scores"
    ratio: float = 0.5

    def scores(self, layer):
        if layer.index == 1:
            raise RuntimeError("on purpose")
        return layer.keys[..., 0]


def test_the_model_is_afterwards_as_it_was():
    model, ids = decoder(), prompt()
    before, weights, plain = state_of(model), copy.deepcopy(model.state_dict()), generate(model, ids)
    for methods in ([SnapKV(0.5, window=4)], [Share({2: 1}), Quantized(4)], [Broken()]):
        try:
            decode(model, ids, 2, methods)
        except RuntimeError as error:
            assert str(error) == "on purpose"
        assert state_of(model) == before
    with pytest.raises(RuntimeError, match="on purpose"), Full()(model), Broken()(model):
        generate(model, ids)
    assert state_of(model) == before and torch.equal(generate(model, ids), plain)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    with Full()(model):
        with RandomTokens(0.9)(model):
            assert not torch.equal(generate(model, ids), plain)
        assert torch.equal(generate(model, ids), plain)


def test_a_prefill_that_failed_halfway_leaves_nothing_behind():
    model, ids = decoder(), prompt()
    method = PyramidKV(0.5, window=4)  # which waits for all layers, and counts them
    expected = decode(model, ids, 3, method).logits
    with method(model):
        hook = model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(ids, use_cache=True)
        hook.remove()
        assert torch.equal(decode(model, ids, 3).logits, expected)


def test_two_models_do_not_mix():
    a, b, ids = decoder(), decoder(seed=1), prompt()
    plain = generate(b, ids)
    with RandomTokens(0.9)(a):
        assert torch.equal(generate(b, ids), plain)


@pytest.mark.parametrize("methods", [(KeyNorm(0.5),), (StreamingLLM(0.5), KIVI(4)), (Ragged(),), (Share({1: 0}),), (HeavyRecent(4, 4),)],
                         ids=["dense", "packed", "ragged", "shared", "with state"])
def test_files_hold_the_cache_bit_for_bit(methods, tmp_path):
    model, ids = decoder(), prompt()
    cache = compressed(model, ids, *methods)
    size = save(cache, tmp_path / "kv.wb")
    back = load(tmp_path / "kv.wb")
    assert nbytes(back) == nbytes(cache) and nbytes(cache) < size == (tmp_path / "kv.wb").stat().st_size < nbytes(cache) + 6000
    with torch.no_grad(), reading(model):
        assert torch.equal(model(ids[:, :3], past_key_values=back).logits, model(ids[:, :3], past_key_values=cache).logits)


def test_damaged_files_are_refused(tmp_path):
    cache = compressed(decoder(), prompt(), Quantized(4))
    path = tmp_path / "kv.wb"
    save(cache, path)
    data = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(data), (40,), generator=generator).tolist():
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x20]) + data[place + 1:])
        with pytest.raises(ArtifactError):
            load(path)
    for end in (0, 7, 30, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(ArtifactError):
            load(path)
    path.write_bytes(data)
    file = artifact.read(path)
    file.meta["layers"][0]["held"][0]["class"] = "json:JSONDecoder"
    artifact.save(path, file.tensors, file.meta)
    with pytest.raises(ArtifactError, match="blocks of 'json' are not known"):
        load(path)
    artifact.save(path, {}, {"kind": "kv cache", "layers": [{"seen": 3, "held": []}]})
    with pytest.raises(ArtifactError, match="malformed cache"):
        load(path)
    with pytest.raises(ValueError, match="layer 0 is a DynamicLayer"):
        past = DynamicCache()
        decoder()(prompt(), past_key_values=past)
        save(past, path)


def test_a_compressed_cache_outside_a_block_is_refused_not_misread():
    model, ids = decoder(), prompt()
    cache = compressed(model, ids, KeyNorm(0.5))
    with pytest.raises(ValueError, match=r"reading\(model\)"):
        model(ids[:, :2], past_key_values=cache)
    packed = compressed(model, ids, Quantized(8))  # nothing was evicted: any model reads it
    model(ids[:, :2], past_key_values=packed)


def test_what_was_there_before_the_block_is_left_alone():
    model, ids = decoder(), prompt()
    past = DynamicCache()
    with torch.no_grad():
        model(ids, past_key_values=past)
        expected = model(torch.cat([ids, ids[:, :3]], 1)).logits[:, -3:]
        with RandomTokens(0.9)(model):
            assert torch.allclose(model(ids[:, :3], past_key_values=past).logits, expected, atol=1e-5)


def test_gradients_flow_through_what_is_kept():
    model, ids = decoder(), prompt()
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    cache = DynamicCache()
    with StreamingLLM(0.5)(model):
        model(inputs_embeds=embedded, past_key_values=cache)
        model(ids[:, :2], past_key_values=cache).logits[:, -1].logsumexp(-1).sum().backward()
    assert embedded.grad[:, :4].abs().sum() > 0 and embedded.grad.isfinite().all()


def test_beams_reorder_a_dense_cache():
    model, ids = decoder(), prompt()
    plain = model.generate(ids, max_new_tokens=6, num_beams=3, do_sample=False, pad_token_id=0)
    with SnapKV(0, window=4)(model):
        assert torch.equal(model.generate(ids, max_new_tokens=6, num_beams=3, do_sample=False, pad_token_id=0), plain)
    with KeyNorm(0.5)(model):
        assert model.generate(ids, max_new_tokens=6, num_beams=3, do_sample=False, pad_token_id=0).shape == plain.shape
    with pytest.raises(ValueError, match="beam search"), Quantized(8)(model):
        model.generate(ids, max_new_tokens=6, num_beams=3, do_sample=False, pad_token_id=0)


def test_protect_ranks_sinks_then_the_newest():
    scores = torch.tensor([[0.3, 5.0, 0.1, 9.0, 0.2, 0.4]])
    assert protect(scores, first=1, last=2).argsort(descending=True)[0].tolist() == [0, 5, 4, 3, 1, 2]


@dataclass(frozen=True)
class Wrong(Press):
    kind: str
    ratio: float = 0.5

    def scores(self, layer):
        return layer.keys[..., 0, 0] if self.kind == "shape" else layer.keys[..., 0] * torch.nan if self.kind == "nan" else layer.keys[..., 0]

    def budgets(self, layers):
        return {"few": [3], "zero": [0] * 3, "many": [99] * 3}.get(self.kind, [3] * 3)


@pytest.mark.parametrize("kind, message", [("shape", r"Wrong.scores: .*\(2, 2, 24\).*found \(2, 2\)"), ("nan", "NaN"),
                                           ("few", "one budget for each of 3 layers"),
                                           ("zero", "layer 0 can keep 1 to 24"), ("many", "found 99")])
def test_what_a_method_answers_is_checked(kind, message):
    with pytest.raises(ValueError, match=message):
        decode(decoder(), prompt(), 1, Wrong(kind))


@pytest.mark.parametrize("ratio", [1, 1.5, -0.1, "half", float("nan"), True])
def test_ratios_out_of_range(ratio):
    with pytest.raises(ValueError, match=r"ratio: .*\[0, 1\)"):
        SnapKV(ratio)


def test_models_that_do_not_fit_are_refused_by_name():
    tiny = {"vocab_size": 20, "num_hidden_layers": 1}
    bert = BertLMHeadModel(BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, **tiny))
    t5 = T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=20))
    for model, message in ((bert, "BertLMHeadModel is not a decoder"), (t5, "T5ForConditionalGeneration is not a decoder")):
        with pytest.raises(ValueError, match=f"model: {message}"), Full()(model):
            pass
    with pytest.raises(TypeError, match="model: a Hugging Face PreTrainedModel is needed, found Linear"), Full()(nn.Linear(2, 2)):
        pass


def test_wrong_arguments_are_named():
    model, ids = decoder(), prompt()
    for call, message in ((lambda: decode(model, ids, 0), "steps: at least 1"), (lambda: decode(model, ids[:, :1], 1), "ids: .*n ≥ 2"),
                          (lambda: decode(model, ids.float(), 1), "ids: token ids"), (lambda: decode(model, ids, 200), "steps: .*128 positions"),
                          (lambda: decode(model, ids, 2, follow=ids), "follow: tokens of shape"),
                          (lambda: decode(model, ids, 2, SnapKV(0.5, window=32)), "window: .*found 24"),
                          (lambda: decode(model, ids, 2, (SnapKV(0.5), H2O(0.5))), "SnapKV and H2O both have `scores`"),
                          (lambda: decode(model, ids, 2, (HeavyRecent(4, 4), Quantized(4))), "`step`"),
                          (lambda: decode(model, ids, 2, Share({0: 1})), "layer_map: .*0 → 1"),
                          (lambda: decode(model, ids, 2, Share({2: 1, 1: 0})), "layer_map: .*2 → 1"),
                          (lambda: decode(model, prefill(model, ids), 2, Share({2: 1})), "prompt: .*token ids")):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="past_key_values: .*found StaticLayer"), Full()(model):
        model(ids, past_key_values=StaticCache(config=model.config, max_cache_len=40))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with pytest.raises(ValueError, match="attention_mask: SinkWindow"), SinkWindow(8)(model):
        generate(model, ids, attention_mask=mask)


def test_a_method_may_bring_a_block_of_its_own():
    """`decode` enters what the method itself gives for a model."""
    entered = []

    class Own(Press):
        def __call__(self, model):
            entered.append(model)
            return super().__call__(model)

    model = decoder()
    decode(model, prompt(), 2, Own())
    assert entered == [model]


@pytest.mark.parametrize("act", [lambda model, ids: decode(model, ids, 1), lambda model, ids: prefill(model, ids)], ids=["decode", "prefill"])
def test_what_is_no_decoder_is_named_before_anything_else(act):
    with pytest.raises(TypeError, match="PreTrainedModel is needed, found Linear"):
        act(nn.Linear(2, 2), prompt())
