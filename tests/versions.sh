#!/usr/bin/env bash
# Runs the tests with the oldest and the newest of what is supported, each in an environment of its own. A Python that
# is not on the PATH is passed over. Arguments are those of pytest.
set -uo pipefail
cd "$(dirname "$0")/.."

# A Python, and what replaces the pins of requirements.lock in it. The first line is the lower bounds of pyproject.toml.
environments=(
    "3.11 keras==3.14.0 tensorflow==2.20.0 tensorflow-serving-api==2.20.0 numpy==1.26.4 rich==13.9.4"
    "3.13"
)
export OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1
failed=()
for environment in "${environments[@]}"; do
    read -r version pins <<<"$environment"
    name="Python $version${pins:+, $pins}"
    if ! "python$version" -c "" 2>/dev/null; then
        echo "Passed over: $name. There is no python$version."
        continue
    fi
    echo "Testing with $name"
    folder=".versions/${environment//[ =]/-}"
    if ! [ -f "$folder/installed" ] || [ requirements.lock -nt "$folder/installed" ]; then
        "python$version" -m venv --clear "$folder" &&
            "$folder/bin/python" -m pip install -qq --no-deps --require-hashes -r requirements.lock &&
            { [ -z "$pins" ] || "$folder/bin/python" -m pip install -qq $pins; } &&
            touch "$folder/installed" ||
            { failed+=("$name: not installed"); continue; }
    fi
    "$folder/bin/python" -m pytest tests -q -n 3 -p no:cacheprovider "$@" || failed+=("$name")
done
if ((${#failed[@]})); then
    printf 'Failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
