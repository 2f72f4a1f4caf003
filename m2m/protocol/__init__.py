"""The session protocol, without I/O: events in, commands out."""
