"""The walsender connection: slots, START_REPLICATION and feedback. Nothing is decoded here but the framing."""
