"""Files that tests of topologies read."""

import pytest


@pytest.fixture
def write(tmp_path):
    def to_file(text):
        path = tmp_path / "file"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return to_file
