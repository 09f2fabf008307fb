"""A file of codecs, each applied once, by their formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from golden_cases.demo import basis, split, to_blocks
from golden_cases.mlp import write
from golden_cases.sparse_loco import code_book


def primitives(
    path: Path,
    shape: tuple[int, ...] = (6, 50),
    bins: tuple[int, ...] = (256, 4, 16),
    levels: tuple[int, ...] = (1, 3, 16, 200),
    chunk: int = 4,
    dtype: str = "float64",
    scale: float = 1.0,
    sigmas: float = 6,
    seed: int = 0,
) -> Path:
    """Code books of `x`, QSGD of a vector, pairs of 12-bit numbers, cosines, the divisor rule.

    Args:
        dtype, scale: of what is turned into cosines and quantised by QSGD; of all values.
    """
    rng = np.random.default_rng(seed)
    x = (scale * (rng.normal(size=shape) + 0.3)).astype(np.float32)
    codes, _, lookup = code_book(x, 256, sigmas, centred=False)
    arrays = {"x": x, "prime_u8": codes.ravel(), "prime_lookup": lookup}
    for L in bins:
        codes, shift, lookup = code_book(x, L, sigmas)
        spread = np.linalg.norm((x - shift).astype(float)) / np.sqrt(x.size - 1)
        arrays |= {f"cc{L}_u8": codes, f"cc{L}_shift": shift, f"cc{L}_lookup": lookup}
        arrays |= {f"cc{L}_scale": np.float32(sigmas * spread / L)}
        arrays |= {f"cc{L}_dequant": lookup[codes] + shift}
    v, draws = (scale * rng.normal(size=37)).astype(dtype), rng.random(37).astype(dtype)
    arrays |= {"qsgd_x": v, "qsgd_u": draws}
    for s in levels:
        level = s * np.abs(v) / np.linalg.norm(v)
        level = np.floor(level) + (draws < level - np.floor(level))
        unbiased = (np.sign(v) * np.linalg.norm(v) * level / s).astype(dtype)
        shrunk = 1 + min(v.size / s**2, np.sqrt(v.size) / s)
        arrays |= {f"qsgd_{s}_unbiased": unbiased, f"qsgd_{s}_biased": (unbiased / shrunk)}
    pairs = rng.integers(4096, size=(5, 14))
    a, b = pairs.reshape(-1, 2).T
    packed = np.stack([a & 255, (a >> 8) | ((b & 15) << 4), b >> 4], axis=1)
    arrays |= {"idx12": pairs, "idx12_packed": packed.ravel().astype(np.uint8)}
    for name, sides in {"a": (12, 20), "b": (7, 16), "c": (15,), "d": (13, 9), "e": (1, 8)}.items():
        y = (scale * rng.normal(size=sides)).astype(dtype)
        cut = [split(n, chunk) for n in sides]
        blocks = to_blocks(y, chunk)
        shaped = blocks.reshape(*blocks.shape[:-1], *cut)
        arrays |= {f"dct_{name}_x": y, f"dct_{name}_chunk": np.int64(chunk)}
        arrays |= {f"dct_{name}_coef": shaped, f"dct_{name}_basis_dim0": basis(cut[0]).T}
    n, targets = np.array([1, 2, 12, 97, 100, 4096, 50257]), np.array([1, 4, 64, 100])
    made = [[split(m, target) for target in targets.tolist()] for m in n.tolist()]
    arrays |= {"split_n": n, "split_chunk": targets, "split_result": np.array(made)}
    meta = {"algorithm": "compressor primitives", "range_in_sigmas": sigmas}
    meta |= {"reference": "prime; CCLoco; templar; DeMo; ChocoSGD"}
    return write(path, meta, None, **arrays)
