"""Where a pipeline keeps how far it came."""
