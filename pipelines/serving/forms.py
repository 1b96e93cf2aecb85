"""The picture in a form, as `curl -F` and `requests.post(files=)` send it.

Reference: RFC 7578.
"""

from email.message import Message
from email.parser import BytesHeaderParser

from segcore.errors import DataError


def is_form(content_type: str) -> bool:
    """Whether a body of this type is a form with files."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def file_in(content_type: str, body: bytes) -> bytes:
    """The one file of a form; its fields that are no files do not matter.

    Args:
        content_type: header of the request.
        body: of it.

    Raises:
        DataError: the form is not whole, or has no file or several.
    """
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_boundary()
    if not boundary:
        raise DataError("the form does not say its boundary: send it by a client that does")
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())
    if not parts or not parts.pop().startswith(b"--"):
        raise DataError("the form is not whole: send it again")
    files = []
    for part in parts:
        head, _, content = part.partition(b"\r\n\r\n")
        if BytesHeaderParser().parsebytes(head.lstrip() + b"\r\n").get_filename() is not None:
            files.append(content)
    if len(files) != 1:
        raise DataError(
            f"the form has {len(files)} files: send one picture, curl -F file=@photo.jpg"
        )
    return files[0]
