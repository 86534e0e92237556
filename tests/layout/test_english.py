"""A docstring's summary is short and plain."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT_DIR = Path(__file__).resolve().parents[2]
FOLDERS = (
    "flows",
    "tasks",
    "store",
    "orders",
    "texts",
    "reports",
    "deployments",
    "console",
    "web",
    "seed",
    "terminal",
    "fork_server",
    "docs",
)
WORDS_AT_MOST = 12
BANNED = re.compile(
    r"\b(none of|of which|whoever|nobody|anew|meanwhile|gives?|says?|tells?)\b|[;:](?=\s|$)",
    re.IGNORECASE,
)
"""A ``;`` or ``:`` announces a second thought, which is a paragraph of its own."""
SHOWN_IN_FORMS = {
    "flows/checkout.py": {"store_checkout"},
    "store/messages.py": {"Input", "CheckoutOrder", "OrderMessage", "CourierAnswer", "BatchAnswer"},
}
"""Their docstrings are written for the forms of Prefect's UI."""
MODULES = sorted(
    path.relative_to(PROJECT_DIR).as_posix()
    for folder in FOLDERS
    for path in (PROJECT_DIR / folder).rglob("*.py")
)


def summaries(module: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the summary of all that has a docstring."""
    for node in ast.walk(ast.parse((PROJECT_DIR / module).read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            name = getattr(node, "name", "the module")
            text = ast.get_docstring(node)
            if text is not None and name not in SHOWN_IN_FORMS.get(module, ()):
                yield name, " ".join(text.partition("\n\n")[0].split())


@pytest.mark.parametrize("module", MODULES)
def test_a_summary_is_short_and_plain(module: str) -> None:
    wrong = []
    for name, summary in summaries(module):
        if (words := len(summary.split())) > WORDS_AT_MOST:
            wrong.append(f"{name}: {words} words, {WORDS_AT_MOST} at most: {summary}")
        if banned := BANNED.search(summary):
            wrong.append(f"{name}: {banned.group()!r} is banned: {summary}")
    assert not wrong, "\n".join(wrong)
