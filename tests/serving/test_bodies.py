"""Bodies: paths that take larger ones than the others."""

import pytest

from nurseries.serving import BodyLimit, ServingLimits
from tests.serving.house import serving


@pytest.mark.parametrize("announced", [True, False])
async def test_a_path_may_take_larger_bodies_than_the_others(announced):
    """Its own limit holds for it, whether the size is announced or not; the usual one for every other path."""
    limits = ServingLimits(body_bytes=1000)
    async with serving(limits=limits, bodies={"/length": BodyLimit(5000, 30.0)}) as house:
        answers = []
        for target, size in (
            (b"/length", 5000),
            (b"/length?x=1", 5001),
            (b"/length/", 1001),
            (b"/other", 1001),
        ):
            async with house.connect() as peer:
                if announced:
                    body = b"Content-Length: %d\r\n\r\n" % size + b"x" * size
                else:
                    body = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size + b"x" * size + b"\r\n0\r\n\r\n"
                await peer.send_anyway(b"POST " + target + b" HTTP/1.1\r\nHost: a\r\n" + body)
                answers.append(await peer.status())
        assert answers[0] == 200
        assert set(answers[1:]) == {413}
