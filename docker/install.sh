#!/bin/sh
# The steps that make the image's environment; docker/check.sh runs the same ones without a container engine.
#
#   install.sh dependencies VENV cpu|cuda [TORCH_INDEX]   everything the service needs, of the versions in the lock
#   install.sh project VENV                               koopcast itself, as a wheel
#
# Run in the folder that has pyproject.toml and requirements.lock. The environment gets no pip of its own.
set -eu

step=$1
venv=$2
pip="${PYTHON:-python3} -m pip --disable-pip-version-check --no-input"
into_venv="$pip --python $venv/bin/python install"

dependencies() {
    variant=$1
    torch=$(grep '^torch==' requirements.lock)
    "${PYTHON:-python3}" -m venv --without-pip "$venv"
    case $variant in
        cpu) # PyPI's Linux wheel is a CUDA build, so: the PyTorch project's own index, and no other
            index=${2:-https://download.pytorch.org/whl/cpu}
            $into_venv --no-deps --retries 0 --index-url "$index" "$torch" 2>/dev/null \
                || $into_venv --no-deps --retries 3 --index-url "$index" "$torch" ;;
        cuda) # brings its CUDA libraries, which it names with exact versions
            $into_venv --constraint requirements.lock ${2:+--extra-index-url "$2"} "$torch" ;;
        *)
            echo "install: the variant must be cpu or cuda, not '$variant'" >&2
            exit 2 ;;
    esac
    # The lock also holds what tests and linting need; as a constraint it installs nothing by itself.
    "${PYTHON:-python3}" - <<'PY' >"$venv/requirements.txt"
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
wanted = [*project["dependencies"], *extras["torch"], *extras["server"]]
print("\n".join(line for line in wanted if not line.startswith("koopcast")))
PY
    $into_venv --constraint requirements.lock --requirement "$venv/requirements.txt"
    rm "$venv/requirements.txt"
}

project() {
    work=$(mktemp -d)
    "${PYTHON:-python3}" -m venv --without-pip "$work/build"
    $pip --python "$work/build/bin/python" install --constraint requirements.lock hatchling
    $pip --python "$work/build/bin/python" wheel --no-deps --no-build-isolation --wheel-dir "$work" .
    $into_venv --no-deps "$work"/koopcast-*.whl
    $pip --python "$venv/bin/python" check
    rm -r "$work"
}

shift 2
case $step in
    dependencies) dependencies "${1:-cpu}" "${2:-}" ;;
    project) project ;;
    *)
        echo "install: the step must be dependencies or project, not '$step'" >&2
        exit 2 ;;
esac
