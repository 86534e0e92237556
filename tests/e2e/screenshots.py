"""Makes the README's pictures in docs/pictures: the Prefect UI with two orders of a real system.

python -m tests.e2e.screenshots
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page
from rich.console import Console

from deployments.example_order import EXAMPLE_ORDER
from deployments.local import CHECKOUT_DEPLOYMENT, PROJECT_DIR, LocalSystem
from deployments.machine import exit_on_signals
from deployments.progress import Progress
from seed.catalogue import JOHN_DOE, STRIPED_PAJAMAS
from store.messages import ASSIGNED, NO_COURIER
from tests.e2e.no_dispatcher import no_dispatcher
from tests.e2e.prefect_ui import PrefectUi, assert_fits, browser_page, see

PICTURES_DIR = PROJECT_DIR / "docs" / "pictures"
WIDTH = 1280
TYPED_ORDER = json.loads(EXAMPLE_ORDER) | {"orderId": "web-1001"}
UNDONE_ORDER = {
    "orderId": "web-1002",
    "userId": JOHN_DOE,
    "bookId": STRIPED_PAJAMAS,
    "quantity": 2,
    "redeem": True,
}


def take_pictures(system: LocalSystem, progress: Progress) -> None:
    """Drive the two orders through the UI and write a picture of each page."""
    PICTURES_DIR.mkdir(parents=True, exist_ok=True)
    with (
        system.api() as api,
        no_dispatcher(system.api_url),
        browser_page(is_pictured=True) as page,
    ):
        ui = PrefectUi(page, system.ui_url)
        deployment_id = str(api.read_deployment_by_name(CHECKOUT_DEPLOYMENT).id)
        # Its process starts while the other order is typed.
        undone_run = str(api.start_run(CHECKOUT_DEPLOYMENT, {"order": UNDONE_ORDER}).id)

        ui.fill_run_form(deployment_id, TYPED_ORDER)
        ui.main.get_by_role("navigation").scroll_into_view_if_needed()
        write(page, "run-form", 1240, progress)
        typed_run = ui.submit_run_form()

        ui.open_run(typed_run)
        ui.see_state("Paused")
        form = ui.open_answer_form()
        ui.fill_answer_form(form, ASSIGNED, courier="city-vans", answered_by="Ann")
        # Back to the description above the fields.
        form.get_by_text("waits for a courier until").scroll_into_view_if_needed()
        assert_fits(form)
        write(page, "answer-form", 1120, progress)
        ui.submit_answer_form(form)
        ui.see_state("Completed")
        # The graph is drawn anew, with the ending.
        ui.open_run(typed_run)
        see(ui.open_tab("Task Runs"), "dispatch_order")
        write(page, "completed-run", 800, progress)

        ui.open_run(undone_run)
        ui.see_state("Paused")
        ui.answer(NO_COURIER, reason="the couriers are on strike", answered_by="Ann")
        ui.see_state("Failed")
        ui.open_compensation()
        ui.open_run(undone_run)
        see(ui.open_tab("Subflow Runs"), "compensate")
        write(page, "compensated-run", 800, progress)
        timeline = ui.open_timeline("compensated")
        see(timeline, "compensated")
        assert_fits(timeline)
        write(page, "timeline", 800, progress)


def write(page: Page, name: str, height: int, progress: Progress) -> None:
    """Write a picture of the page, seen in a window of this height."""
    page.set_viewport_size({"width": WIDTH, "height": height})
    # A graph is drawn when its data is there; nothing in the page tells that it is.
    page.wait_for_load_state("networkidle")
    path = PICTURES_DIR / f"{name}.png"
    page.screenshot(path=path, animations="disabled", caret="hide")
    progress(f"Written: {path.relative_to(PROJECT_DIR)}, {path.stat().st_size // 1000} kB")


def main() -> int:
    """Start a system in a throw-away folder and take the pictures; return the exit status."""
    progress = Progress(Console())
    with exit_on_signals(), TemporaryDirectory(prefix="store-pictures-") as folder:
        system = LocalSystem(Path(folder), report=progress, durable=False, preferred_port=0)
        with system:
            take_pictures(system, progress)
    return 0


if __name__ == "__main__":
    sys.exit(main())
