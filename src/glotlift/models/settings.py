"""What a model is loaded with, and how a server is asked: the settings that recipes, commands and functions share.

Their defaults stand here and nowhere else. Nothing heavy is imported: recipes and `--help` read them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from glotlift.schema import Frozen


class ModelSettings(Frozen):
    """Which model, and how it is loaded.

    Attributes:
        model: hub id, folder, `.gguf` file, `demo`, or `openai:URL#name` for a server.
        adapter: folder or hub id of a LoRA adapter, None for none.
        dtype: of the weights; `auto` is bfloat16 on a GPU that has it, else float32.
        device: `auto` (CUDA if there is one), or a device of torch.
    """

    model: str = "demo"
    adapter: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"


class ServerSettings(Frozen):
    """How a server is asked.

    Attributes:
        num_concurrent: requests under way at most.
        max_retries: further attempts after a request that failed for want of a connection, or with status 429 or 5xx.
        requests_per_second: at most so many, None for no limit.
        timeout: seconds to wait for an answer.
    """

    num_concurrent: Annotated[int, Field(ge=1)] = 8
    max_retries: Annotated[int, Field(ge=0)] = 5
    requests_per_second: Annotated[float | None, Field(gt=0)] = None
    timeout: Annotated[float, Field(gt=0)] = 60.0
