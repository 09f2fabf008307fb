"""Inner optimizers as `meta` describes them: `"AdamW betas (0.9,0.95) eps 1e-8 wd 0.1, ..."`."""

from __future__ import annotations

import re

from experiments.validate.golden.case import Case
from optimizers import SGD, AdamW
from sim.compute.local_optimizer import LocalOptimizer

_NUMBER = r"([0-9][0-9.e+-]*)"


def described(case: Case) -> LocalOptimizer:
    """The optimizer of `meta.inner`, with `meta.inner_lr`; plain SGD if nothing is said.

    Raises:
        ValueError: it is another one than SGD, Adam or AdamW.
    """
    lr, text = case.given("inner_lr"), str(case.given("inner", "SGD"))
    if re.search(r"\bSGD\b", text):
        return SGD(lr, momentum=_number(text, "momentum", 0.0))
    if not re.search(r"\bAdamW?\b", text):
        raise ValueError(f"{case.name}: meta.inner={text!r}: must be SGD, Adam or AdamW")
    betas = re.search(rf"betas *\({_NUMBER}, *{_NUMBER}\)", text)
    return AdamW(
        lr,
        betas=(0.9, 0.999) if betas is None else (float(betas[1]), float(betas[2])),
        eps=_number(text, "eps", 1e-8),
        weight_decay=_number(text, "(?:wd|weight_decay)", 0.0),
    )


def _number(text: str, name: str, default: float) -> float:
    found = re.search(rf"\b{name} *=? *{_NUMBER}", text)
    return default if found is None else float(found[1])
