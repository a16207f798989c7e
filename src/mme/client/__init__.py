"""A model's name and inputs in, answers out: ``Endpoint("my-endpoint").model("bert").predict(["a text"])``.

``errors`` has what it raises, ``hooks`` and ``telemetry`` what watches it, ``sagemaker`` SDK v3's ``MultiDataModel``.
"""

from mme.client.batch import RequestTooLarge as RequestTooLarge
from mme.client.model import Endpoint as Endpoint
from mme.client.model import Model as Model
