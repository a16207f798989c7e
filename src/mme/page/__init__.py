"""A page to look at: an endpoint's state, its models, what it answers and what it logs, in the browser.

A small WSGI application with plain files. Its figures come through boto3, so it shows an endpoint on AWS and one of
the local AWS alike; what only the local AWS knows is handed in.
"""
