"""``edgecv doctor``: what this machine is, what is installed, what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from edgecv.measure import targets
from edgecv.measure.machine import environment, memory_mb
from edgecv.measure.telemetry import Machine, Sample
from edgecv.runtimes import AUTO_ORDER, probe_backends
from edgecv.runtimes.base import Probe
from edgecv.runtimes.hardware import nvidia_devices

HOT_C = 80.0  # a Raspberry Pi slows from 80 degrees, most x86 at 90 to 100
LITTLE_MB = 4_000
SWAPPED = 0.1  # of the memory


@dataclass(frozen=True)
class Finding:
    """Something worth a word: ``broken`` (exit 1) or a remark, with what to do about it."""

    broken: bool
    message: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    environment: dict[str, Any]
    gpus: tuple[str, ...]
    backends: dict[str, Probe]
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "environment": self.environment,
            "gpus": list(self.gpus),
            "backends": [{"name": n, **asdict(p)} for n, p in self.backends.items()],
            "findings": [asdict(finding) for finding in self.findings],
            "healthy": not any(finding.broken for finding in self.findings),
        }


def diagnose() -> Diagnosis:
    """Look at the machine; changes nothing."""
    env, gpus, probes = environment(), tuple(nvidia_devices()), probe_backends()
    sample = Machine().sample()
    if sample.temperature_c is not None:
        env["temperature_c"] = round(sample.temperature_c, 1)
    found = (
        *_runtimes(env, gpus, probes),
        *_processor(env),
        *_clocks(env, sample),
        *_memory(env),
    )
    return Diagnosis(env, gpus, probes, found)


def _runtimes(
    env: dict[str, Any], gpus: tuple[str, ...], probes: dict[str, Probe]
) -> Iterator[Finding]:
    """What is installed, and what of it stands in its own way."""
    packages = env["packages"]
    if not any(probes[name].usable for name in AUTO_ORDER):
        message = "no runtime is usable: models cannot run"
        yield Finding(True, message, "pip install 'edgecv[onnxruntime]'")
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        yield Finding(
            True,
            "onnxruntime and onnxruntime-gpu are both installed: they are one Python package, and "
            "the one installed last has overwritten the other",
            "pip uninstall both, then install one",
        )
    opencv = [name for name in packages if name.startswith("opencv-")]
    if len(opencv) > 1:
        yield Finding(
            False,
            f"{' and '.join(opencv)} are both installed: they are one Python package, and the one "
            f"installed last has overwritten the other",
            "pip uninstall both, then pip install opencv-python-headless",
        )
    if not gpus and "+cu" in packages.get("torch", ""):
        yield Finding(
            False,
            "a CUDA build of torch is installed, and there is no NVIDIA GPU",
            "install PyTorch's CPU build (see README)",
        )
    on_gpu = [name for name, probe in probes.items() if probe.usable and _uses_gpu(name)]
    if gpus and not on_gpu:
        reasons = "; ".join(
            f"{name}: {probe.reason}" for name, probe in probes.items() if _uses_gpu(name)
        )
        yield Finding(
            False,
            f"there is an NVIDIA GPU, and no backend that uses it ({reasons})",
            "pip install 'edgecv[onnxruntime-gpu]' in place of onnxruntime; TensorRT on a Jetson "
            "comes with apt, and a virtual environment made with --system-site-packages sees it",
        )


def _processor(env: dict[str, Any]) -> Iterator[Finding]:
    """Whether INT8 pays here."""
    simd, machine = set(env["simd"]), env["architecture"].lower()
    if machine in targets.X86 and simd and not simd & set(targets.VNNI):
        if "avx2" not in simd:
            yield Finding(
                False,
                "no AVX2: the runtimes' kernels run in SSE, several times slower",
                "use another machine, or, in a virtual one, pass the host's CPU through",
            )
        else:
            yield Finding(
                False,
                "no VNNI: INT8 sums saturate in 16 bits unless weights keep to 7 bits",
                "quantize with --target onnxruntime-x86-avx2",
            )
    if machine in targets.ARM and simd and "asimddp" not in simd:
        yield Finding(
            False,
            "no NEON dot product (Cortex-A72 and older): INT8 is about as fast as FP32",
            "measure both with `edgecv bench` before taking INT8; it still halves the memory",
        )


def _clocks(env: dict[str, Any], sample: Sample) -> Iterator[Finding]:
    """What keeps the clock down or makes it move."""
    governor = env.get("governor")
    if governor is not None and governor != "performance":
        yield Finding(
            False,
            f"the CPU governor is {governor}: latencies are longer and unsteady after a pause",
            "while measuring: sudo cpupower frequency-set -g performance",
        )
    if sample.throttled:
        yield Finding(
            False,
            f"the processor is held back: {', '.join(sorted(sample.throttled))}",
            "a stronger power supply (under-voltage) or cooling (temperature)",
        )
    if sample.temperature_c is not None and sample.temperature_c >= HOT_C:
        yield Finding(
            False,
            f"the processor is at {sample.temperature_c:.0f} degrees: it will throttle",
            "cool it, or measure for longer than it takes to slow down",
        )
    if env.get("jetson_clocks") is False:
        yield Finding(
            False,
            f"a Jetson in power mode {env['nvpmodel']}, its clocks not pinned",
            "while measuring: sudo nvpmodel -m 0 && sudo jetson_clocks",
        )


def _memory(env: dict[str, Any]) -> Iterator[Finding]:
    memory, swap = env.get("memory_mb"), env.get("swap_mb")
    if memory is None or swap is None:
        return
    if memory < LITTLE_MB and swap == 0:
        yield Finding(
            False,
            f"{memory} MB of memory and no swap: building an engine may be killed",
            "build it elsewhere (`edgecv build`), or add swap",
        )
    used = memory_mb("SwapTotal"), memory_mb("SwapFree")
    if used[0] is not None and used[1] is not None and used[0] - used[1] > memory * SWAPPED:
        yield Finding(
            False,
            f"{used[0] - used[1]} MB are swapped out: latencies will have outliers",
            "end what fills the memory before measuring",
        )


def _uses_gpu(backend: str) -> bool:
    return backend.startswith("tensorrt") or backend.endswith(("-cuda", "-tensorrt"))
