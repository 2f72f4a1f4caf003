"""The session protocol, without I/O: events in, commands out.

::

    flow         5-tuples and addresses
    translation  what one host does to a session's packets: the link to the datapath
    wire         the control messages and their bytes
    association  sealing and opening datagrams: authentic, and new
    events       everything a node is ever told
    commands     everything it asks for
    ports        which pair of ports names a subsession
    session      the state machines: one table, and why it ends well
    register     which sessions are here, and which were lately
    reasons      why sessions end, in words and in messages
    steps        what is done in each step, carrying out the table
    migration    changes of the chains of live sessions, and the way to the files about them
    node         one host's end of the protocol: the session of each event, and its step
"""
