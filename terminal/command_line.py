"""Command lines, all read by cyclopts."""

import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from terminal.output import complain

WRONG_USAGE = 2
Flag = Annotated[bool, Parameter(negative="")]


class Command:
    """A command line, which is called with its words.

    Args:
        app: What reads the words and carries them out.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    def __call__(self, words: Sequence[str] | None = None) -> int:
        """Carry out the command and return its exit status.

        The status is 0, 1 for what was refused or found wrong, or 2 for wrong usage. An error that
        may happen is printed with its remedy, without a traceback.

        Args:
            words: Those of the process's command line, if left out.

        Raises:
            Exception: A defect.
        """
        words = sys.argv[1:] if words is None else list(words)
        _write_utf_8()
        try:
            _require_text(words)
            status = self.app(
                words,
                exit_on_error=False,
                print_error=False,
                result_action="return_value",
            )
            # Here, where it is noticed if nobody reads it any more.
            sys.stdout.flush()
        except CycloptsError as error:
            # An error that the command itself raises does not know its command.
            called = " ".join((self.app.name[0], *self.app.parse_commands(words)[0]))
            return complain(f"{error}\nSee {called} --help.", WRONG_USAGE)
        except Exception as error:
            # SQLAlchemy takes a second to import, which only an error is worth.
            from terminal.errors import status_of

            return status_of(error)
        return status if isinstance(status, int) else 0


def _write_utf_8() -> None:
    """Write UTF-8 to files, and replace what a terminal cannot show.

    Titles hold any character. One that the locale's encoding lacks would end a report half-way.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="replace")
        else:
            sys.stdout.reconfigure(encoding="utf-8")


def _require_text(words: Sequence[str]) -> None:
    """Raise CycloptsError for a word that is not text.

    Python keeps bytes of another encoding as halves of characters, which the database refuses.
    """
    for place, word in enumerate(words, 1):
        try:
            word.encode()
        except UnicodeEncodeError:
            shown = word.encode(errors="replace").decode()
            raise CycloptsError(
                msg=f"Argument {place}, {shown}, is not text in {sys.getfilesystemencoding()}; "
                "give it in the encoding of this terminal's locale."
            ) from None


def command(name: str, description: str | None) -> Callable[[Callable[..., int | None]], Command]:
    """Make a function the whole of a command line.

    Args:
        name: What the command is called by, such as `python -m seed`.
        description: The text above its options.
    """

    def made(function: Callable[..., int | None]) -> Command:
        app = App(name=name, help=description, version_flags=[])
        app.default(function)
        return Command(app)

    return made
