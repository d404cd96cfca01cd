"""The quantised caches: codes really packed, errors within half a step, bytes by formula, the model's own type back."""

import pytest
import torch
from sequences import decoder, prompt

from workbench.contracts.sequence import decode, nbytes
from workbench.papers.context.classics import Full
from workbench.papers.context.quantized import KIVI, Quantized, dequantize, pack, quantize, unpack


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_really_packed(bits):
    codes = torch.randint(2 ** bits, (3, 5, 16), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (3, 5, 16 * bits // 8) and torch.equal(unpack(packed, bits), codes)
    assert pack(torch.tensor([[3, 10]], dtype=torch.uint8), 4).tolist() == [[3 + 16 * 10]]


@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("spread", [1e-4, 1.0, 1e4])
def test_errors_stay_within_half_a_step(bits, group, spread):
    x = spread * (torch.randn(2, 3, 21, 16, generator=torch.Generator().manual_seed(0)) + 5)
    codes, scale, zero = quantize(x, bits, group)
    step = scale.float().repeat_interleave(group, -2)[..., :21, :] if group else scale.float()
    error = (dequantize(codes, scale, zero, bits, group) - x).abs()
    assert (error <= step * 0.5001 + x.abs() * 1e-6).all() and error.max() > 0.2 * step.min()
    low, high = (x.amin(-1), x.amax(-1)) if not group else (x.amin(-2), x.amax(-2))
    assert step.max() <= (high - low).max() / (2 ** bits - 1) * 1.01 + 6 * spread * 2 ** -9 + 2 ** -23


def test_more_bits_err_less_and_kivi_survives_an_outlying_channel():
    x = torch.randn(1, 2, 64, 16, generator=torch.Generator().manual_seed(0))
    errors = [float((Quantized(bits).encode(x, x).read()[0] - x).norm() / x.norm()) for bits in (2, 4, 8)]
    assert errors[0] > 3 * errors[1] > 30 * errors[2] and errors[2] < 0.01
    x[..., 3] *= 50
    per_token, per_channel = ((method.encode(x, x).read()[0] - x)[..., [0, 1, 2, 4, 5]].norm() for method in (Quantized(4), KIVI(4)))
    assert per_token > 5 * per_channel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packed_bytes_by_formula_and_the_models_type_back(dtype):
    model, ids = decoder().to(dtype), prompt()
    for method, key_scales in ((Quantized(4), 24), (Quantized(8), 24), (KIVI(4, group=8), 3 * 8)):
        with method(model) as run, torch.no_grad():
            out = model(ids, use_cache=True)
        heads = 3 * 2 * 2
        assert out.past_key_values.get_seq_length() == 24 and run.cache is out.past_key_values
        assert nbytes(run.cache) == heads * (2 * 24 * 8 * method.bits // 8 + 2 * 2 * (key_scales + 24))
        assert run.cache.layers[0].read()[0].dtype == dtype


def test_eight_bits_decode_like_the_full_cache():
    model, ids = decoder(), prompt()
    full, eight, two = (decode(model, ids, 8, press) for press in (Full(), Quantized(8), Quantized(2)))
    near, far = ((out.logits[:, 0] - full.logits[:, 0]).abs().mean() for out in (eight, two))
    assert 0 < 10 * near < far


@pytest.mark.parametrize("make, message", [(lambda: Quantized(3), "bits: one of 2, 4, 8"), (lambda: Quantized(4, residual=0), "residual"),
                                           (lambda: quantize(torch.tensor([[1.0, torch.nan]]), 8), "NaN"),
                                           (lambda: quantize(torch.tensor([[1.0, 1e8]]), 8), "float16"),
                                           (lambda: Quantized(4).encode(*[torch.zeros(1, 1, 2, 3)] * 2), "3 channels do not fill whole bytes")])
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
