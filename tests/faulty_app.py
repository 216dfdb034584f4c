"""The ClientApp of a simulation with the faults of ``tests.faults``."""

from fedml.clients.gate.local import app
from fedml.clients.work import client
from tests.faults import execute

client.execute = execute

__all__ = ["app"]
