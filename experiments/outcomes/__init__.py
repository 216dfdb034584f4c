"""The commands ``fedml survival``, ``fedml glm`` and ``fedml describe``."""
