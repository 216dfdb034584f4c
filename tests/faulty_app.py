"""The ClientApp of a simulation with the faults of ``tests.faults``: Ray's processes find it by the name of its function."""

from flwr.app import Context, Message

from fedml.clients.gate import local
from fedml.clients.work import client
from tests.faults import execute

client.execute = execute


def answer(message: Message, context: Context) -> Message:
    """The reply to any message."""
    return local.answer(message, context)


app = client.app_of(answer)
