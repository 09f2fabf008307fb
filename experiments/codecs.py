"""What is known of each built-in codec: source, bytes, flags, error, which collectives carry it.

`python -m experiments.codecs` prints the table of `docs/compressors.md`, `archipelago list
compressors` the same as text. Bytes are those of a payload for a model of 10^9 parameters, flags
those that the codec declares, and a collective carries what it does not refuse. Formulas are
Python, of a tensor if a codec is `PerTensor` and of the whole row otherwise.

Legend: n values, k kept of each of u units of e values, i bytes or j bits of an index, an R x C
matrix of rank r, f = min(n, r (R + C)) values of its factors; of a vector R = 1, C = n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import OmegaConf

from experiments.cells import CONF
from experiments.table import linked, markdown_table, number, size, sourced
from sim.aggregation import Mean
from sim.payload import Compressor
from sim.reduction import CodedRing, Reducers
from sim.testing import LAYOUT
from sim.workload import one_billion

FLAGS = ("summable", "shared_support", "unbiased", "deterministic", "linear")
"""Of `sim.payload.Compressor`; the kit of `sim.testing` checks them."""


@dataclass(frozen=True)
class Facts:
    """A codec as `conf/compressor` has it.

    Args:
        name: what it is called.
        source: number at arXiv, or whose code.
        nbytes: of a payload.
        vectors: bytes of tensors of one axis, if another formula holds for them.
        contraction: delta in |x - C(x)|^2 <= (1 - delta) |x|^2, on average over draws, of what is
            encoded at once; "-" where no such bound is known.
        feedback: of the error: "inside" the codec, "wanted", "never", or by which algorithm.
        checked: golden files, or what else it is compared with.
    """

    name: str
    source: str
    nbytes: str
    vectors: str = ""
    contraction: str = "-"
    feedback: str = "-"
    checked: str = "-"


_TOP = "u * k * (4 + i)"
_SHORTEST = "4 * u * k + ceil(u * min(k * j, e)/8)"
_BOOK2 = "ceil(u * k * j/8) + ceil(u * k/4) + 20"
_BLOCK4 = "ceil(n/2) + 4 * ceil(n/256)"
_DEMO = "`demo_small_f64`, `demo_default_f32`, `demo_prime_wd_sched_f64`"
_CCLOCO = "`sparseloco_ccloco_f64`, `sparseloco_ccloco_q8_f32`"
_CODES = "`compressors_reference`"
FACTS: dict[str, Facts] = {
    "bf16": Facts("bfloat16", "-", "2 * n", "", "1 - 2**-16", "-", "torch"),
    "chunk_top_k": Facts(
        "top-k of blocks, 2 bits",
        "2508.15706",
        _BOOK2,
        feedback="by SparseLoCo",
        checked=_CODES,
    ),
    "dct_top_k": Facts(
        "DCT top-k", "2411.19870", _TOP, "", "k/e", "by DeMo", f"{_DEMO}; scipy's DCT"
    ),
    "dct_top_k_sign": Facts(
        "DCT top-k, signs", "Psyche", "u * k * i + ceil(u * k/8)", "", "-", "by DeMo", "bytes"
    ),
    "dense": Facts("float32", "-", "4 * n", "", "1", "-", "exact"),
    "ef_low_rank_int4": Facts(
        "low rank, int4", "2506.21263", _BLOCK4.replace("n", "f"), "4 * n", "-", "inside", "bytes"
    ),
    "ef_sign": Facts("sign", "1901.09847", "ceil(n/8) + 4", "", "1/n", "inside", "closed form"),
    "ef_stat2": Facts(
        "code book, 2 bits", "2505.23725", "ceil(n/4) + 20", "", "-", "inside", _CODES
    ),
    "ef_top_k": Facts("top-k", "1809.07599", _TOP, "", "k/e", "inside", "a sort"),
    "ef_top_k_stat2": Facts(
        "top-k of blocks, 2 bits", "2508.15706", _BOOK2, "", "-", "inside", _CODES
    ),
    "flat_top_k": Facts("top-k of pieces", "2508.15706", _SHORTEST, "", "k/e", "inside", "a sort"),
    "fp16": Facts("float16", "-", "2 * n", "", "-", "-", "torch"),
    "fp4": Facts("FP4, E3M0", "2501.18512", _BLOCK4, "", "0.8", "-", "nearest in logarithm"),
    "fp4_e2m1": Facts("FP4, E2M1", "-", _BLOCK4, "", "0.69", "-", "nearest code"),
    "fp8": Facts(
        "FP8, E4M3", "torchft", "R * (4 + 4 * ceil(C/4))", "", "0.99", "-", "nearest code"
    ),
    "fp8_e5m2": Facts(
        "FP8, E5M2", "torchft", "R * (4 + 4 * ceil(C/4))", "", "0.98", "-", "nearest code"
    ),
    "int4": Facts("int4", "-", _BLOCK4, "", "0.43", "wanted", "half a level"),
    "int8": Facts("int8", "-", "n + 4 * ceil(n/4096)", "", "0.94", "-", "half a level"),
    "int8_codebook": Facts(
        "code book, 8 bits",
        "2412.01152",
        "n + 1024",
        "",
        "-",
        "-",
        f"`int8_ring_prime_f32`, {_CODES}",
    ),
    "int8_tensor": Facts(
        "int8 of a tensor", "-", "n + 4", "", "1/(1 + n/64516)", "-", "half a level"
    ),
    "low_rank": Facts(
        "low rank", "1905.13727", "4 * f", "4 * n", "-", "inside", "truncated decomposition"
    ),
    "matrix_top_k": Facts("top-k", "1809.07599", _SHORTEST, "4 * n", "k/e", "inside", "a sort"),
    "natural": Facts(
        "natural compression", "1905.10988", "ceil(9 * n/8)", "", "7/8", "-", "both powers around"
    ),
    "none": Facts("as computed", "-", "4 * n", "", "1", "-", "exact"),
    "qsgd": Facts(
        "QSGD, 16 levels", "1610.02132", "ceil(6 * n/8) + 4 * ceil(n/512)", "", "-", "-", _CODES
    ),
    "qsgd_shrunk": Facts(
        "QSGD, divided",
        "1902.00340",
        "ceil(6 * n/8) + 4",
        "",
        "1/(1 + min(n/256, sqrt(n)/16))",
        "by CHOCO",
        _CODES,
    ),
    "quantile8": Facts("quantiles", "hivemind", "n + 1024", "", "-", "-", "numpy's quantiles"),
    "random_blocks": Facts(
        "random blocks", "-", "4 * k + 8", "", "-", "never", "the mean of draws"
    ),
    "random_k": Facts("random-k", "1809.07599", "4 * k + 8", "", "-", "never", "the mean of draws"),
    "row_top_k": Facts(
        "top-k of rows, 8 bits",
        "CCLoco",
        "u * k * (1 + i) + 1028",
        "",
        "-",
        "by SparseLoCo",
        _CCLOCO,
    ),
    "shared_mask": Facts(
        "SPARTA's mask", "stFPf3gzq1", "4 * k + 8", "", "k/n", "-", "`sparta_exogym`"
    ),
    "sign": Facts("sign", "1901.09847", "ceil(n/8) + 4", "", "1/n", "wanted", "closed form"),
    "sign_blocks": Facts(
        "sign", "1901.09847", "ceil(n/8) + 4 * ceil(n/4096)", "", "1/4096", "wanted", "closed form"
    ),
    "sign_only": Facts("bare sign", "1802.04434", "ceil(n/8)", "", "-", "-", "a vote in numpy"),
    "sign_tensor": Facts("sign", "1901.09847", "ceil(n/8) + 4", "", "1/n", "wanted", "closed form"),
    "stat2": Facts("code book, 2 bits", "2508.15706", "ceil(n/4) + 20", "", "-", "wanted", _CODES),
    "stat8": Facts("code book, 8 bits", "CCLoco", "n + 1028", "", "-", "-", _CODES),
    "terngrad": Facts("TernGrad", "1705.07878", "ceil(n/5) + 4", "", "-", "-", "shares of draws"),
    "threshold": Facts("threshold", "-", "4 + k * (4 + i)", "", "-", "wanted", "a loop"),
    "top_k": Facts("top-k", "1809.07599", _TOP, "", "k/e", "wanted", "`choco_sgd_ring_top`"),
}
"""By choice of `conf/compressor`."""


def choices() -> list[str]:
    """The codecs of `conf/compressor`."""
    return sorted(path.stem for path in Path(CONF, "compressor").glob("*.yaml"))


def codec(choice: str) -> Compressor:
    """The codec of a choice."""
    made = instantiate(OmegaConf.load(Path(CONF, "compressor", f"{choice}.yaml")))
    assert isinstance(made, Compressor)
    return made


def carriers(codec: Compressor) -> list[str]:
    """The collectives that do not refuse a codec; gossip and servers take what a gather takes."""
    stateless = codec.init(LAYOUT, 1) is None
    allowed = {
        "all-reduce": codec.summable,
        "coded ring": stateless and _accepts(CodedRing, codec),
        "reducers": _accepts(Reducers("butterfly").check, codec, Mean()),
    }
    return [*(name for name, carries in allowed.items() if carries), "gather"]


def rows() -> dict[str, dict[str, str]]:
    """The table, by choice."""
    made, model = {}, one_billion()
    for choice in choices():
        facts, known = FACTS[choice], codec(choice)
        vectors = f"; vectors {facts.vectors}" if facts.vectors else ""
        nbytes = None if known.sized_by_data else model.nbytes(known)
        bits = None if nbytes is None else 8 * nbytes / model.layout.numel
        made[choice] = {
            "compressor": choice,
            "codec": facts.name,
            "source": sourced(facts.source),
            "bytes": (facts.nbytes + vectors).replace(" * ", " "),
            "1B": size(nbytes),
            "bits per value": number(bits),
            "flags": ", ".join(name for name in FLAGS if getattr(known, name)).replace("_", " "),
            "contraction": facts.contraction.replace("**", "^"),
            "feedback": facts.feedback,
            "carried by": ", ".join(carriers(known)),
            "checked with": facts.checked.replace("`", ""),
        }
    return made


def markdown() -> str:
    """The table for the docs."""
    made = rows()
    for choice, line in made.items():
        line["compressor"], line["checked with"] = f"`{choice}`", FACTS[choice].checked
        line["source"] = linked(FACTS[choice].source)
    return markdown_table(list(made.values()))


def _accepts(fn: Callable[..., object], *args: object) -> bool:
    try:
        fn(*args)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    print(markdown())
