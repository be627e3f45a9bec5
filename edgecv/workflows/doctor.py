"""``edgecv doctor``: what this machine is, what is installed, what is wrong and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgecv.measure.machine import environment, gpu_devices
from edgecv.runtimes import AUTO_ORDER, probe_backends
from edgecv.runtimes.base import Probe


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
    env, gpus, probes = environment(), tuple(gpu_devices()), probe_backends()
    return Diagnosis(env, gpus, probes, tuple(_findings(env, gpus, probes)))


def _findings(
    env: dict[str, Any], gpus: tuple[str, ...], probes: dict[str, Probe]
) -> list[Finding]:
    packages = env["packages"]
    found = []
    if not any(probes[name].usable for name in AUTO_ORDER):
        found.append(
            Finding(
                True, "no runtime is usable: models cannot run", "pip install 'edgecv[onnxruntime]'"
            )
        )
    if "onnxruntime" in packages and "onnxruntime-gpu" in packages:
        found.append(
            Finding(
                True,
                "onnxruntime and onnxruntime-gpu are both installed: they are one Python package, "
                "and the one installed last has overwritten the other",
                "pip uninstall both, then install one",
            )
        )
    if env.get("governor") == "powersave":
        found.append(
            Finding(
                False,
                "the CPU governor is powersave: latencies will be longer and unsteady",
                "sudo cpupower frequency-set -g performance, while measuring",
            )
        )
    if not gpus and "+cu" in packages.get("torch", ""):
        found.append(
            Finding(
                False,
                "a CUDA build of torch is installed, and there is no NVIDIA GPU",
                "install PyTorch's CPU build (see README)",
            )
        )
    if gpus and "onnxruntime" in packages and "onnxruntime-gpu" not in packages:
        found.append(
            Finding(False, "there is an NVIDIA GPU, which the CPU onnxruntime does not use", "")
        )
    return found
