"""Inner optimizers as `meta` describes them: `"AdamW betas (0.9,0.95) eps 1e-8 wd 0.1, ..."`.

What such a text leaves out has the default of torch's optimizer of that name. Options may also be
a dictionary `inner_adamw` (or `inner_sgd`, ...), or `inner_momentum` and `inner_nesterov`.
"""

from __future__ import annotations

import re
from typing import Any

from experiments.errors import unknown
from experiments.validate.golden.case import Case
from optimizers import SGD, AdamW
from sim.compute.local_optimizer import LocalOptimizer

_NUMBER = r"([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)"
_SHORT = {"wd": "weight_decay", "mu": "momentum"}
_KNOWN: dict[str, dict[str, Any]] = {
    "sgd": {"lr": None, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    "adam": {"lr": None, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    "adamw": {"lr": None, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
}
"""Options, with the defaults of torch."""
_OTHER = r"\b(amsgrad|maximize|dampening|clip\w*|schedule\w*|warm\w*|cosine|reset)\b"
"""Words of options that are not replayed."""


def described(case: Case) -> LocalOptimizer:
    """The optimizer of `meta.inner`, with `meta.inner_lr`; plain SGD if nothing is said.

    Raises:
        ValueError: it is another one than SGD, Adam or AdamW, or has options that are not known.
    """
    kind, options = _options(case)
    for name in options:
        if name not in _KNOWN[kind]:
            where = f"{case.name}: meta.inner: {name}"
            raise ValueError(unknown(where, f"option of {kind}", name, list(_KNOWN[kind])))
    lr = case.number("inner_lr", options.pop("lr", None))
    options = {k: v for k, v in _KNOWN[kind].items() if k != "lr"} | options
    if kind == "sgd":
        return SGD(lr, **options)
    if kind == "adam" and options["weight_decay"]:
        raise ValueError(
            f"{case.name}: meta.inner: Adam adds weight decay to the gradient, which is not "
            "replayed; AdamW decays apart from it"
        )
    return AdamW(lr, **options)


def _options(case: Case) -> tuple[str, dict[str, Any]]:
    """Name of the optimizer in small letters, and what is said of it."""
    given = [kind for kind in _KNOWN if case.meta.get(f"inner_{kind}")]
    text = str(case.given("inner", given[0] if len(given) == 1 else "SGD"))
    kinds = set(re.findall(r"\b(sgd|adamw?)\b", text.lower()))
    if len(kinds) != 1 or given not in ([], [*kinds]) or re.search(_OTHER, text, re.IGNORECASE):
        raise ValueError(
            f"{case.name}: meta.inner={text!r}"
            + "".join(f", inner_{kind}" for kind in given)
            + ": must be one of SGD, Adam, AdamW with constant options"
        )
    (kind,) = kinds
    options = case.given(f"inner_{kind}", {})
    if not isinstance(options, dict):
        raise ValueError(f"{case.name}: meta.inner_{kind}={options!r}: must be its options by name")
    options = options | {"betas": tuple(options["betas"])} if "betas" in options else {**options}
    if betas := re.search(rf"betas *=? *[(\[] *{_NUMBER}, *{_NUMBER} *[)\]]", text):
        options["betas"] = float(betas[1]), float(betas[2])
        text = text.replace(betas[0], "")
    for name, number in re.findall(rf"([A-Za-z_]+) *[=:]? *{_NUMBER}", text):
        options[_SHORT.get(name, name)] = float(number)
    if re.search(r"\bnesterov\b", text):
        options["nesterov"] = True
    for name in ("momentum", "nesterov"):
        if case.meta.get(f"inner_{name}") is not None:
            options[name] = case.meta[f"inner_{name}"]
    return kind, options
