#!/usr/bin/env bash
# Install the oldest versions that pyproject.toml allows into an environment of their own, and run the tests with them.
#
#     tools/check_lowest_versions.sh [ENVIRONMENT [PYTEST ARGUMENTS...]]
#
# ENVIRONMENT is a folder, .venv-lowest by default; it is kept for the next run. Python must be the oldest one supported.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
environment=${1:-.venv-lowest}
shift $(($# > 0))

test -d "$environment" || python3 -m venv "$environment"
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
"$environment/bin/python" - > "$pins" <<'PYTHON'
import re
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
names = ["dask", "plot", "timm", "dev"]  # ONNX graphs are exported by newer versions of torch only
for requirement in [*project["dependencies"], *(line for name in names for line in extras[name])]:
    if match := re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement):
        name, version = match.groups()
        if name not in ("ruff", "mypy", "pre-commit", "codespell"):  # they check the code, and do not run it
            print(f"{name}=={version}")
PYTHON
echo "installing:" $(cat "$pins")
"$environment/bin/python" -m pip install --quiet --requirement "$pins" "dask[distributed]"
"$environment/bin/python" -m pip install --quiet --no-deps --editable .
"$environment/bin/python" -m pip check
exec "$environment/bin/python" -m pytest -p no:cacheprovider "$@"
