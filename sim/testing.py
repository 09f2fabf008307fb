"""Conformance kits: what the simulator relies on, checked for codecs and tasks from outside of it.

    from sim.testing import check_compressor, check_task

    def test_my_codec_conforms():
        check_compressor(MyCodec())

    def test_my_task_conforms():
        check_task(MyTask())

Legend: b rows of a block, n nodes, P values in a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils._pytree import tree_leaves, tree_map

from sim.compute.layout import Layout
from sim.compute.task import Task
from sim.payload import Compressor, Context, Payload, State
from sim.streams import hashes

LAYOUT = Layout({"weight": (24, 10), "conv": (4, 3, 3), "bias": (7,), "gain": ()})
"""A model of odd shapes: a matrix, a convolution, a vector and a scalar."""

_ROWS = 5
_DRAWS = 1024
_SIGMAS = 6.0
_UNSEEN = 14.0  # an outcome with this many expected draws is missed once in e^14 tests


def check_compressor(codec: Compressor, layout: Layout = LAYOUT) -> None:
    """Check that a codec keeps the promises of `Compressor`, its declared flags among them.

    In this order: bytes equal the packed length, and are known without values, on the meta device;
    unpacking inverts packing; decoding keeps shape
    and dtype, float64 too; inputs are left alone; rows are independent, and a batch of one equals
    its row in a batch of many; rows can be picked and stacked; zeros decode to zeros; combining is
    the mean; and each flag that the codec sets holds.

    Args:
        codec: what to check.
        layout: the model whose flat rows it is given, a few hundred values.

    Raises:
        AssertionError: names the property that failed, with numbers. Errors of the codec itself,
            on the meta device for example, are passed on.
    """
    case = _Case(codec, layout)
    _bytes_equal_packed_length(case)
    _size_is_known_without_values(case)
    _unpacking_inverts_packing(case)
    _decoding_keeps_shape_and_dtype(case)
    _inputs_are_left_alone(case)
    _rows_are_independent(case)
    _rows_can_be_picked_and_stacked(case)
    _combining_is_the_mean(case)
    for flag, check in _FLAGS.items():
        if getattr(codec, flag):
            check(case)


@dataclass(frozen=True)
class _Case:
    """A codec, five random rows of a layout, and what becomes of them."""

    codec: Compressor
    layout: Layout

    @cached_property
    def x(self) -> Tensor:
        """Random rows, float32 [5, P]; each of another magnitude."""
        rng = np.random.Generator(np.random.PCG64(0))
        rows = rng.standard_normal((_ROWS, self.layout.numel)) * (1 + np.arange(_ROWS)[:, None])
        return torch.from_numpy(rows.astype(np.float32))

    @cached_property
    def payload(self) -> Payload:
        """The rows, encoded."""
        return self.encode(self.x)

    @cached_property
    def decoded(self) -> Tensor:
        """The rows, encoded and decoded."""
        return self.payload.decode()

    def context(self, nodes: np.ndarray, step: int | np.ndarray = 3, seed: int = 1) -> Context:
        return Context(self.layout, step, nodes, seed)

    def encode(self, x: Tensor, nodes: np.ndarray | None = None) -> Payload:
        """Encode rows of these nodes, 0 to b - 1 if not given, from the initial state."""
        nodes = np.arange(len(x)) if nodes is None else nodes
        state = self.codec.init(self.layout, len(x))
        return self.codec.encode(x, state, self.context(nodes))[0]

    def expect(self, holds: bool, text: str) -> None:
        if not holds:
            raise AssertionError(f"{self.codec!r}: {text}")

    def expect_close(self, got: Tensor, wanted: Tensor, text: str) -> None:
        """Equal up to the rounding of another order of summation."""
        error = (got.double() - wanted.double()).abs().max().item()
        bound = 1e-4 * (1e-3 + wanted.abs().max().item())
        self.expect(error <= bound, f"{text}: they differ by {error:g} (at most {bound:g})")


def _bytes_equal_packed_length(case: _Case) -> None:
    sizes, lengths = case.payload.sizes, [len(row) for row in case.payload.pack()]
    case.expect(sizes == lengths, f"sizes {sizes} but the packed rows have {lengths} bytes")


def _size_is_known_without_values(case: _Case) -> None:
    if case.codec.sized_by_data:
        return
    meta, real = case.codec.nbytes(case.layout), case.payload.nbytes
    case.expect(meta == real, f"nbytes(layout) is {meta} but real rows have {real}")
    template = case.codec.template(case.layout)
    shape = tuple(template.decode().shape)
    text = f"decoded shape {shape} on the meta device"
    case.expect(shape == (1, case.layout.numel), text)
    case.expect(template.combine("senders").is_meta, "combining leaves the meta device")


def _unpacking_inverts_packing(case: _Case) -> None:
    packed = case.payload.pack()
    arrived = case.codec.template(case.layout).unpack_like(packed)
    case.expect(arrived.pack() == packed, "packing what was unpacked gives other bytes")
    same = torch.equal(arrived.decode(), case.decoded)
    case.expect(same, "the unpacked bytes decode to other values: something used is not on a wire")


def _decoding_keeps_shape_and_dtype(case: _Case) -> None:
    for x in (case.x, case.x.double()):
        decoded = case.encode(x).decode()
        got, wanted = (tuple(decoded.shape), decoded.dtype), (tuple(x.shape), x.dtype)
        case.expect(got == wanted, f"decoded {got} where {wanted} was encoded")
        case.expect(
            bool(decoded.isfinite().all()), f"decoded values that are not finite ({x.dtype})"
        )


def _inputs_are_left_alone(case: _Case) -> None:
    x = case.x.clone()
    state = case.codec.init(case.layout, _ROWS)
    case.codec.encode(x, state, case.context(np.arange(_ROWS)))
    case.expect(torch.equal(x, case.x), "encode has written to its input")
    fresh = case.codec.init(case.layout, _ROWS)
    same = all(torch.equal(a, b) for a, b in zip(_tensors(state), _tensors(fresh)))
    case.expect(same, "encode has written to its state instead of returning a new one")


def _rows_are_independent(case: _Case) -> None:
    for i in range(_ROWS):
        alone = case.encode(case.x[i : i + 1], np.array([i]))
        text = f"row {i} alone decodes differently from row {i} of {_ROWS}"
        case.expect_close(alone.decode()[0], case.decoded[i], text)
        sizes = (alone.sizes[0], case.payload.sizes[i])
        case.expect(sizes[0] == sizes[1], f"row {i} has {sizes[0]} bytes alone, {sizes[1]} of many")


def _rows_can_be_picked_and_stacked(case: _Case) -> None:
    picked = case.payload.rows([2, 0])
    same = torch.equal(picked.decode(), case.decoded[[2, 0]])
    case.expect(same, "rows([2, 0]) decode to other values than rows 2 and 0")
    halves = Payload.cat([case.payload.rows([0, 1]), case.payload.rows([2, 3, 4])])
    case.expect(halves.pack() == case.payload.pack(), "stacked halves pack to other bytes")


def _combining_is_the_mean(case: _Case) -> None:
    text = "combine() is not the mean of the decoded rows"
    case.expect_close(case.payload.combine(), case.decoded.mean(0), text)
    weights = torch.arange(1.0, _ROWS + 1)
    wanted = (weights[:, None] * case.decoded).sum(0) / weights.sum()
    text = "combine(weights=...) is not the weighted mean of the decoded rows"
    case.expect_close(case.payload.combine(weights=weights), wanted, text)


def _zeros_decode_to_zeros(case: _Case) -> None:
    most = case.encode(torch.zeros_like(case.x)).decode().abs().max().item()
    case.expect(most == 0, f"zero_preserving, but zeros decode to values up to {most:g}")


def _codes_can_be_summed(case: _Case) -> None:
    case.expect(case.codec.linear, "summable, but not linear: a sum of codes has no meaning")


def _sums_decode_to_sums(case: _Case) -> None:
    """The body of a linear codec may be averaged by itself, which `combine` then does."""
    mean = case.decoded.mean(0)
    generic = Compressor.aggregate(case.codec, case.payload, "all", None)
    case.expect_close(generic, mean, "linear, but the mean of bodies decodes to something else")


def _everybody_sends_the_same_coefficients(case: _Case) -> None:
    senders, everybody = case.payload.combine("senders"), case.payload.combine("all")
    text = "shared_support, but the mean over senders is not the mean over all"
    case.expect_close(senders, everybody, text)


def _nothing_is_drawn(case: _Case) -> None:
    state = case.codec.init(case.layout, _ROWS)
    other = case.context(np.arange(_ROWS) + 100, step=77, seed=99)
    again = case.codec.encode(case.x, state, other)[0]
    same = torch.equal(again.decode(), case.decoded)
    case.expect(same, "deterministic, but seed, step or node change what is decoded")


def _the_mean_of_draws_is_the_input(case: _Case) -> None:
    nodes = np.arange(_DRAWS)
    x = case.x[0].double()
    state = case.codec.init(case.layout, _DRAWS)
    payload, _ = case.codec.encode(x.repeat(_DRAWS, 1), state, case.context(nodes, step=nodes))
    drawn = payload.decode()
    error = (drawn.mean(0) - x).abs()
    bound = _SIGMAS * drawn.std(0) / _DRAWS**0.5 + _UNSEEN / _DRAWS * drawn.abs().max()
    worst = int((error - bound).argmax())
    text = (
        f"unbiased, but value {worst} is {x[worst]:g} and decodes to {drawn[:, worst].mean():g} "
        f"on average of {_DRAWS} draws (expected within {bound[worst]:g})"
    )
    case.expect(bool((error <= bound).all()), text)


def _sent_plus_residual_is_the_input(case: _Case) -> None:
    state = case.codec.init(case.layout, _ROWS)
    sent = torch.zeros_like(case.x)
    for step in range(4):
        ctx = case.context(np.arange(_ROWS), step)
        payload, state = case.codec.encode(case.x, state, ctx)
        sent += payload.decode()
    residual = _tensors(state)[0].reshape(sent.shape)
    text = "telescopes, but what was sent plus the residual is not the sum of the inputs"
    case.expect_close(sent + residual, 4 * case.x, text)


def _tensors_are_encoded_apart(case: _Case) -> None:
    sizes = 0
    for name, columns in case.layout.slices.items():
        part = case.layout.select([name])
        context = Context(part, 3, np.arange(_ROWS), 1)
        payload, _ = case.codec.encode(case.x[:, columns], case.codec.init(part, _ROWS), context)
        text = f"separable, but tensor {name!r} alone decodes to something else"
        case.expect_close(payload.decode(), case.decoded[:, columns], text)
        sizes += payload.sizes[0]
    text = f"separable, but its tensors alone have {sizes} bytes, together {case.payload.sizes[0]}"
    case.expect(sizes == case.payload.sizes[0], text)


_FLAGS = {
    "zero_preserving": _zeros_decode_to_zeros,
    "summable": _codes_can_be_summed,
    "linear": _sums_decode_to_sums,
    "shared_support": _everybody_sends_the_same_coefficients,
    "deterministic": _nothing_is_drawn,
    "unbiased": _the_mean_of_draws_is_the_input,
    "separable": _tensors_are_encoded_apart,
    "telescopes": _sent_plus_residual_is_the_input,
}


def check_task(task: Task) -> None:
    """Check that a task keeps the promises of `Task`; binds it to four nodes with seed 0.

    In this order: initial parameters come from the generator alone; a batch does not depend on who
    shares the call; the loss of a node is the same alone and batched, and so are its gradient and
    its buffers, which are not written to; evaluation gives `"loss"`, the same each time, and not
    below the floor.

    Raises:
        AssertionError: names the property that failed. Errors of the task itself are passed on.
    """
    task.bind(0, _ROWS - 1)
    params = _init_comes_from_the_generator(task)
    _batches_depend_on_node_and_step_only(task)
    _nodes_are_independent(task, params)
    _evaluation_is_repeatable(task, params)


def _init_comes_from_the_generator(task: Task) -> Tensor:
    before = torch.get_rng_state()
    first, again = (task.init(torch.Generator().manual_seed(0)) for _ in range(2))
    shape = (task.layout.numel,)
    _promise(task, first.shape == shape and first.dtype == torch.float32, f"init: float32 {shape}")
    _promise(task, torch.equal(first, again), "init: the same generator gives the same parameters")
    same = torch.equal(before, torch.get_rng_state())
    _promise(task, same, "init draws from its generator, not from torch's global one")
    return first


def _batches_depend_on_node_and_step_only(task: Task) -> None:
    nodes, steps = np.array([3, 0, 3, 1]), np.array([7, 7, 1, 0])
    together = tree_leaves(task.batch(nodes, steps))
    for i in range(len(nodes)):
        alone = tree_leaves(task.batch(nodes[i : i + 1], steps[i : i + 1]))
        same = all(torch.equal(one[0], all_[i]) for one, all_ in zip(alone, together))
        _promise(
            task, same, "a batch depends on seed, node and step only, not on who shares a call"
        )


def _nodes_are_independent(task: Task, params: Tensor) -> None:
    nodes = np.arange(_ROWS - 1)
    words = torch.from_numpy(hashes(0, "draws", nodes, nodes, 1).view(np.int64))
    rows = params * torch.linspace(1.0, 0.9, len(nodes))[:, None]
    buffers = task.init_buffers().repeat(len(nodes), 1)
    given = rows, buffers, task.batch(nodes, nodes), words
    before = [x.clone() for x in tree_leaves(given)]
    gradient = grad_and_value(_loss(task), has_aux=True)
    together = tree_leaves(vmap(gradient)(*given))
    left = all(torch.equal(x, was) for x, was in zip(tree_leaves(given), before))
    _promise(task, left, "the training loss leaves its arguments as they are")
    for i in range(len(nodes)):
        alone = tree_leaves(gradient(*tree_map(lambda x, i=i: x[i], given)))
        for one, all_ in zip(alone, together):
            close = bool((one - all_[i]).norm() <= 1e-3 * one.norm())
            _promise(task, close, "loss, gradient and buffers of a node: the same if batched")


def _loss(task: Task) -> Any:
    """The training loss, given words only if it draws."""

    def loss(params: Tensor, buffers: Tensor, batch: Any, words: Tensor) -> tuple[Tensor, Tensor]:
        return task.training_loss(params, buffers, batch, words if task.draws else None)

    return loss


def _evaluation_is_repeatable(task: Task, params: Tensor) -> None:
    with_buffers = (task.init_buffers(),) if task.buffers.numel else ()
    metrics, again = (task.evaluate(params, *with_buffers) for _ in range(2))
    _promise(task, metrics == again, "evaluation gives the same each time")
    enough = metrics["loss"] >= (-np.inf if task.floor is None else task.floor)
    _promise(task, bool(enough), f'the evaluated "loss" is not below the floor, {task.floor}')


def _promise(task: Task, holds: bool, text: str) -> None:
    if not holds:
        raise AssertionError(f"{type(task).__name__} breaks a promise of Task: {text}")


def _tensors(state: State) -> list[Tensor]:
    """The tensors of a state, first to last."""
    if state is None:
        return []
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state
    return [tensor for part in parts for tensor in _tensors(part)]
