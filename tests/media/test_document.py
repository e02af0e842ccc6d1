"""Documents: pages drawn, chosen, and refused."""

from __future__ import annotations

import numpy as np
import pytest

from qwench.media.document import read_document
from qwench.media.settings import Caps
from qwench.media.sizes import Unusable
from tests.media.files import SMALL, document, encoded, noise

ENCRYPTED = (
    b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog /Pages 2 0 R >>\nendobj\n"
    b"2 0 obj\n<< /Type /Pages /Kids [] /Count 0 >>\nendobj\n"
    b"3 0 obj\n<< /Filter /Standard /V 1 /R 2 /P -4 /O <" + b"41" * 32 + b"> /U <" + b"42" * 32 + b"> >>\nendobj\n"
    b"trailer\n<< /Size 4 /Root 1 0 R /Encrypt 3 0 R /ID [<00> <00>] >>\n%%EOF"
)


def bars(pixels: np.ndarray) -> int:
    """How many dark bars a page shows."""
    row = pixels[0, pixels.shape[1] // 2, :, 0] < 128
    return int(np.count_nonzero(np.diff(row.astype(int)) == 1))


@pytest.mark.parametrize(
    ("pages", "expected"), [(None, [1, 2, 3, 4, 5]), ("3", [3]), ("2-4", [2, 3, 4]), ("5, 1-2", [5, 1, 2])]
)
def test_pages_are_drawn_in_the_order_asked_for(pages: str | None, expected: list[int]) -> None:
    seen = read_document(document(5), pages, SMALL, Caps())
    assert [bars(page.pixels) for page in seen] == expected
    assert all(page.kind == "image" for page in seen)


def test_a_page_is_drawn_at_the_size_it_is_seen() -> None:
    (page,) = read_document(document(1, 14_400, 14_400), None, SMALL, Caps())
    assert page.original[0] * page.original[1] <= SMALL.image_pixels[1] * 1.01
    (page,) = read_document(document(1), None, SMALL, Caps(max_pixels=10_000))
    assert page.size[0] * page.size[1] <= 10_000


@pytest.mark.parametrize(
    ("data", "pages", "sentence", "too_large"),
    [
        (b"", None, "not a PDF", False),
        (encoded(noise(40, 40)), None, "not a PDF", False),
        (b"%PDF-1.7", None, "damaged", False),
        (document(3)[:150], None, "damaged", False),
        (ENCRYPTED, None, "password", False),
        (document(10_000), None, "10,000 pages", True),
        (document(10_000), "1-9000", "more than 32 pages", True),
        (document(3), "4", "page 4 is asked for", False),
        (document(3), "0", "not like", False),
        (document(3), "3-1", "not like", False),
        (document(3), "all", "not like", False),
        (document(3), "1-" + "9" * 400, "not like", False),
        (document(0), None, "without pages|damaged", False),
        (document(1, 30_000, 10), None, "200 times", False),
    ],
)
def test_what_cannot_be_read_is_one_sentence(data: bytes, pages: str | None, sentence: str, too_large: bool) -> None:
    with pytest.raises(Unusable, match=sentence) as caught:
        read_document(data, pages, SMALL, Caps())
    assert caught.value.too_large == too_large
    assert "PDFium" not in caught.value.reason
