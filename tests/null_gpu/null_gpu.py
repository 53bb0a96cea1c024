"""A GPU that computes nothing: built when first needed, and what is counted on it.

    environment = null_gpu.environment(folder)        in the test: what a subprocess is started with
    counts = null_gpu.Counts()                        in that subprocess: launches, copies and waits since then

Torch must be a CUDA build; no GPU and no driver are needed, or used.
"""

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_HERE = Path(__file__).parent
_VARIABLE = "EGOM2P_NULL_GPU"
COUNTERS = ("launch", "gemm", "h2d", "h2d_pageable", "d2h", "d2d", "memset")
WAITS = ("stream_sync", "device_sync", "event_sync")
_ALL = (*COUNTERS, *WAITS, "h2d_bytes", "graph", "graph_kernels")


def why_not() -> str | None:
    """Why the stand-in cannot be used here; None where it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is no CUDA build, so there is no CUDA code to run"
    if sys.platform != "linux" or not shutil.which("gcc") or not shutil.which("nm"):
        return "building the stand-in for a GPU takes Linux, gcc and nm"
    if not (_site() / "nvidia").is_dir():
        return "the headers of CUDA do not lie beside torch"
    return None


def environment(folder: Path) -> dict[str, str]:
    """Variables under which a Python process sees one H200 that computes nothing; builds it in `folder` if needed."""
    runtime = folder / "null_gpu.so"
    sources = [_HERE / name for name in ("runtime.c", "driver.c", Path(__file__).name)]
    if not runtime.is_file() or runtime.stat().st_mtime < max(file.stat().st_mtime for file in sources):
        _build(folder)
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}
    root = _HERE.parents[1]
    rooms = (root, _HERE, *(root / name for name in ("tests", "tests/tokenizers", "tests/anytoany", "benchmarks")))
    paths = {"PYTHONPATH": os.pathsep.join(map(str, rooms))}
    return {
        **os.environ,
        **caches,
        **paths,
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "CUDA_MODULE_LOADING": "LAZY",
        "LD_LIBRARY_PATH": str(folder),
        "LD_PRELOAD": str(runtime),
        _VARIABLE: str(runtime),
    }


class Counts:
    """What happened on the stand-in since this was made, or since `take` was last called."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ[_VARIABLE])
        self._values = (ctypes.c_long * len(_ALL)).in_dll(self._library, "null_gpu_counts")
        self._before = list(self._values)

    def take(self) -> dict[str, int]:
        now = list(self._values)
        found = {name: new - old for name, new, old in zip(_ALL, now, self._before, strict=True)}
        self._before = now
        return {**found, "waits": sum(found[name] for name in WAITS)}

    def forget_launches(self) -> None:
        self._library.null_gpu_forget_launches()

    def launches(self, path: Path) -> Counter:
        """Launches of every kernel by its (mangled) name since `forget_launches`; written to `path` on the way."""
        self._library.null_gpu_write_launches(str(path).encode())
        lines = [line.split(" ", 1) for line in path.read_text().splitlines()]
        return Counter({name: int(count) for count, name in lines})


@contextlib.contextmanager
def waits() -> Iterator[Counter]:
    """Lines of the project at which the host waited for the device, innermost first."""
    import traceback

    where: Counter = Counter()

    def note(message, category, filename, lineno, file=None, line=None):
        if "synchronizing CUDA operation" in str(message):
            frames = [frame for frame in traceback.extract_stack() if "/egom2p/" in frame.filename]
            lines = [f"{frame.filename.split('/egom2p/')[-1]}:{frame.lineno}" for frame in frames[::-1][:3]]
            where[" < ".join(lines)] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield where
        finally:
            torch.cuda.set_sync_debug_mode("default")


# Bytes of these count as part of a product, which is limited by arithmetic; views move nothing.
_PRODUCTS = re.compile(
    r"aten::(mm|addmm|bmm|baddbmm|linear|matmul|_?scaled_dot|_flash|_efficient|_cudnn|convolution)|torch_attn::"
)
_VIEWS = re.compile(
    r"aten::(t|numpy_T|view|_unsafe_view|detach|slice|select|unbind|split|split_with_sizes|permute|transpose|expand|unsqueeze"
    r"|squeeze|alias|as_strided|empty|empty_like|new_empty|empty_strided|_reshape_alias|resize_|unflatten)(\.|$)"
)
# In inference mode these are seen whole.
_MAY_BE_VIEWS = re.compile(r"aten::(flatten|reshape|to|contiguous)(\.|$)")


class Traffic(TorchDispatchMode):
    """Bytes that operators read and write beside matrix products and attention, and Triton's kernels likewise.

    Every argument counts once and every result once; what a kernel reads twice, or finds in a cache, is not known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter = Counter()
        self.calls: Counter = Counter()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # compiled code runs as compiled

    def __enter__(self) -> "Traffic":
        from torch._inductor.runtime.triton_heuristics import CachingAutotuner

        self._run = CachingAutotuner.run

        def run(tuner, *args, **kwargs):
            both = tuner.inductor_meta.get("mutated_arg_names") or ()  # read and written
            named = zip(tuner.fn.arg_names, args, strict=False)
            sizes = [_size(arg) * (1 + (name in both)) for name, arg in named if isinstance(arg, torch.Tensor)]
            self._note(f"triton::{tuner.fn.__name__}", sum(sizes))
            return self._run(tuner, *args, **kwargs)

        CachingAutotuner.run = run
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        from torch._inductor.runtime.triton_heuristics import CachingAutotuner

        CachingAutotuner.run = self._run
        super().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        name = function.name()
        if _VIEWS.match(name):
            return found
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.is_cuda]
        made = [leaf for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor) and leaf.is_cuda]
        if name.startswith(("aten::_foreach", "aten::_fused")):
            given, made = [], [*given, *given]  # in place
        total = sum(map(_size, given)) + sum(map(_size, made))
        if _MAY_BE_VIEWS.match(name) and made and given and made[0].data_ptr() == given[0].data_ptr():
            total = 0
        elif name.startswith("aten::scatter"):
            total = 0  # a row's one number
        elif name.startswith(("aten::zero", "aten::fill", "aten::zeros", "aten::new_zeros", "aten::full")):
            total = sum(map(_size, made))
        elif name.startswith(("aten::index_select", "aten::embedding", "aten::gather")):
            total = 2 * sum(map(_size, made))
        self._note(name, total)
        return found

    def _note(self, name: str, size: int) -> None:
        self.calls[name] += 1
        if not _PRODUCTS.match(name):
            self.bytes[name] += size

    @property
    def gigabytes(self) -> float:
        return sum(self.bytes.values()) / 1e9


def _size(tensor: torch.Tensor) -> int:
    """Bytes behind a tensor: a value repeated (stride 0) is read once."""
    repeated = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride == 0 and size > 1]
    count = tensor.numel()
    for size in repeated:
        count //= size
    return count * tensor.element_size()


def _build(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for source in ("runtime.c", "driver.c"):
        shutil.copy(_HERE / source, folder / source)
    triton = _site() / "triton" / "backends" / "nvidia"
    (folder / "other_symbols.h").write_text(_other_symbols(_HERE / "runtime.c", _wanted_of_runtime()))
    asked = set(re.findall(r"\b(cu[A-Z]\w+)\(", (triton / "driver.c").read_text()))
    (folder / "other_driver_symbols.h").write_text(_other_symbols(_HERE / "driver.c", asked))
    # Some headers lie beside torch's libraries, others beside Triton.
    headers = [*sorted(_site().glob("nvidia/*/include")), triton / "include"]
    include = [f"-I{path}" for path in headers]
    options = ["gcc", "-O2", "-w", "-shared", "-fPIC", "-Wl,--allow-shlib-undefined"]
    subprocess.run([*options, str(folder / "driver.c"), "-o", str(folder / "libcuda.so.1")], check=True)
    target = folder / "null_gpu.so"
    part = target.with_suffix(f".{os.getpid()}")
    subprocess.run([*options, *include, str(folder / "runtime.c"), "-o", str(part), "-lpthread"], check=True)
    part.replace(target)


def _wanted_of_runtime() -> set[str]:
    """Functions of the runtime and of cuBLAS that torch's libraries want."""
    folder = Path(torch.__file__).parent / "lib"
    names = ("libtorch_cuda.so", "libtorch_cuda_linalg.so", "libc10_cuda.so", "libtorch_python.so")
    libraries = [str(folder / name) for name in names if (folder / name).is_file()]
    listed = subprocess.run(["nm", "-D", "--undefined-only", *libraries], capture_output=True, text=True, check=True)
    return set(re.findall(r"\bU (cuda[A-Z]\w*|cublas\w+|__cuda\w+)", listed.stdout))


def _other_symbols(source: Path, wanted: set[str]) -> str:
    """A line of C for every wanted function that the source does not write."""
    written = source.read_text()
    known = set(re.findall(r"\b(\w+)\s*\(", written)) | set(re.findall(r"PRODUCT\((\w+)\)", written))
    return "".join(f"int {name}() {{ return 0; }}\n" for name in sorted(wanted - known))


def _site() -> Path:
    return Path(sysconfig.get_path("purelib"))
