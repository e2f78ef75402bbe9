"""The count of a step for a GPU: its operations, its memory, its fused kernels, and the plan that is run on one."""

import argparse
import json
import math
import shutil
import signal
import sys
import time
from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import configs
import model as models
from tests import bench, bench_gpu, gpu_counts
from tests.gpu_counts import FAST, GPUS, SLOW, Kernel

SIZE = (2, 64)


@pytest.fixture(scope="module")
def mix(tmp_path_factory):
    """The benchmarks' mix of lengths, with fewer examples and a smaller vocabulary."""
    folder = tmp_path_factory.mktemp("mix")
    with pytest.MonkeyPatch.context() as m:
        m.setattr(bench, "VOCAB", 1000)
        m.setattr(bench, "TABLE_1", {task: n // 5 for task, n in bench.TABLE_1.items()})
        bench.write_mix(folder)
    return folder


@pytest.mark.parametrize("family", configs.ARCHITECTURES)
def test_flops_are_those_of_a_real_step(mix, family):
    """PyTorch's own counter counts the same products on real tensors; only attention differs, by its recomputation."""
    run = gpu_counts.prepare(mix, GPUS["h100"], 16, "packed", *SIZE, family)
    micro_batches, _ = run.batches.assemble(0)
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


@pytest.fixture(scope="module")
def ways(mix):
    """What is predicted for four H100s."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(gpu_counts, "STEPS", 4)
        return gpu_counts.predict(mix, GPUS["h100"], 4, *SIZE)


def test_packed_rows_need_fewer_launches_bytes_and_no_padding(ways):
    assert list(ways) == ["padded", "packed rows", "packed, compiled"]
    assert ways["padded"]["micro_batches"] > 1 and ways["packed rows"]["micro_batches"] == 1
    launches = [x["launches"] for x in ways.values()]
    n_bytes = [x["gigabytes"] for x in ways.values()]
    assert launches == sorted(launches, reverse=True) and n_bytes == sorted(n_bytes, reverse=True)
    assert ways["packed rows"]["padding"] < 0.02 < ways["padded"]["padding"]


def test_predictions_are_ranges(ways):
    """The MFU of one end is that of the step and the tokens of the same end."""
    for x in ways.values():
        pairs = x["host_ms"], x["step_ms"], x["mfu"], x["tokens_per_s"], x["by_class_ms"]["attention"]
        assert all(0 < low < high for low, high in pairs)
        low, high = x["step_ms"]
        for rate in (x["mfu"], x["tokens_per_s"]):
            assert rate[1] / rate[0] == pytest.approx(high / low)
        assert x["v1_french_minutes"] == pytest.approx([16_638 * low / 60_000, 16_638 * high / 60_000])


def test_launches_are_those_of_pytorch_s_cuda_build(mix):
    """A step of 12 layers, in one micro-batch, made 921 and 740 there (docs/measurements.md)."""
    run = gpu_counts.prepare(mix, GPUS["h100"], 16, "packed", 12, 64)
    micro_batches, _ = run.batches.assemble(0)
    (kernels,), _ = gpu_counts.record_step(run.model.encoder.config, micro_batches, torch.bfloat16)
    for counted, some in ((921, kernels), (740, gpu_counts.fuse(kernels))):
        assert gpu_counts.cost(GPUS["h100"], [some], 0, 1, SLOW).launches == pytest.approx(counted, rel=0.02)


def test_a_step_is_the_mean_of_a_run(mix, monkeypatch):
    """Of steps with 1, 3 and 8 micro-batches of a row, the second is nearest to the mean."""
    run = gpu_counts.prepare(mix, GPUS["h100"], 16, "packed", *SIZE)
    steps = {0: 1, 1: 3, 2: 8}
    _, batch = run.batches.assemble(0)
    monkeypatch.setattr(gpu_counts, "STEPS", 3)
    monkeypatch.setattr(run.batches, "assemble", lambda step: ([mock.Mock(ids=torch.zeros(256))] * steps[step], batch))
    mean = gpu_counts.mean_step(run, 2)
    assert (mean.micro_batches, mean.computed, len(mean.nearest)) == (4, 4 * 256, 3)
    assert mean.tokens == batch.length.sum() / 2


@pytest.mark.parametrize("ranks, most", [(1, 0.006), (4, 0.016)])
def test_hardly_a_token_of_a_run_is_padding(mix, ranks, most):
    """Over 20 steps of Table 1's mix, each in one micro-batch; a row is 0.4 % of one rank, 1.6 % of each of four."""
    mean = gpu_counts.mean_step(gpu_counts.prepare(mix, GPUS["h100"], ranks, "packed", *SIZE), ranks)
    assert mean.micro_batches == 1 and 0 < 1 - mean.tokens / mean.computed < most


@pytest.mark.parametrize("family", configs.ARCHITECTURES)
def test_memory_is_what_the_model_keeps(mix, family):
    """estimate_memory has the same, from a formula."""
    c = gpu_counts.prepare(mix, GPUS["h100"], 16, "packed", 3, 128, family).model.encoder.config
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
    attention = Kernel("_attention", {1: 8}, {2: 8}, 8 * 10**12, (1,), True)

    def step(kernels, n_parameters=0, ranks=1, end=FAST):
        return gpu_counts.cost(gpu, [kernels], n_parameters, ranks, end).step

    assert step([short] * 10_000) == pytest.approx(10_030 * 6e-6 + 10e-3)
    assert step([short] * 10_000, end=SLOW) == pytest.approx(10_030 * 15e-6 + 10e-3)
    assert step([large] * 20) == step([large] * 20, end=SLOW) == pytest.approx(20e-3)
    assert step([attention]) == pytest.approx(8 / 120) and step([attention], end=SLOW) == pytest.approx(8 / 80)
    expected = 2 * n**3 / (790e12 * 0.85)
    assert step([product] * 20) == pytest.approx(20 * expected)
    half_a_wave = product._replace(shape=(128, 128 * 66))
    assert gpu_counts.rate(half_a_wave, gpu, FAST) == pytest.approx(790e12 * 0.85 / 2)
    assert step([product], 10**12, 2) > 2 * 10**12 * 4 / gpu.link / 2  # the exchange


def test_the_paper_s_batching_of_the_benchmark_runs(mix):
    """PyTorch's own encoder takes the micro-batches that ours takes."""
    run = gpu_counts.prepare(mix, GPUS["h100"], 16, "padded", *SIZE)
    micro_batches, _ = run.batches.assemble(0)
    plain = bench.Plain(run.model.encoder.config)
    loss = plain(micro_batches[0]).sum().item()
    assert math.isfinite(loss) and loss > 0


def test_the_plan_for_a_gpu_runs(mix, ways, tmp_path, capsys, monkeypatch, known_machine):
    """On a CPU, with a tiny encoder and few steps: every stage, and one file with all of them.

    A stage that fails, a way whose kernel a CPU lacks, and a stage without time are named there and end nothing.
    """

    def fail(*_):
        raise RuntimeError("CUDA error")

    out, predicted = tmp_path / "gpu.json", tmp_path / "predicted.json"
    monkeypatch.setattr(bench, "write_mix", lambda folder: shutil.copytree(mix, folder, dirs_exist_ok=True))
    monkeypatch.setattr(gpu_counts, "predict", lambda *_: ways)
    monkeypatch.setattr(gpu_counts, "report_memory", lambda *_: None)
    monkeypatch.setattr(sys, "argv", f"gpu_counts.py --gpu h200 --size 1x64 --out {predicted}".split())
    gpu_counts.main()
    monkeypatch.setattr(bench_gpu.Bench, "name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(models.Encoder, "compile", lambda _: None)  # it takes long, and has a test of its own
    monkeypatch.setattr(bench_gpu, "measure_kernels", fail)
    ends = dict.fromkeys(bench_gpu.STAGES, 10_000) | {bench_gpu.padded: 0}
    monkeypatch.setattr(bench_gpu, "STAGES", ends)
    bench_gpu.main(f"--size 1x64 --batch 24 --steps 2 --out {out} --predicted {predicted}".split())
    results, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert list(results) == ["machine", "packed", "attention", "correct", "profile", "padded", "losses"]
    found = {(stage, way): x for stage, ways in results.items() for way, x in ways.items()}
    errors = {place: x["error"] for place, x in found.items() if "error" in str(x)}
    lacking = {("attention", way) for way in results["attention"] if way.startswith("efficient")}
    assert len(lacking) == 3 and errors.keys() == lacking | {
        ("profile", "packed, compiled"), ("profile", "packed rows"), ("padded", "padded"),
    }  # fmt: skip
    assert errors["profile", "packed rows"] == "RuntimeError: CUDA error" and "not begun" in errors["padded", "padded"]
    assert all(f"{stage}: {json.dumps({way: x})} (" in printed for (stage, way), x in found.items())
    ways = {name: x for name, x in results["correct"].items() if isinstance(x, dict)}
    assert len(ways) == 4 and max(x["losses"] for x in ways.values()) < 1e-2
    assert ways["packed, fp32"]["gradient"] < 1e-4 and max(x["gradient"] for x in ways.values()) < 0.05
    assert results["correct"]["resume, largest difference of a weight"] == 0
    assert list(results["packed"]) == ["packed, compiled", "packed rows"]  # the default of a run is measured first
    for x in results["packed"].values():
        assert math.isfinite(x["tokens_per_s"]) and x["predicted"].keys() < x.keys()
        assert x["predicted"]["step_ms"][0] < x["predicted"]["step_ms"][1]


def test_kernels_of_a_step_are_counted(mix, tmp_path, known_machine):
    """By their class, beside the prediction."""
    args = argparse.Namespace(size=SIZE, family="modernbert", batch=24, predicted={})
    b = bench_gpu.Bench(args, shutil.copytree(mix, tmp_path / "mix"))
    b.predicted = {"packed rows": {"launches": 100, "by_class_ms": {}, "step_ms": []}}
    found = bench_gpu.measure_kernels(b, "packed rows", "off")
    assert found["launches"] > 100 and found["by_class_ms"]["matrices"] > 0
    assert found["predicted"] == {"launches": 100, "by_class_ms": {}}


def test_a_way_is_stopped_at_the_end_of_its_stage():
    before = signal.signal(signal.SIGALRM, bench_gpu.end_stage)
    try:
        stopped = bench_gpu.attempt(lambda: [time.sleep(0.01) for _ in range(10**6)], 0.05)
        assert stopped == {"error": "OutOfTime: stopped at the end of its stage"}
        assert bench_gpu.attempt(lambda: 1, 10) == 1 and signal.getitimer(signal.ITIMER_REAL)[0] == 0
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("content", [None, "{", '{"size": [12, 768], "family": "distilbert", "cases": []}', "{}"])
def test_predictions_of_another_encoder_are_refused(tmp_path, capsys, content):
    path = tmp_path / "predicted.json"
    if content:
        path.write_text(content)
    with pytest.raises(SystemExit):
        bench_gpu.main(f"--size 12x768 --family modernbert --predicted {path}".split())
    assert "--predicted" in capsys.readouterr().err.splitlines()[-1]
