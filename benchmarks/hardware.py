"""What this machine's memory and cores can do, per number of threads: the rates that the bounds are made of.

Each number of threads is measured in a process of its own (`python -m benchmarks.hardware THREADS` prints one JSON
object), so that thread pools do not disturb each other and nothing stays in memory.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import msgspec
import psutil

from benchmarks.bounds import NodeSpeed
from butterfly.specs import Spec
from butterfly.worker.resources import has_int8_instructions

BUFFER_BYTES = 1 << 30  # several times the largest cache in use
REPEATS = 5
ROUND_ROBIN_BYTES = 320 << 20  # copies of a matrix in turn, so that none stays in a cache
OUT_FEATURES, IN_FEATURES, PROMPT_ROWS = 5632, 2048, 512  # the gate of a 1.1B Llama
KERNEL_ROWS = (1, 4, 16, 64, PROMPT_ROWS)
MEMORY_BOUND_ROWS = 16
TIMEOUT_S = 120.0


class KernelPoint(Spec, frozen=True):
    """One matrix product, its weights read from memory."""

    kernel: str
    rows: int
    seconds: float
    weight_bytes: int
    flops: float

    @property
    def flops_per_s(self) -> float:
        return self.flops / self.seconds

    @property
    def bytes_per_s(self) -> float:
        return self.weight_bytes / self.seconds


class ThreadRates(Spec, frozen=True):
    threads: int
    read_bytes_per_s: float
    product_flops_per_s: float  # of the fastest kind of product
    kernels: tuple[KernelPoint, ...]

    @property
    def speed(self) -> NodeSpeed:
        """What a node with so many threads can do at best."""
        return NodeSpeed(bandwidth_bytes_per_s=self.read_bytes_per_s, flops_per_s=self.product_flops_per_s)


class Machine(Spec, frozen=True):
    cpu: str
    slug: str  # vendor and cores, for file names
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    torch: str
    rates: tuple[ThreadRates, ...]

    def speed(self, threads: int) -> NodeSpeed:
        """Raises KeyError for a number of threads that was not measured."""
        for rates in self.rates:
            if rates.threads == threads:
                return rates.speed
        raise KeyError(f"{threads} threads were not measured")


def best_of(first: Machine, second: Machine) -> Machine:
    """The same machine with the higher of two measured rates: whatever else ran meanwhile can only lower them."""
    return msgspec.structs.replace(
        first, rates=tuple(_best_rates(a, b) for a, b in zip(first.rates, second.rates, strict=True))
    )


def _best_rates(a: ThreadRates, b: ThreadRates) -> ThreadRates:
    return ThreadRates(
        threads=a.threads,
        read_bytes_per_s=max(a.read_bytes_per_s, b.read_bytes_per_s),
        product_flops_per_s=max(a.product_flops_per_s, b.product_flops_per_s),
        kernels=tuple(min(pair, key=lambda point: point.seconds) for pair in zip(a.kernels, b.kernels, strict=True)),
    )


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def measure_machine(threads: Sequence[int]) -> Machine:
    """Raises subprocess.SubprocessError when a measurement does not end well."""
    from importlib.metadata import version

    cores = num_cores()
    vendor, model = _cpu_names()
    return Machine(
        cpu=model,
        slug=f"{vendor}-{cores}core",
        cores=cores,
        memory_bytes=int(psutil.virtual_memory().total),
        kernel=platform.release(),
        python=platform.python_version(),
        torch=version("torch"),
        rates=tuple(_measure_in_process(count) for count in threads),
    )


def _cpu_names() -> tuple[str, str]:
    """A short vendor name, and what the CPU calls itself."""
    fields: dict[str, str] = {}
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    vendors = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}
    return vendors.get(fields.get("vendor_id", ""), platform.machine()), fields.get("model name", platform.machine())


def _measure_in_process(threads: int) -> ThreadRates:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.hardware", str(threads)],
        env=environment,
        stdout=subprocess.PIPE,
        timeout=TIMEOUT_S,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=ThreadRates)


def measure_rates(threads: int) -> ThreadRates:
    """Measure in this process, whose thread pool is set to `threads`."""
    import torch

    torch.set_num_threads(threads)
    kernels = [*_int4_points(), *_bf16_points(), *_int8_points()]
    read = max(_read_bandwidth(), *(point.bytes_per_s for point in kernels))
    products = max(point.flops_per_s for point in kernels)
    return ThreadRates(threads=threads, read_bytes_per_s=read, product_flops_per_s=products, kernels=tuple(kernels))


def best_s(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Least seconds of one call, after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - start_s)
    return min(times)


def _read_bandwidth() -> float:
    """Bytes per second of the fastest of a few ways to read memory once."""
    import torch

    columns = 4096
    matrix = torch.ones(BUFFER_BYTES // 4 // columns, columns)
    vector = torch.ones(columns)
    whole = matrix.view(-1)
    seconds = min(best_s(lambda: matrix @ vector), best_s(whole.sum), best_s(lambda: torch.dot(whole, whole)))
    return BUFFER_BYTES / seconds


def _int4_points() -> list[KernelPoint]:
    """The packed kernel of stock PyTorch, groups of 32: half a byte per weight, and scale and zero in bf16."""
    import torch

    q = torch.randint(0, 16, (OUT_FEATURES, IN_FEATURES), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q, 1)
    scales = torch.ones(IN_FEATURES // 32, OUT_FEATURES, 2, dtype=torch.bfloat16)
    num_bytes = packed.nbytes + scales.nbytes
    copies = [(packed.clone(), scales.clone()) for _ in range(ROUND_ROBIN_BYTES // num_bytes)]
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu

    def product(rows: int) -> Callable[[int], object]:
        x = torch.randn(rows, IN_FEATURES).bfloat16()
        return lambda index: multiply(x, copies[index][0], 32, copies[index][1])

    return [_point("int4", rows, product(rows), len(copies), num_bytes) for rows in KERNEL_ROWS]


def _int8_points() -> list[KernelPoint]:
    """Bytes by bytes, and as the engine uses it, with activations of two bytes. None without VNNI instructions."""
    import torch

    from butterfly.engine.int8_linear import Int8Linear

    if not has_int8_instructions():
        return []
    linears = []
    for _ in range(ROUND_ROBIN_BYTES // (OUT_FEATURES * IN_FEATURES)):
        linear = Int8Linear(OUT_FEATURES, IN_FEATURES)
        linear.fill(0, torch.ones(OUT_FEATURES, IN_FEATURES))
        linear.finish()
        linears.append(linear)

    def of_bytes(rows: int) -> Callable[[int], object]:
        q = torch.full((rows, IN_FEATURES), 100, dtype=torch.uint8)
        return lambda index: linears[index].sums(q)

    def of_words(rows: int) -> Callable[[int], object]:
        x = torch.randn(rows, IN_FEATURES)
        return lambda index: linears[index](x)

    num_bytes = OUT_FEATURES * IN_FEATURES
    return [
        _point(kernel, rows, product(rows), len(linears), num_bytes)
        for kernel, product in (("int8", of_bytes), ("int8, 16-bit activations", of_words))
        for rows in KERNEL_ROWS
    ]


def _bf16_points() -> list[KernelPoint]:
    import torch

    weight = torch.randn(OUT_FEATURES, IN_FEATURES).bfloat16()
    copies = [weight.clone() for _ in range(ROUND_ROBIN_BYTES // weight.nbytes)]

    def product(rows: int) -> Callable[[int], object]:
        x = torch.randn(rows, IN_FEATURES).bfloat16()
        return lambda index: torch.nn.functional.linear(x, copies[index])

    return [_point("bf16", rows, product(rows), len(copies), weight.nbytes) for rows in KERNEL_ROWS]


def _point(kernel: str, rows: int, product: Callable[[int], object], copies: int, num_bytes: int) -> KernelPoint:
    """Time one product as the mean over all copies in turn, or over a few where the weights' way does not matter."""
    count = copies if rows <= MEMORY_BOUND_ROWS else min(copies, max(2, 2 * PROMPT_ROWS // rows))

    def all_in_turn() -> None:
        for index in range(count):
            product(index)

    seconds = best_s(all_in_turn, repeats=3) / count
    flops = 2.0 * rows * OUT_FEATURES * IN_FEATURES
    return KernelPoint(kernel=kernel, rows=rows, seconds=seconds, weight_bytes=num_bytes, flops=flops)


if __name__ == "__main__":
    print(msgspec.json.encode(measure_rates(int(sys.argv[1]))).decode())
