"""Modules from outside: batched over nodes as they are, against torch's own loop."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torch import nn
from torch.func import grad_and_value, vmap
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from experiments.tasks.digits import Digits
from experiments.tasks.interception import Interception, kept, mix
from experiments.tasks.models import MLP
from experiments.tasks.module_task import ModuleTask
from experiments.tasks.text import Source, Text
from sim.compute.choice import choose
from sim.compute.engines import VmapEngine
from sim.compute.options import ComputeOptions
from sim.streams import hashes
from sim.testing import check_task


class Prose(Source):
    def read(self) -> bytes:
        return bytes(range(32, 120)) * 10


class ConvNet(nn.Module):
    """With running statistics; with dropout of channels and of values, if `p` > 0."""

    def __init__(self, p: float = 0.0, **norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4, **norm)
        self.channels, self.values = nn.Dropout2d(p), nn.Dropout(p)
        self.head = nn.Linear(4 * 36, 10)

    def forward(self, x):
        x = self.channels(F.relu(self.norm(self.conv(x.view(-1, 1, 8, 8)))))
        return self.head(self.values(x.flatten(1)))


class TiedTransformer(nn.Module):
    """One tensor embeds and predicts; attention and layers are torch's, with dropout."""

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        self.token = nn.Embedding(256, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=p, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 256, bias=False)
        self.head.weight = self.token.weight
        self.register_buffer("mask", torch.full((6, 6), -torch.inf).triu(1))

    def forward(self, tokens):
        T = tokens.shape[1]
        return self.head(self.encoder(self.token(tokens), mask=self.mask[:T, :T]))


class Averaging(nn.Module):
    """Replaces a buffer instead of changing it in place; another one is a constant, not a float."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.tracked = nn.Module()
        self.tracked.register_buffer("mean", torch.zeros(64))
        self.register_buffer("order", torch.arange(64).flip(0))

    def forward(self, x):
        x = x[:, self.order]
        if self.training:
            self.tracked.mean = 0.9 * self.tracked.mean + 0.1 * x.mean(0)
        return self.head(x - self.tracked.mean)


class Attentive(nn.Module):
    """Rows of an image attend to each other, in sizes that fill no vector register."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.mix, self.head = nn.Linear(8, 9), nn.Linear(9, 27), nn.Linear(72, 10)

    def forward(self, x):
        query, key, value = self.mix(self.read(x.view(-1, 8, 8))).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(query, key, value).flatten(1))


def stack(*layers) -> type[nn.Module]:
    """A class of modules without arguments: 64 pixels, 7 values, these layers, 10 classes."""

    class Stack(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(64, 7), *(make() for make in layers), nn.Linear(7, 10))

    return Stack


def digits(model) -> Digits:
    return bound(Digits(model, examples=5))


def text(model) -> Text:
    return bound(Text(Prose(), context=6, sequences=3, model=model, evaluation_sequences=4))


def bound(task):
    task.bind(seed=3, n_nodes=4)
    return task


def words_of(nodes, steps) -> torch.Tensor:
    return torch.from_numpy(hashes(0, "dropout", nodes, steps, 1).view(np.int64))


def start(task, n: int = 3):
    """Parameters, buffers, batch and words of n nodes that differ."""
    nodes, steps = np.arange(n), np.arange(n) + 5
    generator = torch.Generator().manual_seed(1)
    params = task.init(generator) + 0.05 * torch.randn(n, task.layout.numel, generator=generator)
    buffers = task.init_buffers().repeat(n, 1)
    return params, buffers, task.batch(nodes, steps), words_of(nodes, steps)


def batched(task, params, buffers, batch, words):
    """Gradients [n, P], losses [n] and buffers [n, Pb] by vmap."""
    gradient = grad_and_value(task.training_loss, has_aux=True)
    grads, (losses, after) = vmap(gradient)(params, buffers, batch, words)
    return grads, losses, after


def item(batch, i: int):
    return tuple(part[i] for part in batch) if isinstance(batch, tuple) else batch[i]


def ordinary(task, params, batch, word):
    """The module itself in a loop of torch's: gradient [P], loss, its buffers by name.

    Its masks are those of the word, as there is no other way to draw the same ones.
    """
    module = task.module(params).train()
    with Interception(word):
        loss = task.objective(module, batch)
    loss.backward()
    grads = {name: p.grad for name, p in module.named_parameters()}
    return task.layout.flatten(grads), loss, dict(module.named_buffers())


OUTSIDE = {
    "batch norm": lambda: digits(ConvNet),
    "batch norm and dropout": lambda: digits(lambda: ConvNet(0.4)),
    "dropout and tied weights": lambda: text(TiedTransformer),
    "attention without dropout": lambda: text(lambda: TiedTransformer(0.0)),
    "replaced buffer": lambda: digits(Averaging),
    "spectral norm": lambda: digits(lambda: spectral_norm(nn.Linear(64, 10))),
}


@pytest.fixture(params=OUTSIDE)
def task(request):
    return OUTSIDE[request.param]()


# --- gradients and buffers ----------------------------------------------------------------------


def test_batched_gradients_are_those_of_the_module_alone(task):
    params, buffers, batch, words = start(task)
    grads, losses, after = batched(task, params, buffers, batch, words)
    for i in range(3):
        grad, loss, named = ordinary(task, params[i], item(batch, i), words[i])
        assert (grads[i] - grad).norm() < 1e-5 * grad.norm()
        assert losses[i].item() == pytest.approx(loss.item(), rel=1e-5)
        for name, view in task.buffers.views(after[i]).items():
            torch.testing.assert_close(view, named[name].float(), rtol=1e-5, atol=1e-6)


def test_one_node_alone_gets_what_it_gets_among_others(task):
    params, buffers, batch, words = start(task)
    grads, losses, after = batched(task, params, buffers, batch, words)
    gradient = grad_and_value(task.training_loss, has_aux=True)
    grad, (loss, rest) = gradient(params[2], buffers[2], item(batch, 2), words[2])
    torch.testing.assert_close((grad, loss, rest), (grads[2], losses[2], after[2]))


def test_threads_get_what_one_thread_gets(task):
    params, buffers, batch, words = start(task)
    alone = batched(task, params, buffers, batch, words)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(batched, task, params, buffers, batch, words) for _ in range(12)]
    for job in jobs:
        assert all(torch.equal(own, wanted) for own, wanted in zip(job.result(), alone))


def test_nodes_that_share_parameters_get_gradients_of_their_own(task):
    params, buffers, batch, words = start(task)
    gradient = grad_and_value(task.training_loss, has_aux=True)
    shared, _ = vmap(gradient, in_dims=(None, 0, 0, 0))(params[0], buffers, batch, words)
    own, *_ = batched(task, params[:1].repeat(3, 1), buffers, batch, words)
    torch.testing.assert_close(shared, own)


def test_arguments_are_left_as_they_are(task):
    arguments = start(task)
    before = [arguments[k].clone() for k in (0, 1, 3)]
    batched(task, *arguments)
    assert all(torch.equal(arguments[k], was) for k, was in zip((0, 1, 3), before))


def test_buffers_after_some_steps_are_those_of_an_ordinary_module():
    task = digits(ConvNet)
    nodes = np.arange(3)
    params = task.init(torch.Generator().manual_seed(0)).repeat(3, 1)
    buffers = task.init_buffers().repeat(3, 1)
    modules = [task.module(params[i]).train() for i in range(3)]
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in modules]
    for step in range(4):
        batch = task.batch(nodes, np.full(3, step))
        grads, _, buffers = batched(task, params, buffers, batch, words_of(nodes, step))
        params = params - 0.1 * grads
        for i, (module, optimizer) in enumerate(zip(modules, optimizers)):
            optimizer.zero_grad()
            task.objective(module, item(batch, i)).backward()
            optimizer.step()
    for i, module in enumerate(modules):
        named, norm = task.buffers.views(buffers[i]), module.norm
        torch.testing.assert_close(named["norm.running_mean"], norm.running_mean)
        torch.testing.assert_close(named["norm.running_var"], norm.running_var)
        assert named["norm.num_batches_tracked"] == 4
        module.eval()
        images, labels = task._held_out
        loss = task.evaluate(params[i], buffers[i])["loss"]
        assert loss == pytest.approx(F.cross_entropy(module(images), labels).item(), rel=1e-4)


def test_only_what_training_changes_is_kept_per_node():
    assert list(digits(Averaging).buffers.shapes) == ["tracked.mean"]
    assert digits(ConvNet).buffers.numel == 9
    assert text(TiedTransformer).buffers.numel == 0
    assert digits(lambda: ConvNet(track_running_stats=False)).buffers.numel == 0


def test_a_tied_tensor_counts_once():
    tied = text(TiedTransformer)
    assert list(tied.layout.shapes).count("token.weight") == 1
    assert "head.weight" not in tied.layout.shapes
    assert tied.layout.numel == sum(p.numel() for p in TiedTransformer().parameters())


def test_frozen_parameters_stay_as_they_are():
    def build():
        return nn.Sequential(nn.Linear(64, 8).requires_grad_(False), nn.Linear(8, 10))

    task = digits(build)
    assert list(task.layout.shapes) == ["1.weight", "1.bias"]
    params, buffers, batch, words = start(task)
    grads, *_ = batched(task, params, buffers, batch, words)
    frozen = task._module[0]
    logits = F.linear(frozen(batch[0][1]), *task.layout.views(params[1]).values())
    residual = (logits.softmax(-1) - F.one_hot(batch[1][1], 10)) / 5
    torch.testing.assert_close(task.layout.views(grads[1])["1.bias"], residual.sum(0))


# --- masks --------------------------------------------------------------------------------------


def test_the_mixer_is_that_of_the_streams():
    word = torch.from_numpy(hashes(4, "dropout", np.array([7]), 3, 1).view(np.int64))[0]
    golden = 0x9E3779B97F4A7C15
    counter = torch.arange(1, 6) * (golden - 2**64)
    with np.errstate(over="ignore"):
        z = word.numpy().view(np.uint64) + np.arange(1, 6, dtype=np.uint64) * np.uint64(golden)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    assert (
        mix(word + counter).numpy().view(np.uint64).tolist() == (z ^ (z >> np.uint64(31))).tolist()
    )


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
def test_masks_keep_the_share_that_they_should(p):
    nodes = np.arange(200)
    masks = vmap(lambda word: kept(word, 2, (50, 21), p))(words_of(nodes, 0))
    shares = masks.float().mean((1, 2))
    deviation = (p * (1 - p) / 1050) ** 0.5
    assert shares.mean().item() == pytest.approx(1 - p, abs=5 * deviation / 200**0.5)
    assert shares.std().item() == pytest.approx(deviation, rel=0.25)


def test_masks_of_calls_nodes_and_steps_are_independent():
    first = kept(words_of(np.array([3]), 8)[0], 0, (4000,), 0.5).float()
    others = [(3, 8, 1), (4, 8, 0), (3, 9, 0)]
    for node, step, call in others:
        other = kept(words_of(np.array([node]), step)[0], call, (4000,), 0.5).float()
        assert abs(torch.corrcoef(torch.stack([first, other]))[0, 1]) < 0.08  # 5 deviations


def test_a_mask_does_not_depend_on_who_shares_the_batch():
    words = words_of(np.arange(6), np.arange(6))
    together = vmap(lambda word: kept(word, 1, (5, 7), 0.3))(words)
    assert torch.equal(together[4], kept(words[4], 1, (5, 7), 0.3))
    assert torch.equal(together[2:4], vmap(lambda word: kept(word, 1, (5, 7), 0.3))(words[2:4]))


def under_words(function, x):
    with Interception(torch.tensor([12345])):
        return function(x)


@pytest.mark.parametrize(
    ("function", "shape", "group"),
    [
        (F.dropout, (40, 50), ()),
        (F.dropout1d, (40, 50, 3), (2,)),
        (F.dropout1d, (50, 3), (1,)),
        (F.dropout2d, (40, 50, 3, 2), (2, 3)),
        (F.dropout3d, (40, 50, 3, 2, 2), (2, 3, 4)),
    ],
)
def test_dropout_scales_what_it_keeps_and_drops_whole_channels(function, shape, group):
    x = torch.ones(shape)
    dropped = under_words(lambda x: function(x, 0.25, True), x)
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    if group:
        assert (dropped.amax(group) == dropped.amin(group)).all()
    assert torch.equal(under_words(lambda x: function(x, 0.25, False), x), x)
    assert torch.equal(under_words(lambda x: function(x, 1.0, True), x), torch.zeros(shape))
    inplace = x.clone()
    under_words(lambda x: function(x, 0.25, True, True), inplace)
    assert torch.equal(inplace, dropped)


@pytest.mark.parametrize("function", [F.alpha_dropout, F.feature_alpha_dropout])
def test_alpha_dropout_takes_the_two_values_of_torch(function):
    x = torch.full((300, 20), 0.7)
    own = under_words(lambda x: function(x, 0.2, True), x).unique()
    with torch.random.fork_rng(devices=[]):
        torch.testing.assert_close(own, function(x, 0.2, True).unique())


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.1}, {"enable_gqa": True}])
def test_attention_is_that_of_torch(options):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 5, 8, generator=generator)
    k, v = torch.randn(2, 2, 2 if "enable_gqa" in options else 4, 5, 8, generator=generator)
    with Interception(None):
        own = F.scaled_dot_product_attention(q, k, v, **options)
    torch.testing.assert_close(own, F.scaled_dot_product_attention(q, k, v, **options))


@pytest.mark.parametrize("boolean", [True, False])
def test_masked_attention_is_that_of_torch(boolean):
    q, k, v = torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    mask = mask if boolean else torch.zeros(5, 5).masked_fill(~mask, -torch.inf)
    with Interception(None):
        own = F.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(own, F.scaled_dot_product_attention(q, k, v, mask))


def test_dropout_inside_attention_zeroes_attention_weights():
    attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
    weights = under_words(lambda x: attention(x, x, x, average_attn_weights=False)[1], x)
    whole = attention.eval()(x, x, x, average_attn_weights=False)[1]
    dropped = weights == 0
    assert 0.2 < dropped.float().mean() < 0.8
    torch.testing.assert_close(weights[~dropped], 2 * whole[~dropped])


def test_evaluation_drops_nothing():
    task = text(TiedTransformer)
    params = task.init(torch.Generator())
    assert task.evaluate(params) == task.evaluate(params)
    module = task.module(params).eval()
    expected = task.objective(module, task._held_out).item()
    assert task.evaluate(params)["loss"] == pytest.approx(expected, rel=1e-5)


# --- where a module begins, what it costs ---------------------------------------------------------


def test_a_module_begins_as_its_constructor_says():
    task = digits(lambda: nn.Linear(64, 10))
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(4)))
    before = torch.get_rng_state()
    params = task.init(torch.Generator().manual_seed(4))
    assert torch.equal(before, torch.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        expected = nn.Linear(64, 10)
    assert torch.equal(params, task.layout.flatten(dict(expected.named_parameters())))
    assert not torch.equal(params, task.init(torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("make", [ConvNet, lambda: MLP(64, (5,), 10)])
def test_a_module_given_as_it_is_keeps_its_values(make):
    module = make()
    task = digits(module)
    params = task.init(torch.Generator().manual_seed(1))
    assert torch.equal(params, task.layout.flatten(dict(module.named_parameters())))


def test_a_module_can_be_named_in_a_configuration():
    node = {"_target_": "torch.nn.Linear", "in_features": 64, "out_features": 10}
    config = {"_target_": "experiments.tasks.digits.Digits", "model": {**node, "_partial_": True}}
    task = instantiate(config)
    assert task.layout.numel == 650
    assert not torch.equal(
        task.init(torch.Generator().manual_seed(0)), task.init(torch.Generator())
    )


def test_flops_of_an_outside_module_are_three_forward_passes_less_the_first_layers_inputs():
    task = digits(lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)))
    assert task.flops_per_token == 6 * (64 * 32 + 32 * 10) - 2 * 64 * 32


def test_recurrent_layers_are_counted():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.head = nn.Embedding(256, 8), nn.Linear(8, 256)
            self.lstm = nn.LSTM(8, 8, batch_first=True)

        def forward(self, tokens):
            return self.head(self.lstm(self.token(tokens))[0])

    task = text(Recurrent)
    weights = 2 * 32 * 8 + 8 * 256  # of the two matrices of the LSTM, and of the head
    assert task.flops_per_token == pytest.approx(6 * weights, rel=0.05)
    task.check()


def test_without_matmuls_six_p_are_charged():
    with pytest.warns(UserWarning, match="counts no FLOP in Embedding; 6 P = 393216"):
        assert text(lambda: nn.Embedding(256, 256)).flops_per_token == 6 * 256**2


# --- refusals -----------------------------------------------------------------------------------


class Doing(nn.Module):
    """A layer that does something to its input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def doing(function):
    return lambda: nn.Sequential(nn.Linear(64, 10), Doing(function))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (doing(lambda x: x + torch.randn_like(x)), r"1 \(Doing\): randn_like draws .*sim.streams"),
        (doing(lambda x: x.bernoulli_()), r"1 \(Doing\): bernoulli_ draws random numbers"),
        (doing(F.gumbel_softmax), r"1 \(Doing\): gumbel_softmax draws random numbers"),
        (lambda: nn.Sequential(nn.Linear(64, 10), nn.RReLU()), r"1 \(RReLU\): rrelu draws"),
        (doing(F.dropout), r"1 \(Doing\): dropout draws .*training=self.training"),
        (lambda: nn.LazyLinear(10), "weight has no shape yet"),
        (lambda: nn.Linear(64, 10).double(), "weight is torch.float64; parameters must be float32"),
        (nn.Identity, "has no parameter with requires_grad=True"),
        (lambda: nn.Linear(63, 10), r"module \(Linear\): .*cannot be multiplied"),
        (lambda: nn.Linear(64, 9), r"returns \(2, 9\) for the example; .* shape \(2, 10\)"),
        (doing(lambda x: (x, x)), "returns tuple for the example"),
        (lambda: "MLP", "returns 'MLP'; it must return a torch module"),
        (7, "model=7: must be one of .*, a torch module, or what makes one"),
        (lambda: MaxNorm(), r"table.weight is changed by a forward pass"),
    ],
)
def test_a_module_that_cannot_be_trained_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        Digits(model)


class MaxNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 10, max_norm=0.1)

    def forward(self, x):
        return x @ self.table(torch.arange(64))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (doing(lambda x: x * x.max().item()), r"1 \(Doing\): .*reads a value"),
        (doing(lambda x: x if x.sum() > 0 else -x), r"1 \(Doing\): .*compute.engine=loop"),
        (doing(lambda x: x - x[x > 0].mean()), r"1 \(Doing\): .*a shape depends on values"),
        (doing(lambda x: x * np.random.default_rng().random()), "differs by .*sim.streams"),
        (lambda: ConvNet(momentum=None), r"norm \(BatchNorm2d\): momentum=None .* try 0.1"),
    ],
)
def test_a_module_that_cannot_be_batched_is_named_by_the_check(model, message):
    task = digits(model)
    with pytest.raises(ValueError, match=message):
        task.check()


def test_modules_that_can_be_batched_pass_the_check(task):
    check_task(task)
    task.check()
    assert all(not part._forward_hooks for part in task._own_module(True).modules())


def test_dropout_inside_a_recurrent_kernel_is_refused():
    lstm = nn.LSTM(8, 8, num_layers=2, dropout=0.1)
    with Interception(torch.zeros(1, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"lstm draws its dropout=0.1 inside"):
            lstm(torch.zeros(3, 1, 8))
        lstm.eval()(torch.zeros(3, 1, 8))


def test_the_plain_loss_of_a_module_that_draws_needs_words():
    task = text(TiedTransformer)
    assert isinstance(task, ModuleTask)
    with pytest.raises(ValueError, match="has no word to draw them from"):
        task.loss(task.init(torch.Generator()), item(task.batch(np.arange(1), np.arange(1)), 0))


@pytest.mark.parametrize("examples", [3, 16])
@pytest.mark.parametrize(
    "model",
    [
        stack(nn.SiLU),
        stack(lambda: nn.BatchNorm1d(7)),
        stack(lambda: nn.LayerNorm(7), nn.GELU),
        Attentive,
        ConvNet,
    ],
    ids=["silu", "batch norm", "layer norm", "attention", "convolution"],
)
def test_who_shares_a_call_does_not_change_a_bit(model, examples):
    """Kernels round the tail of a tensor, and matrices at odd addresses, in ways of their own."""
    task = Digits(model, examples=examples)
    task.bind(0, 64)
    initial = task.init(torch.Generator().manual_seed(0))
    multiple = choose(task, initial, ComputeOptions(engine="vmap")).multiple
    engine = VmapEngine(task, multiple=multiple)
    rng = np.random.default_rng(0)
    params = initial + 0.1 * torch.randn(64, len(initial), generator=torch.Generator())
    batch = task.batch(np.arange(64), np.zeros(64, dtype=np.int64))

    def gradients(at: np.ndarray, own: bool) -> torch.Tensor:
        rows = torch.from_numpy(at)
        grads, buffers = torch.empty(len(at), len(initial)), task.init_buffers().repeat(len(at), 1)
        at_params = params[rows] if own else initial
        with torch.no_grad():
            engine.gradients(at_params, buffers, tuple(x[rows] for x in batch), None, grads)
        return torch.cat([grads, buffers], 1)

    for own in (True, False):
        whole = gradients(np.arange(64), own)
        for size in (1, 3, 4, 8, 11, 16, 32, 48):
            at = rng.permutation(64)[:size]
            assert torch.equal(gradients(at, own), whole[torch.from_numpy(at)]), (own, size)
