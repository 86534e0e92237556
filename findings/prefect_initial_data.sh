#!/usr/bin/env bash
# A form with an initial value loses the field's title and its bounds.
# Guess: RunInput.with_initial_data(copies=50) is the same form with 50 filled in.
# What happens: of the field only its type is kept. A required integer from 1 to 100, titled "Copies
# sent", becomes an integer of any size titled "Copies", so that -1 is taken as an answer. The choices
# of a Literal stay, since they are its type. A field without an initial value keeps everything.
# Seen with Prefect 3.9.1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=$folder/venv/bin/python
python3 -m venv "$folder/venv"
"$python" -m pip install --quiet --no-compile prefect==3.9.1 fastapi==0.150.0 sqlalchemy==2.1.9
export PREFECT_HOME=$folder/prefect
timeout 300 "$python" - <<'PYTHON'
from typing import Literal

import prefect
from prefect.input import RunInput
from pydantic import Field, ValidationError


class Answer(RunInput):
    copies: int = Field(title="Copies sent", ge=1, le=100)
    courier: Literal["ups", "dhl"] = Field(title="Who takes it")
    note: str = Field(title="Note to the shop", max_length=10)


def shown(form):
    return form.model_json_schema()["properties"]


def takes(form, **given):
    try:
        form(**given)
    except ValidationError:
        return False
    return True


filled = Answer.with_initial_data(copies=50, courier="ups")
print("Prefect", prefect.__version__)
for name in Answer.model_fields:
    print(name, shown(Answer)[name], "->", shown(filled)[name])
wrong = {"copies": -1, "courier": "ups", "note": "x"}
taken = (takes(Answer, **wrong), takes(filled, **wrong))
print("-1 copies are taken:", *taken)
if (
    shown(filled)["copies"] != {"default": 50, "title": "Copies", "type": "integer"}
    or shown(filled)["courier"]["title"] != "Courier"
    or shown(filled)["courier"]["enum"] != ["ups", "dhl"]
    or shown(filled)["note"] != shown(Answer)["note"]
    or taken != (False, True)
):
    raise SystemExit("Not as described.")
PYTHON
