"""How many of which instance an endpoint needs, what that costs, and what its users will see.

``needs`` and ``trace`` read what is asked for, ``instances`` what there is and at which price; ``simulate`` plays the
requests against a fleet, event by event; ``plan`` searches for the cheapest fleet that meets a goal; ``measure`` asks
the real container what a model needs. Plain values in and out; nothing here prints. Needs the extra ``mme[capacity]``.
"""
