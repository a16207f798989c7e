"""The Invoke tasks: each parses its flags, calls another package of mme, and prints.

Another repository gets them with a ``tasks.py`` of two lines:

    import mme.tasks
    from invoke import Collection; ns = Collection.from_module(mme.tasks)

The command ``mme`` has the same ones without such a file.
"""

from mme.tasks import machine as _machine
from mme.tasks.capacity import capacity as capacity
from mme.tasks.channel import channels as channels
from mme.tasks.channel import history as history
from mme.tasks.channel import promote as promote
from mme.tasks.channel import rollback as rollback
from mme.tasks.channel import split as split
from mme.tasks.cleanup import clean as clean
from mme.tasks.cleanup import delete as delete
from mme.tasks.cleanup import prune as prune
from mme.tasks.dashboard import dashboard as dashboard
from mme.tasks.machine import local as local
from mme.tasks.operate import doctor as doctor
from mme.tasks.operate import logs as logs
from mme.tasks.operate import status as status
from mme.tasks.package import inspect as inspect
from mme.tasks.package import package as package
from mme.tasks.package import schema as schema
from mme.tasks.predict import predict as predict
from mme.tasks.release import models as models
from mme.tasks.release import releases as releases
from mme.tasks.release import upload as upload
from mme.tasks.warm import warm as warm
from mme.tasks.watch import watch as watch

if _machine.benchmarks():  # the task exists only where there are benchmarks
    bench = _machine.bench
