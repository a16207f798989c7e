"""A model's name and inputs in, answers out: ``Endpoint("my-endpoint").model("bert").predict(["a text"])``.

``errors`` has the exceptions, ``hooks`` and ``telemetry`` observe requests, ``sagemaker`` is ``MultiDataModel`` for SDK
v3.
"""

from mme.client.batch import RequestTooLarge as RequestTooLarge
from mme.client.model import Endpoint as Endpoint
from mme.client.model import Model as Model
