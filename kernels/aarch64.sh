#!/usr/bin/env bash
# The kernels built for ARM (NEON with the dot product), and their tests under emulation. On Debian, as root, in an
# environment that has pip and cmake:
#     kernels/aarch64.sh FOLDER [what pytest takes; tests/kernels when nothing is said]
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
root=$folder/root site=$folder/site build=$folder/build
emulated=(qemu-aarch64-static -cpu max -L "$root" -E OMP_NUM_THREADS=1 -E PYTHONDONTWRITEBYTECODE=1
    -E "PYTHONPATH=$site:$checkout/kernels:$checkout" -E "BITLENS_KERNELS_LIBRARY=$build/_kernels.so")

if [ ! -d "$site" ]; then
    apt-get install -qq -y g++-aarch64-linux-gnu qemu-user-static
    dpkg --add-architecture arm64 && apt-get update -qq
    mkdir -p "$root" "$folder/packages" && cd "$folder/packages"
    apt-get download -qq $(printf '%s:arm64 ' python3.11{,-minimal} libpython3.11-{stdlib,minimal} libc6 libgcc-s1 \
        libstdc++6 libgomp1 zlib1g libexpat1 libbz2-1.0 liblzma5 libffi8 libssl3 libsqlite3-0 libuuid1 libcrypt1)
    for package in *.deb; do dpkg -x "$package" "$root"; done
    # The last torch whose wheel for ARM wants no CUDA.
    python3 -m pip install -q --target "$folder/unfinished" --only-binary=:all: --python-version 3.11 \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
        torch==2.10.0 numpy scipy einops safetensors jaxtyping tyro rich imageio pytest hypothesis beartype
    mv "$folder/unfinished" "$site"
fi
cmake -S "$checkout/kernels" -B "$build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ > "$folder/cmake.log"
cmake --build "$build" --parallel 2 >> "$folder/cmake.log"
cd "$checkout"
exec "${emulated[@]}" "$root/usr/bin/python3.11" -m pytest -q -p no:cacheprovider "${@:-tests/kernels}"
