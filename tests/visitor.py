"""Pages in a real browser: what goes wrong in them, what they ask for, and who cannot read them."""

from pathlib import Path

CHROMIUM = Path("/usr/bin/chromium")


class Visitor:
    """A page that writes down its complaints and every request that leaves its place."""

    def __init__(self, browser, place, **context):
        """Open an empty page.

        Args:
            browser: of the fixture `browser`.
            place: how addresses begin that may be asked.
            **context: of Playwright: viewport, color_scheme.
        """
        self.place = place
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.complaints = []
        self.elsewhere = []
        self.page.on("console", self._note_message)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", self._note_dialog)
        self.page.on("request", self._note_request)

    def _note_message(self, message):
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def _note_dialog(self, dialog):
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _note_request(self, request):
        if not request.url.startswith((self.place, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def faults(self):
        """Return what is too wide, and the serious findings of axe-core, of the page as it stands."""
        from axe_playwright_python.sync_playwright import Axe

        faults = []
        wide = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if wide > 0:
            faults.append(f"{self.page.url}: {wide} px too wide")
        for fault in Axe().run(self.page).response["violations"]:
            if fault["impact"] in {"serious", "critical"}:
                faults.append(f"{self.page.url}: {fault['id']} {fault['nodes'][0]['target']}")
        return faults

    def leave(self):
        """Close the page; nothing may have gone wrong."""
        assert [] == self.complaints
        assert [] == self.elsewhere
        self.context.close()
