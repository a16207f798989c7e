"""The Invoke tasks: each parses its flags, calls one of the other rooms, and prints.

Another repository gets them with a ``tasks.py`` of two lines:

    import mme.tasks
    from invoke import Collection; ns = Collection.from_module(mme.tasks)
"""

from mme.tasks.command import (
    bench as bench,
)
from mme.tasks.command import (
    channels as channels,
)
from mme.tasks.command import (
    delete as delete,
)
from mme.tasks.command import (
    history as history,
)
from mme.tasks.command import (
    inspect as inspect,
)
from mme.tasks.command import (
    local as local,
)
from mme.tasks.command import (
    models as models,
)
from mme.tasks.command import (
    package as package,
)
from mme.tasks.command import (
    predict as predict,
)
from mme.tasks.command import (
    promote as promote,
)
from mme.tasks.command import (
    prune as prune,
)
from mme.tasks.command import (
    releases as releases,
)
from mme.tasks.command import (
    rollback as rollback,
)
from mme.tasks.command import (
    split as split,
)
from mme.tasks.command import (
    upload as upload,
)
