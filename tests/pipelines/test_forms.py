"""A form's file is what was put into it, whatever its bytes are."""

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from pipelines.serving.forms import file_in, is_form
from segcore.errors import DataError

URL = "http://127.0.0.1"


def sent(**asked: dict[str, object]) -> tuple[str, bytes]:
    """Content type and body of a form as requests writes it."""
    request = requests.Request("POST", URL, **asked).prepare()  # type: ignore[arg-type]
    assert isinstance(request.body, bytes)
    return str(request.headers["Content-Type"]), request.body


@given(st.binary(), st.dictionaries(st.sampled_from(["format", "name"]), st.text(max_size=9)))
def test_bytes_come_back_whatever_they_are(content: bytes, fields: dict[str, str]) -> None:
    kind, body = sent(files={"image": ("photo.jpg", content)}, data=fields)
    assert is_form(kind)
    assert file_in(kind, body) == content


def test_lines_that_look_like_a_boundary_are_part_of_the_file() -> None:
    content = b"\r\n--\r\n\r\n--other\r\n\r\n"
    assert file_in(*sent(files={"image": ("photo.jpg", content)})) == content


def test_what_is_no_form_with_one_file_says_so() -> None:
    kind, body = sent(files={"one": ("a.jpg", b"1"), "two": ("b.jpg", b"2")})
    with pytest.raises(DataError, match=r"has 2 files.*curl -F file=@photo\.jpg"):
        file_in(kind, body)
    with pytest.raises(DataError, match="not whole"):
        file_in(kind, body[:40])
    with pytest.raises(DataError, match="not whole"):
        file_in(kind, body[: body.rindex(b"--")])
    with pytest.raises(DataError, match="boundary"):
        file_in("multipart/form-data", body)
    assert not is_form("image/png")
    assert not is_form("application/x-www-form-urlencoded")
