"""Tasks: pure batches, exact floors, gradients under vmap, clear refusals."""

from __future__ import annotations

import math
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from experiments.tasks.chain import Factors, FactorSampler, TableSampler, entropy_rate, stationary
from experiments.tasks.digits import Digits
from experiments.tasks.hf import HuggingFace
from experiments.tasks.markov import MarkovLanguage
from experiments.tasks.models import CNN, GPT, MLP, Block, reset
from experiments.tasks.quadratic import Quadratic
from experiments.tasks.text import Files, PythonDocs, Text
from sim.testing import check_task

CONF = Path(__file__).parents[2] / "conf" / "task"


def small_language(**changes) -> MarkovLanguage:
    sizes = {"vocabulary": 6, "context": 8, "sequences": 2, "layers": 1, "width": 8, "heads": 2}
    return MarkovLanguage(**{"evaluation_sequences": 4, **sizes, **changes})


def small_text(path, text: bytes, **changes) -> Text:
    path.write_bytes(text)
    sizes = {"context": 4, "layers": 1, "width": 8, "heads": 1, "evaluation_sequences": 5}
    return Text(Files(str(path)), **{**sizes, **changes})


@pytest.fixture(
    params=["markov", "markov-own", "digits-mlp", "digits-cnn", "quadratic", "text", "text-shards"]
)
def task(request, tmp_path):
    prose = bytes(range(32, 120)) * 10
    made = {
        "markov": small_language,
        "markov-own": lambda: small_language(heterogeneity=0.7),
        "digits-mlp": lambda: Digits("mlp", width=5, examples=3, label_alpha=0.5),
        "digits-cnn": lambda: Digits("cnn", width=2, examples=3),
        "quadratic": lambda: Quadratic(dimension=5, heterogeneity=1.0, noise=0.3),
        "text": lambda: small_text(tmp_path / "a.txt", prose),
        "text-shards": lambda: small_text(tmp_path / "a.txt", prose, sharded=True),
    }[request.param]()
    made.bind(seed=3, n_nodes=6)
    return made


def leaves(batch) -> tuple[torch.Tensor, ...]:
    return batch if isinstance(batch, tuple) else (batch,)


def start(task) -> torch.Tensor:
    return task.init(torch.Generator().manual_seed(0))


# --- every task -------------------------------------------------------------------------------


def test_a_batch_does_not_depend_on_who_shares_the_call(task):
    nodes, steps = np.array([4, 0, 4, 2]), np.array([7, 7, 1, 0])
    together = leaves(task.batch(nodes, steps))
    for i in range(4):
        alone = leaves(task.batch(nodes[i : i + 1], steps[i : i + 1]))
        assert all(torch.equal(a[0], t[i]) for a, t in zip(alone, together))


def test_every_task_conforms(task):
    check_task(task)


class CallsOnly(Quadratic):
    """Its noise depends on the number of rows of the call."""

    def batch(self, nodes, steps):
        minima, noise = super().batch(nodes, steps)
        return minima, noise * len(nodes)


class GlobalDraws(Quadratic):
    """Begins at a draw of torch's global generator."""

    def init(self, generator):
        return torch.randn(self.dimension)


class Unrepeatable(Quadratic):
    """Its metrics count the evaluations."""

    def evaluate(self, params, buffers=None):
        self.count = getattr(self, "count", 0) + 1
        return {"loss": float(self.count)}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (CallsOnly, "a batch depends on seed, node and step only"),
        (GlobalDraws, "the same generator gives the same parameters"),
        (Unrepeatable, "evaluation gives the same each time"),
    ],
)
def test_a_broken_promise_is_named(kind, message):
    with pytest.raises(AssertionError, match=f"{kind.__name__} breaks .*{message}"):
        check_task(kind(dimension=3, noise=1.0))


def test_batches_differ_between_steps_nodes_and_seeds(task):
    def drawn(seed, node, step):
        task.bind(seed, 6)
        return leaves(task.batch(np.array([node]), np.array([step])))[-1 if noisy else 0]

    noisy = isinstance(task, Quadratic)  # its noise is what changes with the step
    base = drawn(3, 1, 1)
    assert not any(torch.equal(base, drawn(*o)) for o in [(3, 1, 2), (3, 2, 1), (4, 1, 1)])


def test_gradients_under_vmap_equal_autograd_node_by_node(task):
    nodes = np.arange(3)
    batch = task.batch(nodes, nodes)
    params = start(task) + 0.1 * torch.randn(3, task.layout.numel, generator=torch.Generator())
    together = vmap(grad(task.loss))(params, batch)
    for i in range(3):
        leaf = params[i].clone().requires_grad_()
        own = tuple(part[i] for part in leaves(batch))
        task.loss(leaf, own if isinstance(batch, tuple) else own[0]).backward()
        torch.testing.assert_close(together[i], leaf.grad, rtol=1e-4, atol=1e-6)


def test_initial_parameters_come_from_the_generator_alone(task):
    torch.manual_seed(1)
    before, first = torch.get_rng_state(), start(task)
    assert first.shape == (task.layout.numel,)
    assert first.dtype == torch.float32
    assert torch.equal(first, start(task))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, task.init(torch.Generator().manual_seed(1)))


def test_evaluation_is_repeatable_and_not_below_the_floor(task):
    metrics = task.evaluate(start(task))
    assert metrics == task.evaluate(start(task))
    assert metrics["loss"] >= (task.floor or 0.0)


def test_gradient_descent_lowers_the_evaluated_loss(task):
    params, nodes = start(task), np.arange(6)
    step = vmap(grad(task.loss), in_dims=(None, 0))
    before = task.evaluate(params)["loss"]
    for t in range(30):
        params = params - 0.1 * step(params, task.batch(nodes, np.full(6, t))).mean(0)
    assert task.evaluate(params)["loss"] < before


def test_the_manifest_gets_facts_about_the_data(task):
    facts = task.describe()
    assert facts == task.describe()
    assert "data" in facts


def test_a_task_needs_at_least_one_node(task):
    with pytest.raises(ValueError, match=r"n_nodes=0: must be an integer >= 1"):
        task.bind(0, 0)


def test_constructing_a_task_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    small_language()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_yaml_makes_a_task(path):
    config = OmegaConf.load(path)
    if path.stem == "text":
        config.source.paths = ["book.txt"]  # not read before `bind`
    made = instantiate(config)
    assert made.flops_per_step == made.flops_per_token * made.tokens_per_step > 0


# --- Markov language --------------------------------------------------------------------------


def entropy_by_eigenvector(conditionals: np.ndarray) -> float:
    """Entropy rate from the eigenvector of the V^2 x V^2 matrix of pairs."""
    V = len(conditionals)
    matrix = np.zeros((V * V, V * V))
    for a, b, c in np.ndindex(V, V, V):
        matrix[a * V + b, b * V + c] = conditionals[a, b, c]
    values, vectors = np.linalg.eig(matrix.T)
    pi = np.real(vectors[:, np.argmax(np.real(values))])
    pi = (pi / pi.sum()).reshape(V, V)
    return sum(
        -pi[a, b] * conditionals[a, b, c] * math.log(conditionals[a, b, c])
        for a, b, c in np.ndindex(V, V, V)
    )


def random_factors(chains: int, vocabulary: int, seed: int = 0) -> Factors:
    tables = np.random.default_rng(seed).standard_normal((chains, 2, vocabulary, vocabulary))
    return Factors.log_linear(tables, alpha=0.5, scale=1.3)


@pytest.mark.parametrize("vocabulary", [2, 3, 7])
def test_the_floor_is_the_entropy_rate_of_the_chain_of_pairs(vocabulary):
    conditionals = random_factors(1, vocabulary).conditionals()
    rate = entropy_rate(conditionals, stationary(conditionals))
    assert rate == pytest.approx(entropy_by_eigenvector(conditionals), abs=1e-12)


def test_without_context_the_floor_is_the_entropy_of_zipfs_law():
    zipf = np.array([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6])
    zipf /= zipf.sum()
    assert small_language(scale=0.0).floor == pytest.approx(-(zipf * np.log(zipf)).sum())


def test_without_structure_the_floor_is_that_of_uniform_symbols():
    assert small_language(scale=0.0, alpha=0.0).floor == pytest.approx(math.log(6))


@pytest.mark.parametrize(("preset", "floor"), [("markov", 2.772), ("markov_small", 1.706)])
def test_the_floor_of_a_preset_is_that_of_its_comment(preset, floor):
    assert instantiate(OmegaConf.load(CONF / f"{preset}.yaml")).floor == pytest.approx(
        floor, abs=5e-4
    )


def test_drawn_symbols_cost_the_floor_under_the_true_chances():
    task = small_language(context=200, sequences=50)
    task.bind(seed=0, n_nodes=4)
    symbols = task.batch(np.arange(4), np.zeros(4, int)).numpy()
    # The true chances, written out from the definition.
    A, B = task._draw_tables("markov tables")
    logits = A[:, None, :] + B[None] - np.log(np.arange(1, 7))
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    costs = -logs[symbols[..., :-2], symbols[..., 1:-1], symbols[..., 2:]]
    assert costs.mean() == pytest.approx(task.floor, abs=0.02)  # 4 standard errors of 39,800


def test_the_samplers_agree_with_a_loop_over_the_definition():
    factors, uniforms = random_factors(2, 5), np.random.default_rng(1).random((40, 9))
    conditionals = factors.conditionals(0)
    pairs = stationary(conditionals)
    expected = []
    for row in uniforms:
        first = np.searchsorted(pairs.ravel().cumsum(), row[0], side="right")
        symbols = [first // 5, first % 5]
        for u in row[1:]:
            chances = conditionals[symbols[-2], symbols[-1]]
            symbols.append(next(c for c in range(5) if u < chances[: c + 1].sum()))
        expected.append(symbols)
    chains = np.zeros(40, int)
    table = TableSampler.of(conditionals, pairs)
    assert table.draw(chains, uniforms).tolist() == expected
    assert FactorSampler(factors, table.pairs).draw(chains, uniforms).tolist() == expected


def test_uniforms_at_the_edge_give_symbols_of_the_vocabulary():
    factors = random_factors(1, 7)
    conditionals = factors.conditionals()
    table = TableSampler.of(conditionals, stationary(conditionals))
    edges, chains = np.array([[0.0] * 5, [np.nextafter(1, 0)] * 5]), np.zeros(2, int)
    for sampler in (table, FactorSampler(factors, table.pairs)):
        assert sampler.draw(chains, edges).tolist() == [[0] * 6, [6] * 6]


def test_each_node_speaks_its_own_language_when_they_differ():
    factors = random_factors(2, 5)
    conditionals = [factors.conditionals(i) for i in range(2)]
    sampler = FactorSampler(factors, stationary(conditionals[0]).ravel().cumsum())
    uniforms = np.random.default_rng(2).random((200, 100))
    for chain in range(2):
        s = sampler.draw(np.full(200, chain), uniforms)
        costs = [-np.log(p[s[:, :-2], s[:, 1:-1], s[:, 2:]]).mean() for p in conditionals]
        own = entropy_rate(conditionals[chain], stationary(conditionals[chain]))
        assert costs[chain] == pytest.approx(own, abs=0.03)
        assert costs[1 - chain] > own + 0.1


def test_evaluation_adds_the_mean_divergence_to_the_floor():
    task = small_language()
    # All-zero parameters give equal logits, whose divergence from P is ln V - H(P).
    entropy = -(task._targets * task._targets.log()).sum(-1).mean().item()
    metrics = task.evaluate(torch.zeros(task.layout.numel))
    assert metrics["excess"] == pytest.approx(math.log(6) - entropy, abs=1e-6)
    assert metrics["loss"] == task.floor + metrics["excess"]


def test_a_model_that_diverged_is_not_at_the_floor():
    task = small_language()
    assert math.isnan(task.evaluate(torch.full((task.layout.numel,), math.nan))["loss"])


def test_the_base_language_is_evaluated_whatever_the_nodes_speak():
    same, own = small_language(), small_language(heterogeneity=0.7)
    for task in (same, own):
        task.bind(0, 3)
    assert same.floor == own.floor
    assert same.evaluate(start(same)) == own.evaluate(start(own))


def test_the_language_does_not_depend_on_the_seed_of_the_run():
    task = small_language()
    task.bind(0, 1)
    before = task.describe(), task.evaluate(start(task))
    task.bind(1, 1)
    assert (task.describe(), task.evaluate(start(task))) == before


def test_a_chain_that_never_settles_is_refused():
    periodic = np.zeros((3, 3, 3))  # 0 is followed by 1 or 2, these by 0
    periodic[:, 0, 1:] = 0.5
    periodic[:, 1:, 0] = 1.0
    with pytest.raises(ValueError, match="mixes too slowly"):
        stationary(periodic)


# --- models -----------------------------------------------------------------------------------


def drawn(module):
    reset(module, torch.Generator().manual_seed(0))
    return module


def test_attention_equals_torchs_own():
    block = Block(heads=2, width=8)
    qkv = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0))
    mask = torch.full((5, 5), -math.inf).triu(1)
    q, k, v = (part.view(3, 5, 2, 4).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(block._attend(qkv, mask), expected.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("tied", [False, True])
def test_a_prediction_does_not_see_later_tokens(tied):
    model = drawn(GPT(11, context=6, layers=2, heads=2, width=8, tied=tied))
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 9, 9]])
    logits = model(tokens)
    torch.testing.assert_close(logits[0, :3], logits[1, :3])
    assert not torch.allclose(logits[0, 3:], logits[1, 3:])


@pytest.mark.parametrize(
    ("model", "example", "units"),
    [
        (GPT(64, 32, layers=2, heads=4, width=32), torch.zeros(1, 32, dtype=torch.long), 32),
        (MLP(64, (32, 16), 10), torch.zeros(1, 64), 1),
        (CNN(8, 8, 10), torch.zeros(1, 64), 1),
    ],
    ids=["gpt", "mlp", "cnn"],
)
def test_flops_are_three_times_what_torch_counts_forward(model, example, units):
    with FlopCounterMode(display=False) as counter:
        model(example)
    # Torch counts matmuls and convolutions; ours adds biases, norms and positions: a few percent.
    assert model.flops * units == pytest.approx(3 * counter.get_total_flops(), rel=0.07)


def test_a_module_with_unknown_parameters_is_refused():
    with pytest.raises(ValueError, match="0=PReLU: cannot draw its parameters"):
        drawn(torch.nn.Sequential(torch.nn.PReLU()))


def test_forward_equals_the_module_with_its_parameters_loaded():
    task = Digits("mlp", width=5, examples=3)
    module = MLP(64, (5,), 10)
    params = start(task)
    module.load_state_dict(task.layout.views(params))
    images = torch.rand(3, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(task.forward(params, images), module(images))


def test_threads_get_the_gradients_of_one_thread():
    task = small_language()
    task.bind(0, 8)
    params = [start(task) * (1 + i) for i in range(8)]
    batch = task.batch(np.arange(8), np.zeros(8, int))
    alone = [grad(task.loss)(params[i], batch[i]) for i in range(8)]
    fresh = small_language()
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(grad(fresh.loss), params[i % 8], batch[i % 8]) for i in range(64)]
    assert all(torch.equal(job.result(), alone[i % 8]) for i, job in enumerate(jobs))


def test_a_tied_model_has_one_table_of_tokens():
    model = drawn(GPT(11, context=6, layers=1, heads=2, width=8, tied=True))
    tensors = dict(model.named_parameters())
    loss = functional_call(model, tensors, (torch.tensor([[1, 2]]),)).square().sum()
    (gradient,) = torch.autograd.grad(loss, [tensors["token.weight"]])
    assert (gradient != 0).any(dim=1).all()  # rows that were no input are reached as outputs


# --- digits -----------------------------------------------------------------------------------


def test_label_distributions_have_the_moments_of_dirichlet():
    task = Digits(label_alpha=0.5)
    task.bind(0, 20_000)
    shares = task.label_distributions
    mean = task._counts / task._counts.sum()
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(shares.mean(0), mean, atol=0.006)
    np.testing.assert_allclose(shares.var(0), mean * (1 - mean) / (0.5 * 10 + 1), rtol=0.06)


def test_labels_are_drawn_from_the_nodes_distribution():
    task = Digits(examples=2000, label_alpha=0.3)
    task.bind(0, 3)
    _, labels = task.batch(np.arange(3), np.zeros(3, int))
    for node in range(3):
        shares = np.bincount(labels[node], minlength=10) / 2000
        np.testing.assert_allclose(shares, task.label_distributions[node], atol=0.045)


def test_without_an_alpha_all_nodes_see_the_same_distribution():
    task = Digits()
    task.bind(0, 4)
    assert (task.label_distributions == task.label_distributions[0]).all()
    assert task.label_distributions.min() > 0.09


def test_held_out_digits_are_a_quarter_and_never_drawn():
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    of_image = {row.tobytes(): d for row, d in zip((pixels / 16).astype(np.float32), digits)}
    task = Digits(examples=4000)
    task.bind(0, 4)
    images, labels = (part.flatten(0, 1) for part in task.batch(np.arange(4), np.zeros(4, int)))
    assert all(of_image[row.tobytes()] == d for row, d in zip(images.numpy(), labels.tolist()))
    seen = {row.tobytes() for row in images.numpy()}
    held_out = {row.tobytes() for row in task._held_out[0].numpy()}
    assert len(held_out) == 449
    assert seen.isdisjoint(held_out)


# --- quadratic --------------------------------------------------------------------------------


def test_gradient_descent_on_the_quadratic_follows_its_closed_form():
    task = Quadratic(spectrum=[1.0, 0.5, 0.1])
    task.bind(0, 2)
    params = first = start(task)
    for t in range(20):
        batch = tuple(part[0] for part in task.batch(np.array([0]), np.array([t])))
        params = params - 0.3 * grad(task.loss)(params, batch)
    optimum = torch.from_numpy(task.optimum).float()
    decay = (1 - 0.3 * torch.tensor([1.0, 0.5, 0.1])) ** 20
    torch.testing.assert_close(params, optimum + decay * (first - optimum))


def test_the_quadratics_floor_is_the_mean_of_the_nodes_losses_at_the_optimum():
    task = Quadratic(dimension=6, heterogeneity=2.0)
    task.bind(0, 5)
    optimum = torch.from_numpy(task.optimum).float()
    batch = task.batch(np.arange(5), np.zeros(5, int))
    losses = vmap(task.loss, in_dims=(None, 0))(optimum, batch)
    assert task.floor == pytest.approx(losses.mean().item(), rel=1e-5)
    assert task.evaluate(optimum)["loss"] == pytest.approx(task.floor)
    elsewhere = optimum + 1.0
    losses = vmap(task.loss, in_dims=(None, 0))(elsewhere, batch)
    assert task.evaluate(elsewhere)["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)


def test_gradient_noise_is_normal_with_the_given_deviation():
    task = Quadratic(dimension=400, noise=0.5)
    task.bind(0, 50)
    _, noise = task.batch(np.arange(50), np.zeros(50, int))
    assert noise.mean().item() == pytest.approx(0.0, abs=0.015)
    assert noise.std().item() == pytest.approx(0.5, rel=0.02)
    assert (noise.abs() < 0.5).float().mean().item() == pytest.approx(math.erf(0.5**0.5), abs=0.015)


def test_one_node_has_no_offset():
    task = Quadratic(heterogeneity=1.0)
    task.bind(0, 1)
    assert task.floor == 0.0


# --- text -------------------------------------------------------------------------------------


def test_nodes_train_on_the_first_part_and_evaluate_on_the_rest(tmp_path):
    task = small_text(tmp_path / "a.txt", b"a" * 900 + b"b" * 100, sequences=50)
    task.bind(0, 3)
    assert (task.batch(np.arange(3), np.arange(3)) == ord("a")).all()
    assert (task._held_out == ord("b")).all()


def test_sharded_nodes_read_stretches_of_their_own(tmp_path):
    task = small_text(tmp_path / "a.txt", b"a" * 450 + b"b" * 550, sequences=50, sharded=True)
    task.bind(0, 2)
    batch = task.batch(np.arange(2), np.zeros(2, int))
    assert (batch[0] == ord("a")).all()
    assert (batch[1] == ord("b")).all()


def test_windows_are_consecutive_bytes(tmp_path):
    task = small_text(tmp_path / "a.txt", bytes(range(100)), held_out=0.2)
    task.bind(0, 1)
    assert (task.batch(np.array([0]), np.array([0])).diff(dim=-1) == 1).all()


def test_a_zero_model_pays_eight_bits_per_byte(tmp_path):
    task = small_text(tmp_path / "a.txt", b"some words of prose " * 20)
    task.bind(0, 1)
    assert task.evaluate(torch.zeros(task.layout.numel))["bits_per_byte"] == pytest.approx(8)


def test_the_size_limit_counts_over_all_files(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name * 10)
    assert (
        Files([str(tmp_path / "a"), str(tmp_path / "b")], limit=15).read() == b"a" * 10 + b"b" * 5
    )


def test_a_limit_may_cut_a_character_but_a_file_may_not_end_in_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("é".encode() * 3)
    assert Files(str(path), limit=5).read() == "éé".encode() + b"\xc3"
    path.write_bytes(b"abc\xc3")
    with pytest.raises(ValueError, match="byte 3 is not UTF-8"):
        Files(str(path)).read()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"paths='.*nowhere.txt': no such file"):
        Files(str(tmp_path / "nowhere.txt")).read()


def test_a_text_that_is_too_short_says_how_long_it_must_be(tmp_path):
    task = small_text(tmp_path / "a.txt", b"x" * 30)
    with pytest.raises(ValueError, match=r"30 bytes are too few .* give 60 or more"):
        task.bind(0, 1)
    enough = small_text(tmp_path / "a.txt", b"x" * 60)
    enough.bind(0, 1)


def test_pythons_documentation_is_long_enough_to_learn_from():
    text = PythonDocs().read()
    assert len(text) > 300_000
    assert text == PythonDocs().read()


def fake_datasets(monkeypatch, load) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_streaming_stops_at_the_limit(monkeypatch):
    def rows(*args, **options):
        assert options["streaming"]
        while True:
            yield {"text": "abc", "id": 1}

    fake_datasets(monkeypatch, rows)
    assert HuggingFace(limit=12).read() == b"abc\n\nabc\n\nab"


def test_without_the_package_the_offline_choices_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"archipelago-sim\[hf\].*task=markov.*task=text"):
        HuggingFace().read()


def test_without_a_network_the_offline_choices_are_named(monkeypatch):
    def unreachable(*args, **options):
        raise ConnectionError("Couldn't reach the Hub")

    fake_datasets(monkeypatch, unreachable)
    with pytest.raises(ConnectionError, match=r"TinyStories.*Couldn't reach.*task=digits"):
        HuggingFace().read()


def test_a_wrong_column_names_those_with_text(monkeypatch):
    fake_datasets(monkeypatch, lambda *args, **options: [{"story": "once", "id": 1}])
    with pytest.raises(ValueError, match=r"field='text': .*\['story'\]"):
        HuggingFace().read()


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: small_language(vocabulary=1), "vocabulary=1: must be an integer >= 2"),
        (lambda: small_language(vocabulary=1000), "vocabulary=1000: must be 2 to 256"),
        (lambda: small_language(context=1), "context=1: must be an integer >= 2"),
        (lambda: small_language(scale=-1.0), "scale=-1.0: must be a finite number >= 0"),
        (lambda: small_language(sequences=2.5), "sequences=2.5: must be an integer"),
        (lambda: small_language(width=9), "width=9: must be a multiple of heads=2; try 8"),
        (lambda: Digits("rnn"), "model='rnn': must be one of .*; try 'cnn'"),
        (lambda: Digits(label_alpha=0.0), "label_alpha=0.0: must be > 0"),
        (lambda: Quadratic(condition=0.5), "condition=0.5: must be >= 1"),
        (lambda: Quadratic(spectrum=[1.0, 0.0]), r"spectrum\[1\]=0.0: must be > 0"),
        (lambda: Quadratic(spectrum=[]), "spectrum=.*at least one"),
        (lambda: Text(PythonDocs(), held_out=1.0), "held_out=1.0: must be between 0 and 1"),
        (lambda: Files([]), "paths=.*at least one file"),
        (lambda: Files("a.txt", limit="16 bananas"), "limit=.*unknown unit"),
    ],
)
def test_a_bad_argument_is_named_with_its_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
