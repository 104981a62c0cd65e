#!/usr/bin/env bash
# Make an environment with skpbas of this checkout and anomalib, for benchmarks/peers/compare.py.
#
#     benchmarks/peers/make_environment.sh [ENVIRONMENT]
#
# ENVIRONMENT is a folder, .venv-peers by default; if it exists, it is brought up to date. Python must be 3.11 or newer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
environment=${1:-.venv-peers}

test -d "$environment" || python3 -m venv "$environment"
# anomalib leaves torch to its extras, which also bring libraries for videos: it comes with skpbas instead.
"$environment/bin/python" -m pip install --quiet --editable . "anomalib==2.7.*" "torch>=2.10" "torchvision>=0.25"
"$environment/bin/python" -m pip check
"$environment/bin/python" -c "
from importlib.metadata import version

from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel

print(*(f'{name} {version(name)}' for name in ('anomalib', 'skpbas', 'timm', 'torch', 'torchvision')), sep=', ')
"
