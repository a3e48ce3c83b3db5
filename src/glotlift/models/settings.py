"""Settings of models: which one, where it runs, and how a server is asked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from glotlift.fields import Count, Location, Natural
from glotlift.schema import Frozen


class ModelSettings(Frozen):
    """A model, and an adapter to compare with it.

    Attributes:
        model: hub id, folder, `.gguf` file, `demo`, or `openai:URL#name` for a server with a completions endpoint.
        adapter: a peft adapter; None for none.
        dtype: of the weights; `auto` is bfloat16 on a GPU that has it, else float32.
        device: `auto` (CUDA if there is one), or a device of torch.
    """

    model: Location = "demo"
    adapter: Location | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"


class ServerSettings(Frozen):
    """How a server is asked.

    Attributes:
        num_concurrent: requests under way at most.
        max_retries: further attempts after a request that failed for want of a connection, or with status 429 or 5xx.
        requests_per_second: at most so many; None for no limit.
        timeout: seconds to wait for an answer.
    """

    num_concurrent: Count = 8
    max_retries: Natural = 5
    requests_per_second: Annotated[float, Field(gt=0)] | None = None
    timeout: Annotated[float, Field(gt=0)] = 60.0
