"""The toolkit's names answer as the toolkit does: text for JSON and CSV, bytes for everything else."""

from __future__ import annotations

import numpy as np
import pytest

from mme.container.workers.standins.sagemaker_huggingface_inference_toolkit import decoder_encoder


@pytest.mark.parametrize("accept", ["application/json", "application/x-npy, application/json", "*/*"])
def test_an_answer_in_json_is_text_also_where_another_type_was_preferred(accept: str) -> None:
    assert decoder_encoder.encode({"a": 1}, accept) == '{"a":1}'


def test_an_answer_in_csv_is_text_and_an_array_is_bytes() -> None:
    assert decoder_encoder.encode([{"a": 1}], "text/csv") == "a\r\n1\r\n"
    answer = decoder_encoder.encode(np.ones(2, np.float32), "application/x-npy, application/json")
    assert isinstance(answer, bytes)
