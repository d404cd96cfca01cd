r"""# iFlow — a flow that forgets nothing

**iFlow: Numerically Invertible Flows for Efficient Lossless Compression via a Uniform Coder** (Zhang et al., NeurIPS 2021).

A normalising flow turns pictures into noise by invertible steps and knows the exact probability of every picture, so it should be a perfect lossless
codec. It is not: multiply by 0.3 and round, and the way back is a guess. iFlow keeps what rounding throws away. Every division leaves a remainder;
the remainder is *pushed to the bit stream*, and the fractional digits that a multiplication makes up are *popped from it*.

```text
 pixels ─ +u ──► squeeze ──► couplings ──► 1×1 conv ──► F(z) ──► uniform on 2^16
           ▲                  ▲ │  R,S      ▲ │          ▲ │        │
        pop h bits       pop R │ push S  pop│ │push   pop│ │push    │ push
           │                  │ ▼           │ ▼          │ ▼        ▼
 stream ══ c·R + s ═══════════════ one stack of uniform symbols (UBCS) ═════════► bytes
```

**Modular scale transform.** To scale the integer $\bar x$ by $R/S$, pop $r_d\sim U(0,R)$ and write

$$y=R\bar x+r_d,\qquad \bar z=\lfloor y/S\rfloor,\qquad r_e=y \bmod S \;\to\; \text{push as } U(0,S).$$

$(\bar x, r_d)\leftrightarrow y\leftrightarrow(\bar z,r_e)$ are bijections, so nothing is lost. The price is $\log_2 S-\log_2 R=-\log_2|\mathrm dz/\mathrm dx|$
bits: *exactly* the Jacobian term of the flow's likelihood. A monotone curve $F$ is the same with other $R,S$ between each two knots; a $1\times1$
convolution $PL\Lambda U$ is integer additions and one such scaling.

**Uniform coder.** All symbols are now uniform, and no frequencies are needed: pushing $s$ out of $R$ is $c\leftarrow cR+s$, one multiplication.

**What to look for.** The coded size stays within a fraction of a percent of the float flow's likelihood. Pixels need $h$ fractional bits, popped before
anything was pushed: the first picture of a chain has to *borrow* them. In a long chain that is nothing, for one picture it doubles the file. Starting
the chain with few fractional bits (`ramp`) cuts the debt to a tenth.

Reconstructed (the abstract gives no constants): $M=16$, $K=32$ of the coder, knots of $F$, the ramp, the integer network and the flow itself.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping

import numpy as np

from ...benches import photos
from ...contracts import data
from ...contracts.data import StreamError
from ...core.claims import better, bound
from ...core.study import Ablation, Check, Claim, Contender, Exercise, Knob, Outcome, Part, Study
from .flow_codec import IFlow
from .integer_flow import Convolution, Coupling, Dequantise, IntegerNet, Modular, Remap, Split, to_invertible
from .rivals import RANS, FloatNet, Rounded, WholeBits, one_logistic, race, unmixed, unpredicted
from .ubcs import UBCS

__all__ = ["STUDY", "UBCS", "IFlow", "to_invertible"]


class Shown(IFlow):
    """An `IFlow` that carries the exhibit of its picture."""

    @property
    def exhibits(self) -> dict[str, np.ndarray]:
        return {"stack": np.rint(100 * self.trace(photos.patches("validation")[:5])).astype(np.int16)}


def iflow(h, C, chain, levels, replica=0) -> IFlow:
    return Shown(replica=replica, h=int(h), C=int(C), chain=int(chain), levels=int(levels))


def variant(role: str = "control", note: str = "", replicas: int | None = None, **fields) -> Contender:
    """iFlow at its defaults but for ``fields``."""
    return Contender(lambda replica=0: IFlow(replica=replica, **fields), role, subject=IFlow(**fields) if role == "rival" else None, note=note,
                     replicas=replicas, evidence="checkpoint")


# --- checks ---------------------------------------------------------------------------------------------------------------------------------------


def _all_layers(codec: IFlow):
    for layer in codec.layers():
        yield from getattr(layer, "layers", ())
        yield layer


def layers_invert(codec: IFlow) -> Outcome:
    """Each layer on random and extreme integers: the input comes back, and the stream is what it was, bit for bit."""
    rng, wrong, total = np.random.default_rng(3), 0, 0
    for layer in _all_layers(codec):
        channels = {Dequantise: 3, Coupling: 12, Convolution: 9}.get(type(layer), 12)
        channels = len(layer.target) if isinstance(layer, Remap) else layer.keep + layer.channels if isinstance(layer, Split) else channels
        channels = len(layer.shift) if hasattr(layer, "shift") else channels
        high = 256 if isinstance(layer, Dequantise) else 1 << codec.h + 9
        x = rng.integers(0 if high == 256 else -high, high, (2, 4, 4, channels))
        x[1] = rng.choice([x.min(), 0, high - 1], x[1].shape)
        stream = codec.coder(2, endless=True)
        stream.push_many(rng.integers(0, 1000, 500), [1000])
        before = stream.copy()
        z = layer.forward(stream, x)
        try:
            wrong += int((layer.inverse(stream, z) != x).sum())
            wrong += int((stream.state != before.state).any() or stream.net_bits != before.net_bits)
        except StreamError:
            wrong += x.size
        total += x.size
    return Outcome(wrong == 0, f"{wrong} of {total} values differ", "0")


def scale_costs_jacobian(codec: IFlow) -> Outcome:
    """The mean cost of a scaling over 100,000 values is log2 S − log2 R."""
    rng, worst = np.random.default_rng(1), 0.0
    for numerator, divisor in ((4096, 1237), (4096, 65536), (300, 299), (4096, 256)):
        stream = codec.coder(1, endless=True)
        before, n = stream.net_bits, 100_000
        x = rng.integers(-2**20, 2**20, n)
        codec.scaling.forward(stream, x, np.full(n, numerator), np.full(n, divisor))
        worst = max(worst, abs((stream.net_bits - before) / n - math.log2(divisor / numerator)))
    return Outcome(worst < 1e-3, worst, 1e-3)


def coder_exact(codec: IFlow) -> Outcome:
    """200,000 symbols of random radices up to 2^16 through one lane and back; the stream's length against Σ log2 R."""
    rng = np.random.default_rng(2)
    radices = rng.integers(1, 65537, 200_000)
    symbols = rng.integers(0, radices)
    stack = codec.coder()
    stack.push_many(symbols, radices)
    stream = stack.to_bytes()
    overhead = 8 * len(stream) - float(np.log2(radices).sum())
    stack = codec.coder.from_bytes(stream)
    same = bool((stack.pop_many(radices) == symbols).all()) and stack.spent(0)
    return Outcome(same and overhead <= 64, f"{'exact' if same else 'wrong'}, {overhead:.0f} bits more than Σ log2 R", "exact, ≤ 64 bits")


def network_exact(codec: IFlow) -> Outcome:
    """Shifts and scales equal those of 64-bit integer arithmetic, whatever the order of the sums: another CPU cannot disagree."""
    rng, wrong = np.random.default_rng(4), 0
    for layer in codec.layers():
        if isinstance(layer, Coupling):
            pixels = rng.integers(-255, 256, (2, 6, 6, layer.given))
            net = layer.net if isinstance(layer.net, IntegerNet) else IntegerNet(layer.net.net)
            wrong += sum(int((a != b).sum()) for a, b in zip(layer.net(pixels), net.in_integers(pixels)))
    return Outcome(wrong == 0, f"{wrong} outputs differ", "0")


SHAPES = ((0, 8, 8, 3), (1, 1, 1, 3), (2, 7, 5, 3), (1, 33, 9, 1), (1, 8, 16, 4), (3, 5))


def any_input(codec: IFlow) -> Outcome:
    """Random, black, white and checkered arrays of odd shapes, floats, plain bytes: all come back."""
    rng = np.random.default_rng(5)
    inputs = [np.linspace(0, 1, 99), b"", b"a", bytes(range(250)) * 16]
    for shape in SHAPES:
        checkered = np.indices(shape).sum(0) % 2 * 255
        inputs += [array.astype(np.uint8) for array in (rng.integers(0, 256, shape), np.zeros(shape), checkered)]
    wrong = 0
    for each in inputs:
        back = codec.decode(codec.encode(each))
        wrong += back != each if isinstance(each, bytes) else back.dtype != each.dtype or not np.array_equal(back, each)
        if isinstance(each, np.ndarray) and each.dtype == np.uint8 and each.size:       # the flow itself, where the frame would store
            wrong += not np.array_equal(codec.decompress(codec.compress(each), each.shape), each)
    return Outcome(wrong == 0, f"{wrong} of {len(inputs)} inputs differ", "0")


def reseal(stream: bytes, change) -> bytes:
    """A frame of one chunk whose payload went through ``change``, with checksums that are right: what reaches the inner decoder."""
    payload = data.unframe(stream)[4]
    head = stream[:len(stream) - len(payload) - 8]
    payload = change(bytearray(payload))
    head = head[:-8] + struct.pack("<Q", len(payload))
    return head + struct.pack("<II", zlib.crc32(head), zlib.crc32(payload)) + bytes(payload)


def damage_noticed(codec: IFlow) -> Outcome:
    """A valid stream decodes; no truncated, foreign, newer or bit-flipped one, with wrong or repaired checksum, decodes to other pixels."""
    rng, image = np.random.default_rng(6), np.ascontiguousarray(photos.patches("test")[:1, :16, :16])
    stream = codec.encode(image)
    if not np.array_equal(codec.decode(stream), image):
        return Outcome(False, "a valid stream does not decode", "it does")

    def flip(array: bytearray) -> bytearray:
        array[rng.integers(len(array))] ^= 1 << int(rng.integers(8))
        return array

    bad = [stream[:n] for n in rng.integers(0, len(stream), 20)] + [bytes(flip(bytearray(stream))) for _ in range(20)]
    if data.unframe(stream)[1] == codec.method:         # else the pixels are merely stored, and a repaired checksum makes others valid
        bad += [reseal(stream, flip) for _ in range(20)]
    bad += [b"", b"\x89PNG" + stream[4:], stream[:4] + b"\x09" + stream[5:], stream + b"\0"]
    missed = 0
    for each in bad:
        try:
            missed += not np.array_equal(codec.decode(each), image)       # a setting that this stream makes no use of may change
        except StreamError:
            pass
    return Outcome(missed == 0, f"{missed} of {len(bad)} decode to something else", "0")


# --- picture and exercise -------------------------------------------------------------------------------------------------------------------------


def stack_of_bits(point: dict, exhibits: Mapping[str, np.ndarray]):
    """How high the stack of bits stands after each layer, for the first five patches of a chain (bits per dimension of one patch)."""
    import plotly.graph_objects as go

    layout = {"height": 340, "margin": {"l": 10, "r": 10, "t": 36, "b": 36}, "xaxis": {},
              "yaxis": {"title": {"text": "bits on the stack per dimension"}, "automargin": True}}
    if "stack" not in exhibits:
        return go.Figure(layout={**layout, "title": {"text": "this codec has no stack of bits to watch"}})
    levels = exhibits["stack"] / 100
    splits = range(9, levels.shape[1], 8)       # after the noise: squeeze, six couplings and the pushed latents of each level
    layout["xaxis"] |= {"tickvals": [1, *splits], "ticktext": ["noise", *(f"level {i + 1}" for i in range(len(splits)))], "tickangle": 0}
    hues = ("#0077bb", "#00917c", "#b8720a", "#d55e00", "#aa4499")
    lines = []
    for link, row in enumerate(levels):
        begin = levels[link - 1, -1] if link else 0.0
        lines.append(go.Scatter(x=list(range(len(row) + 1)), y=[round(float(v), 2) for v in (begin, *row)], mode="lines", name=f"patch {link + 1}",
                                line={"shape": "hv", "color": hues[link % 5], "dash": ("solid", "dash", "dot", "dashdot", "longdash")[link % 5]},
                                hovertemplate="after layer %{x}: %{y} bits<extra></extra>"))
    return go.Figure(lines, layout={**layout, "title": {"text": f"{max(0.0, -levels.min()):.1f} bits borrowed; five patches leave {levels[-1, -1]:.1f}",
                                                        "font": {"size": 14}}})


STUB = '''def scale(x, R, S, pop, push):
    """x*R/S, rounded down. pop(R) gives an integer in 0 … R-1 from the stream, push(r, S) puts one in 0 … S-1 back."""
    return x * R // S       # where does the remainder go, and who fills the low digits?
'''
SOLUTION = '''def scale(x, R, S, pop, push):
    y = R * x + pop(R)
    z, r = divmod(y, S)
    push(r, S)
    return z
'''


def _check_exercise(namespace: dict) -> None:
    for x, numerator, divisor in ((1000, 3, 10), (-77, 5, 8), (12, 9, 4)):
        stack = UBCS(endless=True)
        stack.push_many([1, 2, 3], [5, 6, 7])
        before = stack.copy()
        z = namespace["scale"](x, numerator, divisor, stack.pop, stack.push)
        assert abs(z - x * numerator / divisor) <= max(1, numerator / divisor), f"{x}·{numerator}/{divisor} is about {x * numerator / divisor:g}, not {z}"
        y = divisor * z + stack.pop(divisor)
        stack.push(y % numerator, numerator)
        assert y // numerator == x, f"from z = {z} and the stream the decoder gets x = {y // numerator}, not {x}: push the remainder"
        assert (stack.state == before.state).all() and stack.net_bits == before.net_bits, "the decoder must find the stream as it was"


PROBE = race


# --- the study ------------------------------------------------------------------------------------------------------------------------------------

DEFAULT = {"h": 12}         # and the other knobs where they stand by default

STUDY = Study(
    paper="2111.00965",
    name="iflow",
    track=photos.BITS,
    method=IFlow(),
    knobs=(Knob("h", (1, 2, 3, 4, 6, 8, 10, 12, 14, 16), 12, label="fractional bits of a value"),
           Knob("C", (1, 2, 3, 4, 6, 8, 10, 12, 14, 16), 12, label="bits of the numerator R"),
           Knob("chain", (1, 2, 3, 4, 5, 6, 7, 10, 20), 20, label="links of the chain (20 patches)"),
           Knob("levels", (0, 1, 2, 3), 3, label="2×2 squeezes")),
    contenders={
        "iFlow": Contender(iflow, "paper", subject=IFlow(), evidence="checkpoint"),
        "rANS instead of UBCS": variant("rival", "the same flow, the other coder", coder=RANS),
        "PNG": Contender(lambda: photos.Pillow("PNG")),
        "WebP": Contender(lambda: photos.Pillow("WEBP"), note="its lossless mode"),
        "two fractional bits": variant(h=2),
        "numerators of two bits": variant(C=2),
        "no ramp": variant(ramp=False, note="every link borrows all h bits a value"),
    },
    ablations={
        "remainders dropped": Ablation("2 modular scale transform", variant(scaling=Rounded), IFlow(scaling=Rounded)),
        "no dequantisation bits": Ablation("1 fixed point", variant(noise=False, replicas=1)),
        "couplings predict nothing": Ablation("3 coupling", variant(alter=unpredicted, replicas=1)),
        "one logistic": Ablation("4 element-wise flow", variant(alter=one_logistic)),
        "convolution only permutes": Ablation("5 invertible 1×1 convolution", variant(alter=unmixed)),
        "no factor-out": Ablation("6 stack and prior", variant(levels=1, replicas=1)),
        "one link": Ablation("8 auxiliary bits", variant(chain=1, replicas=1)),
        "float network": Ablation("3 coupling", subject=IFlow(network=FloatNet)),
        "whole bits": Ablation("7 uniform coder", subject=IFlow(coder=WholeBits)),
    },
    checks=(
        Check("layers invert", "Every layer gives back random and extreme integers and leaves the stream as it was, bit for bit", layers_invert),
        Check("cost = Jacobian", "A modular scale transform costs log2 S − log2 R bits (mean of 100,000 values, within 0.001)", scale_costs_jacobian),
        Check("coder", "UBCS returns 200,000 symbols of random radices and needs at most 64 bits more than Σ log2 R", coder_exact),
        Check("exact network", "The networks' outputs are those of integer arithmetic", network_exact),
        Check("any input", "Odd shapes, extremes, one pixel, no pixel, floats and plain bytes come back", any_input),
        Check("damage", "Damaged, truncated, foreign and newer streams raise StreamError, checksums repaired or not", damage_noticed),
    ),
    claims=(
        Claim("near the likelihood", "All bytes but the borrowed ones exceed the float flow's likelihood by at most 1 %", bound("gap", at_most=1.0, **DEFAULT),
              paper="coding cost equals the flow's likelihood up to the precision of the integers (section 3)"),
        Claim("finer values come nearer", "With 12 fractional bits the excess is at least 0.2 points smaller than with 2",
              better("gap", "two fractional bits", by=0.2, **DEFAULT)),
        Claim("finer numerators come nearer", "With R = 2^12 the excess is at least 0.5 points smaller than with R = 2^2",
              better("gap", "numerators of two bits", by=0.5, **DEFAULT)),
        Claim("exact where floats are not", "Every patch returns bit for bit (with rounding instead of remainders, the ablation, none does)",
              bound("exact", at_least=100, **DEFAULT), paper="floating-point flows are not numerically invertible (introduction)"),
        Claim("beats PNG", "All bytes counted, at least 0.3 bits per dimension below PNG", better("bits_per_dim", "PNG", by=0.3, **DEFAULT)),
        Claim("beats WebP", "All bytes counted, below lossless WebP", better("bits_per_dim", "WebP", **DEFAULT),
              paper="state-of-the-art compression ratios (abstract)",
              reason="a flow of 137,000 weights trained for three minutes; it falls behind most on the smoothest photographs, where uniform "
                     "dequantisation costs most"),
        Claim("a uniform coder wastes nothing", "UBCS needs at most 0.5 % more bits than rANS for the same flow, borrowed ones apart",
              bound("net_bits_per_dim", at_most=1.005, relative_to="rANS instead of UBCS", **DEFAULT), paper="section 3.4"),
        Claim("chains pay the loan", "20 links borrow at most 0.1 bits per dimension in all", bound("auxiliary", at_most=0.1, **DEFAULT)),
        Claim("a ramp lowers the loan", "Starting with few fractional bits saves at least 0.3 bits per dimension of borrowed ones",
              better("auxiliary", "no ramp", by=0.3, **DEFAULT)),
        Claim("curves fit better", "Mixture curves are worth at least 0.1 bits per dimension over one logistic of equal mean and spread",
              better("net_bits_per_dim", "one logistic", by=0.1, **DEFAULT)),
        Claim("convolutions are needed", "Without its 1×1 convolutions the trained flow needs at least 0.01 bits per dimension more",
              better("net_bits_per_dim", "convolution only permutes", by=0.01, **DEFAULT)),
    ),
    parts={
        "1 fixed point": Part(Dequantise.forward, "layers invert", "no dequantisation bits"),
        "2 modular scale transform": Part(Modular.forward, "cost = Jacobian", "remainders dropped"),
        "3 coupling": Part(Coupling.forward, "exact network", "couplings predict nothing"),
        "4 element-wise flow": Part(Remap.forward, "layers invert", "one logistic", reconstructed=True),
        "5 invertible 1×1 convolution": Part(Convolution.forward, "layers invert", "convolution only permutes"),
        "6 stack and prior": Part(Split.forward, "near the likelihood", "no factor-out", reconstructed=True),
        "7 uniform coder": Part(UBCS.push_many, "coder", "whole bits", reconstructed=True),
        "8 auxiliary bits": Part(IFlow.auxiliary, "chains pay the loan", "one link"),
    },
    picture=stack_of_bits,
    exercise=Exercise("Scale an integer by R/S so that the decoder can undo it, using the bit stream.", STUB,
                      ["R·x has empty low digits: fill them with pop(R).", "Dividing by S leaves a remainder in 0 … S−1: push it.",
                       "The decoder pops the remainder, computes S·z + r, and divides by R."], _check_exercise, SOLUTION),
)
