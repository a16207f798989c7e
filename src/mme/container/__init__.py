"""A serving container that hosts many models on one machine, by SageMaker's multi-model contract.

Three kinds of process:

- the **front** (:mod:`~mme.container.front`) speaks HTTP, owns every piece of state, and never imports torch;
- the **parent** (:mod:`~mme.container.workers.parent`) has torch and transformers imported and forks on command;
- one **worker** per active model (:mod:`~mme.container.workers.worker`) runs the model's handler.

Nothing here imports the rest of :mod:`mme`: the container starts in an image that has none of the toolchain.
"""
