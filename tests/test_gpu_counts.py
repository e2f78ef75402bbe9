"""The count of a step for a GPU: its operations, its memory, its fused kernels, and the plan that is run on one."""

import json
import math
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import configs
import model as models
from tests import bench, bench_gpu, gpu_counts
from tests.gpu_counts import GPUS, Kernel

SIZE = (2, 64)


@pytest.fixture(scope="module")
def mix(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mix")
    bench.write_mix(folder)
    return folder


@pytest.mark.parametrize("family", configs.FAMILIES)
def test_flops_are_those_of_a_real_step(mix, family):
    """PyTorch's own counter counts the same products on real tensors; only attention differs, by its recomputation."""
    run, micro_batches, _ = gpu_counts.prepare(mix, GPUS["h100"], 16, "packed", *SIZE, family)
    run.model.encoder.config.attention_dropout = 0.1  # the counter does not know the fused kernel
    for layer in run.model.encoder.layers:
        layer.attention_dropout = 0.1
    kernels, _ = gpu_counts.record_step(run.model.encoder.config, micro_batches, torch.bfloat16)
    counted = sum(k.flops for k in kernels[0] if "attention" not in k.name)
    with FlopCounterMode(display=False) as counter:
        run.model(micro_batches[0])[:, 0].sum().backward()
    by_operator = counter.get_flop_counts()["Global"]
    assert counted == sum(n for operator, n in by_operator.items() if "bmm" not in str(operator))
    attention = sum(k.flops for k in kernels[0] if "attention" in k.name)
    assert attention == sum(n for operator, n in by_operator.items() if "bmm" in str(operator)) * 7 / 6


def test_packed_rows_need_fewer_kernels_bytes_and_no_padding(mix):
    ways = gpu_counts.predict(mix, GPUS["h100"], 1, *SIZE)
    assert [x["micro_batches"] for x in ways.values()][1:] == [1, 1, 1]
    kernels = [x["kernels"] for x in ways.values()]
    n_bytes = [x["gigabytes"] for x in ways.values()]
    assert kernels == sorted(kernels, reverse=True) and n_bytes == sorted(n_bytes, reverse=True)
    assert ways["packed rows"]["padding"] < 0.01 < ways["padded"]["padding"]
    assert list(gpu_counts.predict(mix, GPUS["v100"], 4, *SIZE)) == ["padded", "packed rows"]


@pytest.mark.parametrize("ranks, most", [(1, 0.006), (4, 0.012)])
def test_hardly_a_token_of_a_run_is_padding(mix, ranks, most):
    """Over 20 steps of Table 1's mix, each in one micro-batch; a row is 0.4 % of one rank, 1.6 % of each of four."""
    run, _, _ = gpu_counts.prepare(mix, GPUS["h100"], ranks, "packed", *SIZE)
    tokens = computed = 0
    for step in range(20):
        (micro_batch,), batch = run.batches.assemble(step)
        tokens, computed = tokens + batch.length.sum(), computed + ranks * micro_batch.ids.numel()
    assert 0 < 1 - tokens / computed < most


@pytest.mark.parametrize("family", configs.FAMILIES)
def test_memory_is_what_the_model_keeps(mix, family):
    """estimate_memory has the same, from a formula."""
    run, *_ = gpu_counts.prepare(mix, GPUS["h100"], 16, "packed", 3, 128, family)
    c = run.model.encoder.config
    counted = gpu_counts.bytes_per_token(c, torch.bfloat16, 256)
    assert counted == pytest.approx(gpu_counts.hardware.estimate_memory(c, 0)[1], rel=0.15)


def test_fusing_keeps_what_others_use():
    """A product, three pointwise operators, of which the second's result is used later, and a product."""
    kernels = [
        Kernel("mm", {1: 10, 2: 10}, {3: 8}, 100, (2, 2), True),
        Kernel("add", {3: 8, 4: 8}, {5: 8}, 0, (2, 2), True),
        Kernel("gelu", {5: 8}, {6: 4}, 0, (2, 2), True),
        Kernel("mul", {6: 4}, {7: 4}, 0, (2, 2), True),
        Kernel("mm", {7: 4, 2: 10}, {8: 8}, 100, (2, 2), True),
        Kernel("gelu_backward", {8: 8, 6: 4}, {9: 4}, 0, (2, 2), True),
    ]
    fused = gpu_counts.fuse(kernels)
    assert [k.name for k in fused] == ["mm", "fused", "mm", "gelu_backward"]
    assert fused[1].reads == {3: 8, 4: 8} and fused[1].writes == {6: 4, 7: 4}
    outside = [k._replace(in_encoder=False) for k in kernels]
    assert gpu_counts.fuse(outside) == outside


def test_cost_takes_the_slowest_of_launch_bytes_and_products():
    gpu = GPUS["h100"]
    short, large = Kernel("add", {1: 8}, {2: 8}, 0, (1,), True), Kernel("add", {1: 3 * 10**9}, {2: 0}, 0, (1,), True)
    n = 128 * 132
    product = Kernel("mm", {1: 8}, {2: 8}, 2 * n**3, (n, n), True)
    assert gpu_counts.cost(gpu, [[short] * 100], 0, 1).step == pytest.approx(100 * gpu_counts.LAUNCH)
    assert gpu_counts.cost(gpu, [[large]], 0, 1).step == pytest.approx(1e-3)
    expected = 2 * n**3 / (790e12 * 0.85)
    assert gpu_counts.cost(gpu, [[product]], 0, 1).step == pytest.approx(expected)
    half_a_wave = product._replace(shape=(128, 128 * 66))
    assert gpu_counts.efficiency(half_a_wave, gpu) == pytest.approx(0.85 / 2)
    assert gpu_counts.cost(gpu, [[product]], 10**12, 2).step > 2 * 10**12 * 4 / gpu.link / 2  # the exchange


def test_the_paper_s_batching_of_the_benchmark_runs(mix):
    """PyTorch's own encoder takes the micro-batches that ours takes."""
    run, micro_batches, _ = gpu_counts.prepare(mix, GPUS["h100"], 16, "padded", *SIZE)
    plain = bench.Plain(run.model.encoder.config)
    loss = plain(micro_batches[0]).sum().item()
    assert math.isfinite(loss) and loss > 0


def test_the_plan_for_a_gpu_runs(tmp_path, capsys, monkeypatch):
    """On a CPU, with a tiny encoder and few steps: every stage, and one file with all of them.

    The ways that fail, here those whose kernel a CPU lacks, are named there and do not end it.
    """
    out, predicted = tmp_path / "gpu.json", tmp_path / "predicted.json"
    monkeypatch.setattr(gpu_counts, "report_memory", lambda *_: None)
    monkeypatch.setattr(sys, "argv", f"gpu_counts.py --gpu v100 --size 1x64 --out {predicted}".split())
    gpu_counts.main()
    monkeypatch.setattr(bench_gpu.Bench, "name", lambda _: "Tesla V100")
    monkeypatch.setattr(bench_gpu.hardware, "measure_matmul_flops", lambda *_: 1e11)  # it takes long
    monkeypatch.setattr(models.Encoder, "compile", lambda _: None)  # it takes long, and has a test of its own
    bench_gpu.main(f"--size 1x64 --batch 24 --steps 2 --out {out} --predicted {predicted}".split())
    results = json.loads(out.read_text())
    assert list(results) == [stage.__name__ for stage in bench_gpu.STAGES]
    failed = {way for ways in results.values() for way, x in ways.items() if isinstance(x, dict) and "error" in x}
    assert failed == {way for way in results["attention"] if way.startswith("efficient")} and len(failed) == 3
    ways = {name: x for name, x in results["correct"].items() if isinstance(x, dict)}
    assert len(ways) == 4 and max(x["losses"] for x in ways.values()) < 1e-2
    assert ways["packed, fp32"]["gradient"] < 1e-4 and max(x["gradient"] for x in ways.values()) < 0.05
    assert results["correct"]["resume, largest difference of a weight"] == 0
    assert (
        results["packed"]["packed rows"]["predicted"]["step_ms"] > 0 and "kernels" in results["profile"]["packed rows"]
    )
    assert all(math.isfinite(x["tokens_per_s"]) for x in results["packed"].values() if isinstance(x, dict))
    assert "padded" in capsys.readouterr().out
