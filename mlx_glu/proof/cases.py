"""What one check of a kernel is: formats, sizes and options, with a readable id."""

from __future__ import annotations

from dataclasses import dataclass

from ..dispatch import MAX_M
from ..packing import Layout, Order
from ..quantization import DENSE, MODES, Quantization
from ..variants import VARIANTS, Variant

#: Packed formats by their short name.
FORMATS = {
    q.name: q
    for mode, known in MODES.items()
    for bits in known.bits
    for size in known.group_sizes
    for q in (Quantization(size, bits, mode),)
}
POINTWISE = tuple(v.name for v in VARIANTS.values() if v.pointwise)
DTYPES = ("float32", "float16", "bfloat16")
#: Sizes: M rows of x, N rows and K columns of a weight.
MS = tuple(range(1, MAX_M + 1))
NS = (1, 31, 64, 515)
# The corners, and what divides by 128 and what does not.
KS = (64, 128, 192, 256, 320, 512, 576, 640, 896, 1152, 1536, 2048, 2304, 2560, 2880)
#: Below, nvfp4 alone: its groups are of 16.
NVFP4_KS = (48, 80)
#: No group holds floats to a multiple; 65 and 1151 are read one by one.
DENSE_KS = (65, 64, 100, 1151, *KS[1:])
#: Rows of what is elementwise; beyond one threadgroup with 515 columns.
MUL_MS = (1, 2, 3, 5, 33)
BIASES = ("", "gate_bias", "up_bias", "biases")
NORMS = ("", "norm", "gemma")
#: Where gate and up lie, for what is elementwise: order and layout of one array.
LAYOUTS: dict[str, tuple[Order, Layout] | None] = {
    "separate": None,
    "concat": ("gate_first", "concat"),
    "interleave": ("gate_first", "interleave"),
    "concat_value_first": ("value_first", "concat"),
    "interleave_value_first": ("value_first", "interleave"),
}
#: How the simulator may differ from its defaults; a GPU ignores it.
VARIATIONS: tuple[tuple[str, object], ...] = (
    ("lane_order", "reverse"),
    ("lane_order", "permuted"),
    ("reduce_order", "sequential"),
    ("reduce_order", "reversed"),
    ("flush_denormals", True),
    ("contract", "off"),
    ("contract", "fast"),
)


@dataclass(frozen=True)
class Case:
    """One check.

    Attributes:
        kernel: name of the file in ``metal/``.
        variant: key of VARIANTS, or one with other parameters; "" for none.
        dtype: of x, of the result and of a dense weight.
        M: rows of x.
        N: columns of the result.
        K: columns of x; 0 where there is no sum.
        weight: format of the gate's weight, or of the only one: a key of FORMATS or
            "dense"; "" where there is none.
        up: format of the other weight.
        biases: one of BIASES; the only weight's is "gate_bias".
        norm: one of NORMS.
        residual: whether one is added.
        layout: key of LAYOUTS for what is elementwise, else "".
        strided: activations with gaps between their elements.
        parameters: dtype of scales, biases and norm; "" for that of x.
        option: one of VARIATIONS, or None.
    """

    kernel: str
    variant: str | Variant = ""
    dtype: str = "float32"
    M: int = 1
    N: int = 1
    K: int = 0
    weight: str = ""
    up: str = ""
    biases: str = ""
    norm: str = ""
    residual: bool = False
    layout: str = ""
    strided: bool = False
    parameters: str = ""
    option: tuple[str, object] | None = None

    @property
    def id(self) -> str:
        """All that is not a default, for instance "glu_qmv-swiglu-float16-1x31x64"."""
        sizes = (self.M, self.N, self.K) if self.K else (self.M, self.N)
        parts = [
            *(self.kernel, str(self.variant), self.dtype, "x".join(map(str, sizes))),
            *(self.weight, self.up, self.biases, self.norm),
            "residual" if self.residual else "",
            self.layout,
            "strided" if self.strided else "",
            f"{self.parameters}_parameters" if self.parameters else "",
            "_".join(map(str, self.option or ())),
        ]
        return "-".join(part for part in parts if part)

    @property
    def possible(self) -> bool:
        """Whether groups divide K, and its kernel and id are its own."""
        weights = self.weight, self.up
        packed = [FORMATS[name] for name in weights if name in FORMATS]
        whole = all(self.K % quantization.group_size == 0 for quantization in packed)
        own = self.kernel != "glu_qmv" or weights != (DENSE, DENSE)
        return whole and own and self.parameters != self.dtype
