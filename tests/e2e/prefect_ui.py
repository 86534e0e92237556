"""The Prefect UI as a person uses it, in a real Chromium: its pages, forms and buttons.

Version 2 of the UI, which Prefect 3.8 and 3.9 open by themselves. It finds things by the words that
a person reads; what it waits for comes without a reload, as on a person's screen.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from playwright.sync_api import Locator, Page, ViewportSize, expect, sync_playwright

from store.messages import CheckoutOrder

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VIEWPORT: ViewportSize = {"width": 1280, "height": 800}

FLAGS = [
    # It is often run as root, in a container, and sees nothing but the pages of this machine.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
    # The UI asks its maker's analytics for a configuration whatever the server's settings say.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]

# A run's process takes 5 to 15 s to start on two busy cores, several at once far longer; a
# cancelled one has 30 s to end.
WAIT_MS = 180_000


def browser_path() -> str:
    """Return the Chromium to use.

    Raises:
        FileNotFoundError: there is none.
    """
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise FileNotFoundError("there is no Chromium on the PATH; `make browser` installs it")
    return found


@contextmanager
def browser_page(*, is_pictured: bool = False) -> Iterator[Page]:
    """Open a browser with one empty page; times are shown in UTC, as in the timelines.

    Args:
        is_pictured: draw a run's graph as people see it, which takes a whole core.
    """
    flags = FLAGS if is_pictured else [*FLAGS, "--disable-3d-apis"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=flags)
        try:
            context = browser.new_context(viewport=VIEWPORT, timezone_id="UTC", locale="en-US")
            context.set_default_timeout(WAIT_MS)
            yield context.new_page()
        finally:
            browser.close()


class PrefectUi:
    """What a person does and sees in the UI at `url`."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = f"{url}/v2"
        self.main = page.get_by_role("main")

    def log_in(self, auth: str) -> None:
        """Give the `user:password` that the server asks for; the browser keeps it."""
        self.page.goto(self.url)
        self.page.get_by_placeholder("admin:pass").fill(auth)
        self.page.get_by_role("button", name="Login").click()
        expect(self.main.get_by_text("Flow Runs", exact=True)).to_be_visible(timeout=WAIT_MS)

    def fill_run_form(self, deployment_id: str, order: dict[str, Any]) -> None:
        """Open the deployment's form by “Custom run” and type the order's fields into it."""
        self.page.goto(f"{self.url}/deployments/deployment/{deployment_id}")
        self.main.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Custom run").click()
        titles = CheckoutOrder.model_json_schema()["properties"]
        for name, value in order.items():
            label = titles[name]["title"]
            field = self.main.get_by_label(re.compile(rf"^{label}\b"))
            if isinstance(value, bool):
                field.set_checked(value)
            else:
                field.fill(str(value))

    def open_deployment(self, deployment_id: UUID) -> None:
        """Open the deployment's page."""
        self.page.goto(f"{self.url}/deployments/deployment/{deployment_id}")

    def follow(self, link: str) -> None:
        """Follow a link of the deployment's description."""
        self.main.get_by_role("tab", name="Description").click()
        self.main.get_by_role("link", name=link, exact=True).click()

    def submit_run_form(self) -> str:
        """Start the run; return its id."""
        with self.page.expect_response(re.compile("/create_flow_run$")) as answer:
            self.main.get_by_role("button", name="Submit").click()
        return str(answer.value.json()["id"])

    def open_run(self, run_id: str) -> None:
        """Open the run's page."""
        self.page.goto(f"{self.url}/runs/flow-run/{run_id}")

    def see_state(self, name: str) -> None:
        """Wait until the page shows the run in this state."""
        # The other tabs may show states of tasks and subflow runs.
        self.open_tab("Details")
        expect(self.main.get_by_text(name, exact=True)).to_be_visible(timeout=WAIT_MS)

    def open_tab(self, name: str) -> Locator:
        """Open a tab of the run's page; return what it shows."""
        self.main.get_by_role("tab", name=name).click()
        return self.main.get_by_role("tabpanel", name=name)

    def open_answer_form(self) -> Locator:
        """Open the form of a paused run by “Resume”; return it."""
        self._choose("Resume")
        form = self.page.get_by_role("dialog", name="Resume Flow Run")
        expect(form.get_by_text("Outcome")).to_be_visible(timeout=WAIT_MS)
        return form

    def fill_answer_form(self, form: Locator, outcome: str, **fields: str) -> None:
        """Choose the outcome and type the other fields, by the beginning of their labels."""
        self._choose_option(form, "Outcome", outcome)
        if courier := fields.pop("courier", ""):
            self._choose_option(form, "Courier", courier)
        for name, text in fields.items():
            label = name.replace("_", " ")
            form.get_by_label(re.compile(rf"^{label}\b", re.IGNORECASE)).fill(text)

    def _choose_option(self, form: Locator, field: str, option: str) -> None:
        form.get_by_role("button", name=f"Select {field}").click()
        choice = self.page.get_by_role("option", name=option)
        choice.click()
        # A list that is still closing takes the next click for itself.
        expect(choice).to_be_hidden(timeout=WAIT_MS)

    def submit_answer_form(self, form: Locator) -> None:
        """Send the answer and see that the form was taken."""
        form.get_by_role("button", name="Resume").click()
        expect(form).to_be_hidden(timeout=WAIT_MS)

    def answer(self, outcome: str, **fields: str) -> None:
        """Answer the paused run whose page is open."""
        form = self.open_answer_form()
        self.fill_answer_form(form, outcome, **fields)
        self.submit_answer_form(form)

    def cancel_run(self) -> None:
        """Cancel the run whose page is open, and confirm it."""
        self._choose("Cancel")
        self._confirm("Cancel Flow Run")

    def retry_run(self) -> None:
        """Retry the run whose page is open, and confirm it."""
        self._choose("Retry")
        self._confirm("Retry")

    def open_compensation(self) -> None:
        """Go from the page of a failed run to that of its subflow run `compensate`."""
        card = self.open_tab("Subflow Runs").get_by_role("listitem").filter(has_text="compensate")
        see(card.first, "Completed")
        # The first link leads to the flow, the second to its run.
        card.first.get_by_role("link").nth(1).click()
        expect(self.main.get_by_text("Parent Run")).to_be_visible(timeout=WAIT_MS)

    def open_timeline(self, status: str) -> Locator:
        """Open the timeline up to this status from the run's page; return what it shows."""
        # The page may have read its artifacts before this one was there.
        self.page.reload()
        wanted = re.compile(f"Timeline of order .*: {status}")
        card = self.open_tab("Artifacts").get_by_role("link", name=wanted)
        card.first.click()
        # Exactly: the run's page, which stays for a moment, has a panel of “Artifacts”.
        timeline = self.main.get_by_role("tabpanel", name="Artifact", exact=True)
        # The card of Prefect 3.8 leads to a list of the timeline's versions, newest first; that of
        # 3.9 to the timeline itself.
        newest = self.main.get_by_role("link", name=re.compile("^[0-9a-f]{8}$")).first
        expect(timeline.or_(newest).first).to_be_visible(timeout=WAIT_MS)
        if newest.is_visible():
            newest.click()
        return timeline

    def _choose(self, item: str) -> None:
        self.main.get_by_role("button", name="Open menu").first.click()
        self.page.get_by_role("menuitem", name=item, exact=True).click()

    def _confirm(self, button: str) -> None:
        dialog = self.page.get_by_role("alertdialog")
        dialog.get_by_role("button", name=button, exact=True).click()
        expect(dialog).to_be_hidden(timeout=WAIT_MS)


SIZES: tuple[ViewportSize, ...] = (VIEWPORT, {"width": 1024, "height": 768})
"""The windows in which the shop's pages are looked at."""
OVERFLOWING = """place => {
  const edge = Math.min(place.getBoundingClientRect().right, window.innerWidth) + 1;
  const scrolls = each => /auto|scroll|hidden|clip/.test(getComputedStyle(each).overflowX);
  const told = [];
  const walker = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode;
    if (!text.data.trim()) continue;
    let above = text.parentElement;
    while (above !== place && !scrolls(above)) above = above.parentElement;
    if (above !== place) continue;
    const range = document.createRange();
    range.selectNodeContents(text);
    if (range.getBoundingClientRect().right > edge) told.push(text.data);
  }
  return told;
}"""
"""The texts in a place that run over its right edge, or the window's; not those in a box that
scrolls."""


def assert_fits(place: Locator) -> None:
    """See that no text runs over the edge of its place, in each size of the window."""
    before = place.page.viewport_size
    for size in SIZES:
        place.page.set_viewport_size(size)
        expect(place).to_be_visible(timeout=WAIT_MS)
        overflowing = place.evaluate(OVERFLOWING)
        assert overflowing == [], f"at {size['width']} pixels: {overflowing}"
    if before is not None:
        place.page.set_viewport_size(before)


def see(place: Locator, words: str) -> None:
    """Wait until these words stand there."""
    expect(place).to_contain_text(words, timeout=WAIT_MS)
