"""A reply that waits in Flower's SuperNode is seen, so that it is sent before another message comes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode.nodestate import NodeStateFactory

from fedml.flower.supernode import replies_wait


def message(name: str, answers: str) -> Any:
    """What the memory looks at of a message."""
    return SimpleNamespace(metadata=SimpleNamespace(message_id=name, reply_to_message_id=answers, run_id=1))


def test_a_reply_waits_until_it_is_taken() -> None:
    state = NodeStateFactory(objectstore_factory=ObjectStoreFactory()).state()
    state.store_message(message("asked", ""))
    assert not replies_wait(state), "a question is no reply"
    state.store_message(message("reply", "asked"))
    assert replies_wait(state)
    state.get_messages_legacy(is_reply=True)
    assert not replies_wait(state)
