"""Measures time and memory of the CKD loss beside the official formulation, TRL, Liger and three plain GEMMs.

    python benchmarks/ckd_loss.py [--rows 512 1536] [--vocab 32000] [--repeats 3] [--without trl liger]
                                  [--plot docs/ckd_loss.svg]
    python benchmarks/ckd_loss.py --rows 1536 --chunks 32 128 256    # ours with other chunk sizes: memory against time

Forward and backward with both gradients, float32, one CPU thread, hidden size 256, k = m = 100. Each measurement runs
in its own process. The losses take turns, so that other load on the machine affects all of them alike. Seconds and
memory are medians over the turns, ratios the medians of the ratios within a turn. Memory is the rise of the process's
peak resident set over its size before the call.

TRL and Liger have no top-k loss. Theirs is the forward KL over the full vocabulary (generalised JSD with beta = 0). It
also computes a teacher's logits, here of the same size as the student's. So it does more work and is shown for scale.

Shapes: T completion tokens, H hidden, V vocabulary, K teacher ids per token, M student ids per token.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HIDDEN, TOP = 256, 100
NAMES = {
    "ours": "ours (`fused_linear_ckd`)",
    "official": "whole log_softmax, autograd",
    "trl": "TRL 1.16 `generalized_jsd_loss`, beta 0",
    "liger": "Liger `LigerFusedLinearJSDLoss`, beta 0, eager",
    "gemms": "the three GEMMs alone",
}


def official(hidden_TH, weight_VH, ids_TK, logprobs_TK):
    """The formulation as published: log_softmax over [T, V], gather, topk; autograd computes the gradients."""
    import torch

    log_q_TV = torch.log_softmax(hidden_TH @ weight_VH.t(), dim=-1)
    fkl_T = (logprobs_TK.exp() * (logprobs_TK - log_q_TV.gather(1, ids_TK))).sum(1)
    top = log_q_TV.topk(TOP, dim=1)
    in_teacher_TM = (top.indices[:, :, None] == ids_TK[:, None, :]).any(-1)
    tail_T = (top.values.exp() * ~in_teacher_TM).sum(1)
    return (fkl_T + 10.0 * tail_T).mean()


def ours(hidden_TH, weight_VH, ids_TK, logprobs_TK, chunk_size=None):
    from star.ckd.loss import fused_linear_ckd

    return fused_linear_ckd(hidden_TH, weight_VH, ids_TK, logprobs_TK, top_m=TOP, chunk_size=chunk_size).loss


def trl(hidden_TH, weight_VH, ids_TK, logprobs_TK):
    import torch
    from trl.experimental.gold.gold_trainer import GOLDTrainer

    with torch.no_grad():
        teacher_TV = hidden_TH.flip(0) @ weight_VH.t()
    return GOLDTrainer.generalized_jsd_loss((hidden_TH @ weight_VH.t())[None], teacher_TV[None], beta=0)


def liger(hidden_TH, weight_VH, ids_TK, logprobs_TK):
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False)
    labels = torch.zeros(len(hidden_TH), dtype=torch.long)
    return loss(hidden_TH, weight_VH, hidden_TH.detach().flip(0), weight_VH.detach(), labels)


def gemms(hidden_TH, weight_VH, ids_TK, logprobs_TK):
    """The matrix products alone: logits, gradient of the hidden states, gradient of the head."""
    import torch

    with torch.no_grad():
        logits_TV = hidden_TH @ weight_VH.t()
        return logits_TV @ weight_VH, logits_TV.t() @ hidden_TH


LOSSES: dict[str, Callable] = {
    "ours": ours,
    "official": official,
    "trl": trl,
    "liger": liger,
    "gemms": gemms,
}


def measure(name: str, rows: int, vocab: int) -> dict[str, float]:
    """CPU seconds and peak MiB of one forward and backward in this process."""
    import torch

    torch.set_num_threads(1)
    small = make_case(32, 400)
    run_loss(name, small)  # loads code and libraries before the measurement
    case = make_case(rows, vocab)
    before = process_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    began = time.process_time()
    run_loss(name, case)
    return {"seconds": time.process_time() - began, "mib": process_mib("VmHWM") - before}


def run_loss(name: str, case: tuple) -> None:
    loss, _, chunk = name.partition("@")
    result = LOSSES[loss](*case, **({"chunk_size": int(chunk)} if chunk else {}))
    if name != "gemms":
        result.backward()


def make_case(rows: int, vocab: int) -> tuple:
    import torch

    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, HIDDEN, generator=rng).requires_grad_()
    weight = (0.1 * torch.randn(vocab, HIDDEN, generator=rng)).requires_grad_()
    ids = torch.stack([torch.randperm(vocab, generator=rng)[:TOP] for _ in range(16)]).repeat(-(-rows // 16), 1)[:rows]
    logprobs = torch.log_softmax(2 * torch.randn(rows, TOP, generator=rng), dim=1) - 0.05
    return hidden, weight, ids, logprobs


def process_mib(field: str) -> float:
    """Returns a memory figure of this process in MiB, such as VmRSS."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def compare(rows: int, vocab: int, repeats: int, *, names: list[str]) -> dict[str, list[dict[str, float]]]:
    """Returns the measurements of every turn by loss. The list is empty for a library that does not run here."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            command = [sys.executable, __file__, "--one", name, "--rows", str(rows), "--vocab", str(vocab)]
            ended = subprocess.run(command, capture_output=True, text=True)
            if ended.returncode == 0:
                found[name].append(json.loads(ended.stdout.splitlines()[-1]))
            else:
                reason = (ended.stderr.strip().splitlines() or ["no message"])[-1]
                print(f"{name} does not run here: {reason}", file=sys.stderr)
    return found


def median(runs: list[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def ratio(runs: list[dict[str, float]], others: list[dict[str, float]], key: str) -> float:
    """Returns the median over the turns of the ratio within a turn."""
    return statistics.median(run[key] / other[key] for run, other in zip(runs, others, strict=True))


def table(results: dict[tuple[int, int], dict]) -> Iterator[str]:
    import torch

    yield "| T | V | loss | CPU s | CPU s / official | CPU s / GEMMs | peak MiB | official MiB / peak MiB |"
    yield "|---:|---:|---|---:|---:|---:|---:|---:|"
    for (rows, vocab), found in results.items():
        whole, bare = found["official"], found["gemms"]
        for name, runs in found.items():
            loss, _, chunk = name.partition("@")
            label = NAMES[loss] + (f", {chunk} rows per chunk" if chunk else "")
            if not runs:
                yield f"| {rows} | {vocab} | {label} | not installed or does not run on this machine | | | | |"
                continue
            yield (
                f"| {rows} | {vocab} | {label} | {median(runs, 'seconds'):.2f} | {ratio(runs, whole, 'seconds'):.2f} | "
                f"{ratio(runs, bare, 'seconds'):.2f} | {median(runs, 'mib'):.1f} | {ratio(whole, runs, 'mib'):.1f} |"
            )
    yield ""
    yield f"One thread, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}; no GPU."


def plot(path: Path, results: dict[tuple[int, int], dict]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "star"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2))
    for axis, key, title in ((axes[0], "seconds", "CPU seconds"), (axes[1], "mib", "peak memory, MiB")):
        for name, label in NAMES.items():
            points = [(rows, median(found[name], key)) for (rows, _), found in results.items() if found.get(name)]
            axis.plot(*zip(*points, strict=True), marker="o", label=label) if points else None
        axis.set(title=title, xlabel="completion tokens T", yscale="log")
    axes[0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 1536], help="numbers of tokens T")
    parser.add_argument("--vocab", type=int, nargs="+", default=[32000], help="vocabulary sizes V")
    parser.add_argument("--repeats", type=int, default=3, help="number of turns")
    parser.add_argument("--without", nargs="+", choices=["trl", "liger"], default=[], help="libraries to leave out")
    parser.add_argument("--plot", type=Path, help="SVG file to write, over T at the first V; needs matplotlib")
    parser.add_argument(
        "--chunks", type=int, nargs="+", default=[], help="also measure ours with these numbers of rows per chunk"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments.rows[0], arguments.vocab[0])))
    else:
        names = [name for name in LOSSES if name not in arguments.without]
        names += [f"ours@{chunk}" for chunk in arguments.chunks]
        sizes = [(rows, vocab) for vocab in arguments.vocab for rows in arguments.rows]
        results = {size: compare(*size, arguments.repeats, names=names) for size in sizes}
        print("\n".join(table(results)))
        if arguments.plot:
            plot(arguments.plot, {key: found for key, found in results.items() if key[1] == arguments.vocab[0]})
