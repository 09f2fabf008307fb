"""Workloads: published parameter counts and step times, payload bytes, memory."""

import pytest
import torch

from sim.compute.device import GPUS, Device
from sim.compute.layout import Layout
from sim.streams import Streams
from sim.workload import Workload, llama3_405b, one_billion, ten_billion, transformer

SMALL = transformer("small", 2, 64, 4, 2, 128, 100, context=16)


class _Half:
    """A codec of two bytes per value that remembers what it was asked."""

    sized_by_data = False

    def __init__(self):
        self.calls = []

    def nbytes(self, layout):
        self.calls.append(layout)
        return 2 * layout.numel


class _ByData:
    sized_by_data = True

    def nbytes(self, layout):
        raise AssertionError("must not be asked")


class _Task:
    layout, flops_per_token, tokens_per_step = Layout.flat(1000), 6000.0, 128


@pytest.mark.parametrize(
    ("workload", "published"),
    [
        (llama3_405b(), 405_853_388_800),
        (ten_billion(), 10_211_381_248),
        (transformer("8B", 32, 4096, 32, 8, 14_336, 128_256), 8_030_261_248),
        (transformer("1B", 16, 2048, 32, 8, 8192, 128_256, tied=True), 1_235_814_400),
        (transformer("1.1B", 22, 2048, 32, 4, 5632, 32_000), 1_100_048_384),
    ],
)
def test_parameter_counts_are_the_published_ones(workload, published):
    """Llama 3 405B, INTELLECT-1, Llama 3 8B, Llama 3.2 1B, TinyLlama: as their files hold."""
    assert workload.layout.numel == published


def test_one_billion_is_within_six_percent_of_its_name():
    assert one_billion().layout.numel == pytest.approx(1e9, rel=0.06)


def test_flops_follow_the_palm_formula():
    multiplied = SMALL.layout.numel - 100 * 64  # all but the table that is only looked up
    assert SMALL.flops_per_token == 6 * multiplied + 12 * 2 * 64 * 16


def test_a_tied_head_multiplies_although_it_is_the_input_table():
    tied = transformer("tied", 2, 64, 4, 2, 128, 100, tied=True, context=16)
    assert tied.flops_per_token == SMALL.flops_per_token


def test_flops_of_the_weights_match_a_counted_forward_pass():
    from torch.utils.flop_counter import FlopCounterMode

    matrices = {n: s for n, s in SMALL.layout.shapes.items() if len(s) == 2 and n != "embed"}
    with FlopCounterMode(display=False) as counter:
        for out, inner in matrices.values():
            torch.empty(1, inner, device="meta") @ torch.empty(inner, out, device="meta")
    norms = 6 * 5 * 64  # five norm vectors, counted as weights by the formula
    attention = 12 * 2 * 64 * 16
    assert SMALL.flops_per_token == 3 * counter.get_total_flops() + norms + attention


def test_eight_h100_take_the_published_time_for_a_round_of_intellect_1():
    """38 minutes for 100 steps of 1,048,576 tokens at MFU 0.433 (arXiv 2412.01152, table 2)."""
    node = Device("h100", gpus_per_node=8, mfu=0.433, jitter=0).bind(1, Streams(0))
    flops = ten_billion(tokens_per_step=1_048_576).flops_per_step
    assert node.seconds(flops, [0], [0], count=100)[0] / 60 == pytest.approx(38, rel=0.02)


def test_a_payload_is_sized_once_per_codec_and_layout():
    codec, part = _Half(), SMALL.layout.select(["embed"])
    sizes = [SMALL.nbytes(codec), SMALL.nbytes(codec), SMALL.nbytes(codec, part)]
    assert sizes == [2 * SMALL.layout.numel] * 2 + [2 * 6400]
    assert codec.calls == [SMALL.layout, part]


def test_a_codec_sized_by_data_is_refused():
    with pytest.raises(ValueError, match="timing-only runs cannot"):
        SMALL.nbytes(_ByData())


def test_a_measured_density_is_charged_rounded_up():
    workload = Workload("w", Layout.flat(1001), 6.0)
    assert workload.density_nbytes(_ByData(), bits_per_value=0.5) == 63  # 62.5625


def test_a_density_of_a_codec_of_fixed_size_is_refused():
    with pytest.raises(ValueError, match="use nbytes"):
        SMALL.density_nbytes(_Half(), 1.0)


def test_the_proxy_is_the_trained_model_in_float32():
    proxy = Workload.of_task(_Task())
    assert (proxy.layout, proxy.flops_per_step) == (_Task.layout, 6000.0 * 128)
    assert proxy.memory_needed() == {"weights": 4e3, "gradients": 4e3, "optimizer state": 8e3}


def test_mixed_precision_adamw_needs_sixteen_bytes_per_parameter():
    parts = ten_billion().memory_needed()
    activations = parts.pop("activations")
    assert sum(parts.values()) == 16 * ten_billion().layout.numel
    assert activations == (2 * 42 * 4096 + 34 * 4096 + 6 * 128_256) * 8192


def test_a_row_of_state_takes_four_bytes_per_parameter():
    plain, diloco = SMALL.memory_needed(), SMALL.memory_needed(state_rows=4)
    assert sum(diloco.values()) - sum(plain.values()) == 8 * SMALL.layout.numel


def test_state_is_float32():
    assert SMALL.state_nbytes(copies=2) == 8 * SMALL.layout.numel


def test_a_model_that_fits_passes():
    one_billion().check_fits(GPUS["rtx4090"].memory, "rtx4090")


def test_a_model_that_does_not_fit_is_refused_with_the_sum():
    with pytest.raises(ValueError) as error:
        one_billion().check_fits(GPUS["rtx3060"].memory, "rtx3060", state_rows=4)
    assert str(error.value) == (
        "workload 1B (1.06B parameters) needs 2.1 GB weights + 2.1 GB gradients + "
        "4.2 GB master weights + 16.9 GB optimizer state + 0.7 GB activations = 26.0 GB; "
        "rtx3060 has 12.0 GB; choose for example rtx5090 (32.0 GB) or a smaller workload"
    )


def test_a_model_too_large_for_any_card_is_sharded():
    with pytest.raises(ValueError, match="gpus=b200, gpus_per_node=37"):
        llama3_405b().check_fits(GPUS["h100"].memory)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="heads=3"):
        transformer("bad", 2, 64, 3, 1, 128, 100)


@pytest.mark.parametrize("tokens", [0, -5])
def test_steps_without_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match=f"tokens_per_step={tokens}"):
        one_billion(tokens_per_step=tokens)
