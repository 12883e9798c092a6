"""Take the screenshot in the README: the report of the quickstart, in Chromium.

make quickstart
python docs/screenshot.py [--workdir=runs/quickstart] [--output=docs/images/report.png]
"""

import argparse
import shutil
import sys
from pathlib import Path

WIDTH, HEIGHT = 1000, 1100  # pixels
# The title names the folder of the backbone, which differs between machines.
SHORTEN_TITLE = """() => {
  const title = document.querySelector('h1');
  title.textContent = title.textContent.replace(/hf:\\S*\\/(\\w+)\\/model/, 'hf:$1');
}"""


def main() -> None:
    """Render the top of the report and write it as PNG."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--output", type=Path, default=Path("docs/images/report.png"))
    flags = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    report = flags.workdir / "report.html"
    if chromium is None or not report.is_file():
        sys.exit(f"needs Chromium on the PATH and {report}")
    take(report, flags.output, chromium)


def take(page: Path, output: Path, chromium: str) -> None:
    """Write the first screen of a page, in light mode.

    Args:
        page: HTML file.
        output: PNG file; its folder is created.
        chromium: the browser's program.
    """
    from playwright.sync_api import sync_playwright

    output.parent.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        tab.goto(page.absolute().as_uri())
        tab.evaluate(SHORTEN_TITLE)
        tab.screenshot(path=output)
        browser.close()


if __name__ == "__main__":
    main()
