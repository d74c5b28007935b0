"""Damage to files, as hypothesis strategies."""

import contextlib
import re
import signal

from hypothesis import strategies as st

# Accepted by some parser as a number, and useful for none as a size or coordinate.
NUMBERS = [b"0", b"-1", b"1e999", b"nan", b"inf", b"1.5", b"", b"1_0", b"0x10", b"null"]
NUMBERS += [b"true", b"99999999999", b"9" * 5000, b'"7"', b"[]", b"{}", "٣".encode()]


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Content that is cut, overwritten, repeated, or has strange numbers in it."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content))
        match draw(
            st.sampled_from(["cut", "drop", "write", "insert", "repeat", "number"])
        ):
            case "cut":
                content = content[:start]
            case "drop":
                content = content[:start] + content[end:]
            case "write":
                new = draw(st.binary(min_size=end - start, max_size=end - start))
                content = content[:start] + new + content[end:]
            case "insert":
                content = (
                    content[:start] + draw(st.binary(max_size=8)) + content[start:]
                )
            case "repeat":
                content = content[:end] + content[start:]
            case "number" if numbers:
                found = draw(st.sampled_from(numbers))
                new = draw(st.sampled_from(NUMBERS))
                content = content[: found.start()] + new + content[found.end() :]
    return content


@contextlib.contextmanager
def within(seconds: int):
    """Raises a TimeoutError where something takes longer, such as forever."""

    def stop(signum, frame):
        raise TimeoutError(f"It takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
