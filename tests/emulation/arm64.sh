#!/usr/bin/env bash
# A Debian bookworm root for arm64 (what Raspberry Pi OS is made from), and tests/runtime in it, on
# an x86-64 machine: see README.md. Run as root.
#   arm64.sh ROOT          make ROOT if it is not there, install the wheel, run the tests
#   MIRROR=...  PIP_ARGS=...  CPUS="cortex-a72 cortex-a76"  TESTS=...   change what is used
set -euo pipefail
root=$(realpath -m "${1:?usage: arm64.sh ROOT}")
here=$(cd "$(dirname "$0")/../.." && pwd)
mirror=${MIRROR:-http://deb.debian.org/debian}
cpus=${CPUS:-cortex-a72 cortex-a76}
tests=${TESTS:-tests/runtime}
qemu=$(command -v qemu-aarch64-static) || { echo "apt-get install qemu-user-static" >&2; exit 3; }
command -v debootstrap >/dev/null || { echo "apt-get install debootstrap" >&2; exit 3; }
case "$root/" in "$here"/*) echo "$root: keep the root out of the repository" >&2; exit 2 ;; esac

# binfmt_misc lets the kernel start arm64 programs by qemu, also those that they start themselves
binfmt=/proc/sys/fs/binfmt_misc
[ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt
[ -e $binfmt/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64

inside() { # runs a command in the root, as the processor $QEMU_CPU
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 PYTHONPATH=/edgecv/site \
        QEMU_CPU="${QEMU_CPU:-cortex-a72}" DEBIAN_FRONTEND=noninteractive chroot "$root" "$@"
}

if [ ! -e "$root/.complete" ]; then
    debootstrap --foreign --arch=arm64 --variant=minbase \
        --include=python3,python3-venv,python3-numpy,python3-pil,ca-certificates \
        bookworm "$root" "$mirror"
    cp "$qemu" "$root/usr/bin/"
    inside /debootstrap/debootstrap --second-stage
    touch "$root/.complete"
fi
# What is mounted here goes when the script ends: removing the root must not reach the host's /dev
trap 'for at in proc dev; do ! mountpoint -q "$root/$at" || umount -R "$root/$at"; done' EXIT
[ -e "$root/proc/self" ] || mount -t proc proc "$root/proc"
[ -e "$root/dev/urandom" ] || { mount --rbind /dev "$root/dev" && mount --make-rslave "$root/dev"; }
# No /sys: it would describe the processors of the host, over which the cpuinfo library that onnxruntime
# uses crashes. Without it onnxruntime warns, and asks the (emulated) kernel what the processor has.

# Wheels for the processor there are unpacked here: pip itself takes a quarter of an hour under QEMU.
# NumPy and Pillow stay Debian's (1.24 and 9.4), as on the device.
rm -rf "$root/edgecv" && mkdir -p "$root/edgecv/wheels"
python3 -m pip wheel -q --no-deps ${PIP_ARGS:-} -w "$root/edgecv/wheels" "$here"
python3 -m pip install -q ${PIP_ARGS:-} --target "$root/edgecv/site" --no-compile \
    --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 --abi abi3 \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
    --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 \
    "$root"/edgecv/wheels/edgecv-*.whl 'onnxruntime>=1.17.3' 'pytest>=8.2' pytest-timeout
rm -rf "$root"/edgecv/site/{numpy,numpy.libs,numpy-*,PIL,pillow.libs,pillow-*}
cp -r "$here"/{tests,runtimes,pyproject.toml,constraints.txt} "$root/edgecv/"
inside python3 -c "import numpy, onnxruntime, platform
print(platform.machine(), 'numpy', numpy.__version__, 'onnxruntime', onnxruntime.__version__)"

for cpu in $cpus; do
    echo "== $tests as $cpu"
    QEMU_CPU=$cpu inside sh -c "cd /edgecv && python3 -m pytest -p no:cacheprovider $tests"
    echo "== the sample app as $cpu"
    QEMU_CPU=$cpu inside sh -c "cd /edgecv && mkdir -p pictures && python3 -c \"
from PIL import Image; Image.linear_gradient('L').convert('RGB').save('pictures/p.png')\" &&
        python3 runtimes/app.py \
            \$(python3 -c 'from edgecv.measure.ready import *; print(READY_MODEL)') \
            pictures --profile low-power"
done
