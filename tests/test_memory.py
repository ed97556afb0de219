"""Out of memory: what real libraries raise when memory ends, wherever it ends, is one line of panokit."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from panokit import load_model
from panokit.backbones.diffusers.parts import explained
from panokit.errors import OutOfMemoryError, RankFailedError, SettingError
from panokit.memory import is_out_of_memory, memory_explained

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("could not create a primitive"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("unable to mmap 8 bytes from file <x>: Cannot allocate memory (12)"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    MemoryError(),
]
OTHERS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("out of memory lane"),
    OSError(errno.ENOSPC, "No space left on device"),
    RankFailedError("rank 1 failed: RuntimeError: out of memory"),
    SettingError("out of memory"),
]


@pytest.mark.parametrize("error", FULL)
def test_what_libraries_raise_when_memory_ends_is_one_error_of_one_line(error: Exception) -> None:
    assert is_out_of_memory(error)
    one_line = r"^the canvas does not fit the memory \(.+\): try checkpointing.*"
    with pytest.raises(OutOfMemoryError, match=one_line) as raised, memory_explained("the canvas"):
        raise error
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("error", FULL)
def test_the_files_of_a_model_are_not_blamed_for_it(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, explained("the unet", "check the files"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("error", OTHERS)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as raised, memory_explained("the canvas"):
        raise error
    assert raised.value is error


def test_a_model_that_the_memory_does_not_hold_is_named(folder: Path, tmp_path: Path) -> None:
    """One weight of a petabyte, which no allocator gives."""
    model = Path(shutil.copytree(folder, tmp_path / "model"))
    config = json.loads((model / "unet" / "config.json").read_text())
    (model / "unet" / "config.json").write_text(json.dumps({**config, "conv_out_kernel": 3_000_001}))
    with pytest.raises(OutOfMemoryError, match=r"^the model .*/model does not fit the memory \(.+\): try ") as raised:
        load_model(model)
    assert len(str(raised.value).splitlines()) == 1


SCRIPT = """
import json, resource, warnings
from pathlib import Path
from panokit import Runtime, Sampler
from panokit.errors import OutOfMemoryError

sampler = Sampler(runtime=Runtime(accelerator="cpu", micro_batch=32))
sampler("a lake", height=128, width=128, steps=2, progress=False)
run = sampler.begin("a lake", height=256, width=1024, steps=2)
warnings.simplefilter("ignore")
for what, mebibytes in ((run.step, 4), (run.step, 40), (lambda: sampler.decode(run), 4)):
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + mebibytes * 2**20, -1))
    try:
        what()
        ended = "fine"
    except OutOfMemoryError as error:
        ended = str(error)
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    print(json.dumps(ended))
"""


# Other systems have no /proc/self/statm, or do not obey RLIMIT_AS: there nothing would run out of memory.
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's memory is Linux's")
@pytest.mark.sweep
def test_a_process_with_little_memory_makes_its_windows_in_halves_or_says_so() -> None:
    """Real allocators and kernels fail here, with whatever they raise."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    *steps, decoded = map(json.loads, done.stdout.splitlines())
    assert all(ended == "fine" or " fit the memory " in ended for ended in steps)
    assert decoded.startswith("the picture does not fit the memory (")
