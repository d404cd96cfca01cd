"""The classic cache methods: their scores against naive loops, planted needles, error bounds and packed bytes."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from sequences import decoder, prompt

from workbench.contracts.kv.layer import Layer
from workbench.contracts.sequence import decode, kept, nbytes, prefill
from workbench.core import registry
from workbench.lessons import lesson
from workbench.papers.context.classics import H2O, HeavyRecent, KeyNorm, PyramidKV, RandomTokens, SinkWindow, SnapKV, StreamingLLM

B, HEADS, KV, N, D = 2, 4, 2, 20, 8


def layer(seed=0, n=N, **changed):
    make = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(B, KV, n, D, generator=make), torch.randn(B, KV, n, D, generator=make)
    queries = 2 * torch.randn(B, HEADS, n, D, generator=make)
    return replace(Layer(0, 1, keys, values, queries, None, D ** -0.5), **changed)


def naive(of):
    """A[b][h][i][j] by loops."""
    rows = torch.zeros(B, HEADS, N, N)
    for b in range(B):
        for h in range(HEADS):
            for i in range(N):
                logits = [float(of.queries[b, h, i] @ of.keys[b, h // 2, j]) * of.scaling for j in range(i + 1)]
                peak = max(logits)
                total = sum(math.exp(x - peak) for x in logits)
                for j, x in enumerate(logits):
                    rows[b, h, i, j] = math.exp(x - peak) / total
    return rows


def best(scores, k):
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :k].sort(-1).values


def test_h2o_is_the_accumulated_attention_of_a_loop():
    of = layer()
    attention = naive(of)
    for b in range(B):
        for h in range(KV):
            mass = [sum(float(attention[b, q, i, j]) for q in (2 * h, 2 * h + 1) for i in range(N)) / 2 for j in range(N)]
            heavy = sorted(range(N - 5), key=lambda j: -mass[j])[:5]  # 10 stay, half of them the newest
            assert sorted(heavy) + list(range(N - 5, N)) == best(H2O(0.5).scores(of), 10)[b, h].tolist()
            assert torch.allclose(of.per_kv_head(of.received())[b, h], torch.tensor(mass), atol=1e-5)


def test_snapkv_is_the_pooled_attention_of_the_window_of_a_loop():
    of, window, kernel = layer(1), 4, 3
    attention = naive(of)
    scores = SnapKV(0.5, window, kernel).scores(of)
    for b in range(B):
        for h in range(KV):
            raw = [sum(float(attention[b, q, i, j]) for q in (2 * h, 2 * h + 1) for i in range(N - window, N)) / (2 * window) for j in range(N - window)]
            pooled = [sum(raw[max(0, j - 1):j + 2]) / kernel for j in range(N - window)]
            assert torch.allclose(scores[b, h, :-window], torch.tensor(pooled), atol=1e-6)
            assert scores[b, h, -window:].min() > max(pooled)
    assert of.tally["attention entries"] == B * HEADS * window * N


@pytest.mark.parametrize("ratio, expected", [(0.5, [0, 1, 2, 3, *range(14, 20)]), (0.75, [0, 1, 2, 3, 19]), (0.9, [0, 1])])
def test_streaming_llm_keeps_sinks_and_the_newest(ratio, expected):
    assert best(StreamingLLM(ratio).scores(layer()), round(N * (1 - ratio)))[0, 0].tolist() == expected


def test_key_norm_keeps_small_keys():
    of = layer()
    of.keys[1, 0, [3, 11]] *= 0.01
    assert best(KeyNorm(0.9).scores(of), 2)[1, 0].tolist() == [3, 11]


def test_random_tokens_differ_by_layer_head_and_seed_and_repeat():
    draws = [RandomTokens(seed=s).scores(layer(index=i)) for s, i in ((0, 0), (0, 1), (1, 0))]
    assert torch.equal(draws[0], RandomTokens(seed=0).scores(layer(index=0)))
    assert len({tuple(head.argsort().tolist()) for draw in draws for row in draw for head in row}) == 3 * B * KV


def test_a_planted_needle_is_kept():
    """One token in the middle whose key answers the last queries: SnapKV, with its neighbours, and H2O find it; sinks and windows do not."""
    of = layer(2, n=40)
    of.queries[:, :, -4:] = 3.0
    of.keys[:, :, 17] = 1.5
    for method, found in ((SnapKV(0.75, 4, 3), True), (H2O(0.75), True), (StreamingLLM(0.75), False)):
        assert ((best(method.scores(of), 10) == 17).any(-1)).all() == found
    assert all({16, 17, 18} <= set(head.tolist()) for row in best(SnapKV(0.75, 4, 3).scores(of), 10) for head in row)


def test_an_early_question_is_outside_snapkvs_window():
    of = layer(2, n=40)
    of.queries[:, :, 20:24] = 3.0  # the question stands in the middle, and the last queries look elsewhere
    of.keys[:, :, 17] = 1.5
    of.queries[:, :, -4:] = -3.0
    assert not (best(SnapKV(0.75, 4, 1).scores(of), 10) == 17).any()


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8, 0.95])
def test_pyramid_budgets_fall_and_add_up(ratio):
    layers = [layer(index=i, layers=6, n=100) for i in range(6)]
    budgets = PyramidKV(ratio).budgets(layers)
    assert sum(budgets) == 6 * round(100 * (1 - ratio)) and max(budgets) <= 100
    assert all(a >= b - 1 for a, b in pairwise(budgets)) and budgets[0] > budgets[-1]
    assert PyramidKV(ratio).budgets(layers[:1]) == [round(100 * (1 - ratio))]


def test_sinks_and_a_window_stay_constant_while_decoding():
    model, ids = decoder(), prompt()
    out = decode(model, ids, 20, SinkWindow(window=6, sinks=2))
    assert [head.tolist() for i in range(3) for head in kept(out.cache, i)[0]] == [[0, 1, *range(37, 43)]] * 6
    assert nbytes(out.cache) == 3 * (2 * 2 * 2 * 8 * 8 * 4 + 2 * 8 * 4)


def test_heavy_recent_is_a_greedy_loop():
    """Attention accumulated token by token over what is still there, against a loop over the model's own rows."""
    model, ids, heavy, recent, n, steps = decoder(num_hidden_layers=1, initializer_range=0.8), prompt(1, 8), 3, 3, 8, 40
    out = decode(model, ids, steps, HeavyRecent(heavy, recent))
    whole = prefill(model, torch.cat([ids, out.tokens[:, :-1]], 1)).layers[0]  # in an only layer, rows do not depend on what was evicted before
    logits = (whole.queries.view(1, 2, 2, -1, 8) @ whole.keys[:, :, None].transpose(3, 4) * whole.scaling)[0]  # (kv_heads, 2, q, n)
    evicted = set()
    for h in range(2):
        mass = dict.fromkeys(range(n - 1 + steps), 0.0)

        def add(i, live, h=h, mass=mass):
            for j, a in zip(live, logits[h, :, i, live].softmax(-1).mean(0).tolist(), strict=True):
                mass[j] += a

        for i in range(n):
            add(i, list(range(i + 1)))
        live = sorted(sorted(range(n - recent), key=lambda j: -mass[j])[:heavy]) + list(range(n - recent, n - 1))
        mass[n - 1] = 0.0  # the last prompt token is decoded again
        for i in range(n - 1, n - 1 + steps):
            live.append(i)
            add(i, live)
            if len(live) > heavy + recent:
                lightest = min(live[:-recent], key=lambda j: mass[j])
                evicted.add(lightest)
                live.remove(lightest)
        assert kept(out.cache, 0)[0][h].tolist() == live
    assert min(evicted) < n and len(evicted) > 30


@pytest.mark.parametrize("make, message", [(lambda: SnapKV(kernel=4), "odd kernel"), (lambda: SnapKV(window=0), "window")])
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_classic_is_in_the_catalogue_with_its_lesson():
    entries = [entry for entry in registry.catalogue() if entry.kind == "classic" and entry.family == "context"]
    assert {"snapkv", "h2o", "streaming-llm", "key-norm", "random-tokens", "full-cache", "kv-quantization", "kivi"} <= {entry.name for entry in entries}
    assert all(len(lesson(entry.name)) > 150 for entry in entries)
    assert len({entry.name for entry in registry.catalogue() if entry.kind == "classic"}) == len([e for e in registry.catalogue() if e.kind == "classic"])
