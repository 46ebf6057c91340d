"""`python -m helpers.gcs_server PORT BUCKET`: gcp-storage-emulator with the generations of objects that it leaves out.

TensorStore reads them from a header of each download, and repeats them when it writes. The emulator does not compare
them: of two writers of an object, the later one wins.
"""

import contextlib
import sys
from typing import Any

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects


def download_with_generation(request: Any, response: Any, storage: Any, *args: Any, **kwargs: Any) -> None:
    """Answers as the emulator does, with one header more."""
    DOWNLOAD(request, response, storage, *args, **kwargs)
    with contextlib.suppress(NotFound):
        entry = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = entry["generation"]


DOWNLOAD = objects.download
objects.download = download_with_generation  # before the server makes its table of handlers

if __name__ == "__main__":
    from gcp_storage_emulator.server import create_server

    create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2]).run()
