#!/usr/bin/env bash
# An int option takes a fraction and rounds it, half to even.
# Guess: --copies 2.7 is refused, as int("2.7") is.
# What happens: 2.7 is 3, 2.5 is 2, 3.5 is 4, before any validator sees the text, so no validator can
# refuse it. Seen with cyclopts 5.4.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=$folder/venv/bin/python
python3 -m venv "$folder/venv"
"$python" -m pip install --quiet --no-compile cyclopts==5.4.0
timeout 300 "$python" - <<'PYTHON'
import cyclopts

app = cyclopts.App(result_action="return_value")


@app.default
def copies(*, copies: int) -> int:
    return copies


seen = {text: app(["--copies", text]) for text in ("2.7", "2.5", "3.5")}
print("cyclopts", cyclopts.__version__, seen)
if seen != {"2.7": 3, "2.5": 2, "3.5": 4}:
    raise SystemExit("Not as described.")
PYTHON
