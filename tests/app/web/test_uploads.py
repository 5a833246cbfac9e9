"""A multipart body that has gathered while others had their turn."""

from quart_trio import QuartTrio

from app.web.uploads import BUFFER_BYTES, receive, upload_file


async def test_a_body_may_come_all_at_once():
    """However much of it is there: it is taken in pieces that the decoder has room for."""
    contents = b"a,b\n" + b"1,2\n" * BUFFER_BYTES
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    app = QuartTrio(__name__)
    async with app.test_request_context(
        "/", method="POST", headers=headers, data=head + contents + b"\r\n--x--\r\n"
    ):
        with upload_file() as target:
            upload = await receive(target, len(contents))
            assert upload.path.read_bytes() == contents
    assert (upload.name, upload.size) == ("a.csv", len(contents))
