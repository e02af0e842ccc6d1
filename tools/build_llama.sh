#!/bin/sh
# Builds llama.cpp's programs for this machine (benchmarks, server, quantiser) into build/llama.cpp/bin, from the source that the PyPI package
# llama-cpp-python carries. `make llama.cpp` runs it; needs a C++ compiler, CMake and a package index, and some minutes.
set -eu

VERSION=0.3.36
ROOT=$(cd "$(dirname "$0")/.." && pwd)
BUILD="$ROOT/build/llama.cpp"
PYTHON=${PYTHON:-python3}

mkdir -p "$BUILD"
if [ ! -d "$BUILD/source" ]; then
  "$PYTHON" -m pip download -qq --no-binary :all: --no-deps -d "$BUILD" "llama-cpp-python==$VERSION"
  mkdir "$BUILD/unpacked"
  tar xzf "$BUILD"/llama_cpp_python-"$VERSION".tar.gz -C "$BUILD/unpacked"
  mv "$BUILD"/unpacked/*/vendor/llama.cpp "$BUILD/source"
  rm -r "$BUILD/unpacked"
  # GCC 12's AMX header says that 8 of a tile configuration's 64 bytes are read, so the compiler drops the others and the
  # program crashes: this keeps them.
  sed -i 's/^    _tile_loadconfig(&tc);/    __asm__ volatile("" : : "r"(\&tc) : "memory"); _tile_loadconfig(\&tc);/' \
    "$BUILD/source/ggml/src/ggml-cpu/amx/mmq.cpp"
fi
cmake -S "$BUILD/source" -B "$BUILD" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF \
  -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=ON
cmake --build "$BUILD" --parallel "$(getconf _NPROCESSORS_ONLN)" --target llama-bench llama-batched-bench llama-server llama-quantize
echo "built: $BUILD/bin/llama-bench"
