"""tests/runtime on a Raspberry Pi's processor, by QEMU: see README.md."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("arm64.sh")


@pytest.mark.emulated
@pytest.mark.timeout(7200)
def test_the_suite_passes_as_cortex_a72_and_a76():
    root = os.environ.get("EDGECV_ARM64_ROOT")
    if root is None:
        pytest.skip("set EDGECV_ARM64_ROOT to a folder for the arm64 root; needs to be root")
    subprocess.run([str(SCRIPT), root], check=True)
