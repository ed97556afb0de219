"""What needs processes of its own: two ranks on one device, and a compilation that may take too long.

    python -m gpu.processes ranks|compiled --device cuda --out FILE

is what such a process runs.
"""

import argparse
import faulthandler
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gpu.bench import SQUARE, Bench, finished, relative
from gpu.card import Card
from gpu.report import Outcome, Skipped
from panokit import Runtime
from panokit.errors import in_words
from panokit.testing.processes import free_port


def two_processes_on_one_device_make_the_same_bits(bench: Bench) -> Outcome:
    """Each process makes a picture alone, and then both make it together, as two machines of one device each do.

    panokit gives each rank a device of its own, and its way to exchange rows on CUDA, NCCL, refuses two ranks on one. Here the
    ranks exchange rows with Gloo instead. If Gloo cannot either, it is not possible on one card.
    """
    port = str(free_port())
    answers = _answers(bench, [["ranks", "--rank", str(rank), "--port", port] for rank in (0, 1)], most=75.0)
    if failed := [answer["refused"] for answer in answers if "refused" in answer]:
        raise Skipped(f"not possible on one card: {failed[0]}")
    same = all(answer["same"] for answer in answers) and answers[0]["sum"] == answers[1]["sum"]
    return Outcome(same, {"apart": max(answer["apart"] for answer in answers)}, "rows exchanged with Gloo")


def compiled_blocks_move_a_picture_by_rounding(bench: Bench) -> Outcome:
    if not bench.card.cuda:
        raise Skipped("needs a CUDA device: on a CPU a compilation takes minutes")
    (answer,) = _answers(bench, [["compiled"]])
    return Outcome(answer["apart"] <= 0.1, answer)


def ranks(bench: Bench, rank: int, port: int) -> dict[str, Any]:
    """A picture made alone, and together with the other rank."""
    from lightning.fabric import Fabric

    alone = bench.latents(bench.half)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(rank), "LOCAL_RANK": "0"}
    kind = bench.card.device.type
    try:
        # Opened here, because Fabric would bind the group to the device, which is not for Gloo.
        dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
        fabric = Fabric(accelerator=kind, devices=1, num_nodes=2, precision=bench.card.half, strategy="ddp")
        fabric.launch()
        sampler = bench.sampler(bench.half, runtime=Runtime(fabric=fabric, micro_batch=3, timeout=60.0))
        together = finished(bench.begin(sampler, SQUARE, 2))
    except RuntimeError as error:
        return {"refused": in_words(error)[:200]}
    return {"same": torch.equal(alone, together), "apart": relative(together, alone), "sum": float(together.double().sum())}


def compiled(bench: Bench) -> dict[str, Any]:
    """A picture made with compiled blocks, and without."""
    made, seconds = {}, {}
    for on in (False, True):
        run = bench.begin(bench.sampler(bench.half, compile=on, micro_batch=9), SQUARE, 4)
        seconds[on] = [bench.card.seconds(run.step) for _ in range(4)]
        made[on] = run.canvas
    return {
        "apart": relative(made[True], made[False]),
        "first step s": seconds[True][0],
        "s/step": min(seconds[True]),
        "s/step, not compiled": min(seconds[False]),
    }


def _answers(bench: Bench, calls: Sequence[Sequence[str]], most: float = math.inf) -> list[dict[str, Any]]:
    """Run some processes at once, each with words of its own: what each has answered.

    Args:
        bench: says on which device, and how long they may take.
        calls: the words of each process.
        most: the most seconds that they may take, if the section has more.

    Raises:
        Skipped: they take longer than that, and were ended.
        RuntimeError: one failed.
    """
    bench.forget()
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    limit = max(1.0, min(most, bench.left))
    common = ["--device", bench.card.device.type, "--limit", str(limit + 10), *["--tiny"] * bench.tiny]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(number)) for number in range(len(calls))]
        logs = [file.with_suffix(".log").open("w") for file in files]
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "gpu.processes", *call, *common, "--out", str(file)],
                env={**os.environ, "PYTHONPATH": path},
                stdout=log,
                stderr=log,
            )
            for call, file, log in zip(calls, files, logs, strict=True)
        ]
        try:
            end = time.monotonic() + limit
            for process in started:
                process.wait(timeout=max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise Skipped(f"it takes longer than {limit:.0f} s") from None
        finally:
            for process, log in zip(started, logs, strict=True):
                process.kill()
                process.wait()
                log.close()
        for file in files:
            if not file.exists():
                lines = file.with_suffix(".log").read_text(errors="replace").strip().splitlines()
                raise RuntimeError(f"a process failed: {lines[-1] if lines else 'without a word'}")
        return [json.loads(file.read_text()) for file in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["ranks", "compiled"])
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, required=True, help="seconds after which the process ends itself")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    faulthandler.dump_traceback_later(options.limit, exit=True)
    bench = Bench(Card.of(options.device), options.tiny)
    answer = ranks(bench, options.rank, options.port) if options.what == "ranks" else compiled(bench)
    options.out.write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
