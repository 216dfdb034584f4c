"""The aggregator: strategies by name, the round loop, the ServerApp."""
