"""How many of which instance an endpoint needs, what that costs, and what its users will see.

``needs`` and ``trace`` read the models and the traffic, ``instances`` the instance types and their prices; ``simulate``
plays the requests against a fleet, event by event; ``plan`` searches for the cheapest fleet that meets a goal;
``measure`` runs the real container to measure what a model needs. Plain values in and out; nothing here prints. Needs
the extra ``mme[capacity]``.
"""
