"""Pictures of predictions for test persons of sites that declare their images public, as the run drew them.

They are files of the run's folder (``examples/SITE.png``); a bundle carries and signs them, but nobody can compute them again without data.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

from fedml.experiments.report.markup import paragraph, section
from fedml.experiments.runs.record import Record
from fedml.runs.log import EXAMPLES

LARGEST = 1_500_000  # bytes of one picture in a page
MOST = 8  # sites
_PNG = b"\x89PNG\r\n\x1a\n"


def section_of(record: Record, found: Mapping[str, Any]) -> str:
    """The section "Examples"; "" if the run has no picture."""
    figures, left = list[str](), list[str]()
    for site in record.sites:
        path = record.run / EXAMPLES / f"{site.name}.png"
        if not path.is_file():
            continue
        data = path.read_bytes()
        if len(figures) == MOST or len(data) > LARGEST or not data.startswith(_PNG):
            left.append(site.name)
            continue
        about = f"Predictions for public test images of {site.name}."
        image = f'<img src="data:image/png;base64,{base64.b64encode(data).decode()}" alt="{escape(about)}">'
        figures.append(f'<figure class="wide">{image}<figcaption><strong>{escape(about)}</strong></figcaption></figure>')
    if not figures:
        return ""
    text = (
        "At most six test persons of each site that declares its images public, spread evenly over its test persons and not chosen by the "
        "result. The pictures are files of the run's folder and do not follow from its counts."
    )
    more = f"Not shown, because too many or too large: {', '.join(left)}." if left else ""
    return section("examples", "Examples", paragraph(text, more), *figures)
