"""Training asks PyTorch for pages of 2 MB in time, unless the user has said otherwise.

Whether Linux has any to give is the machine's affair: `benchmarks/training.py` measures what they
are worth.
"""

import os
import subprocess
import sys

import pytest

# PyTorch reads the setting at its first tensor: it must be there before torch is
IMPORT = """
import os, sys
import edgecv.train
assert "torch" not in sys.modules
print(os.environ["THP_MEM_ALLOC_ENABLE"])
"""


@pytest.mark.parametrize(("settings", "wanted"), [({}, "1"), ({"THP_MEM_ALLOC_ENABLE": "0"}, "0")])
def test_huge_pages_are_asked_for_unless_the_user_declines(settings, wanted):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("THP_")}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], env={**clean, **settings}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, wanted), done.stderr
