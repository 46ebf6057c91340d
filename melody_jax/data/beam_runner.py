"""Runs Apache Beam pipelines without its messages; an error that a worker reports to the user remains one line."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from melody_jax.errors import UserError


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Beam warns about optional Google packages that are not installed, when it is imported and when it runs."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


with _without_warnings():
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

ONE_PROCESS = ("runner=DirectRunner",)
ALL_CORES = (*ONE_PROCESS, "direct_running_mode=multi_processing", "direct_num_workers=0")


@contextlib.contextmanager
def running(
    options: tuple[str, ...],
    while_running: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Iterator[Any]:
    """Yields a pipeline that runs when the block ends, within the context `while_running()`.

    options: Beam's, without their dashes.
    Raises `UserError` as a worker does.
    """
    # Without the option, DirectRunner would download a runner written in Go and start it.
    arguments = ["allow_unsafe_triggers", "default_sdk_harness_log_level=ERROR", *options]
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # failures are raised with their traceback
    with _without_warnings():
        pipeline = beam.Pipeline(options=PipelineOptions([f"--{argument}" for argument in arguments]))
    yield pipeline
    try:
        with while_running(), _without_warnings():
            pipeline.run().wait_until_finish()
    except Exception as error:
        # A runner passes on a worker's error as text.
        if message := re.search(
            r"UserError: (.+?)(?: \[while running|\\n|\n|$)", f"{type(error).__name__}: {error}"
        ):
            raise UserError(message[1]) from error
        raise
