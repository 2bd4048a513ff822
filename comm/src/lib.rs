//! Moves bytes between ranks: rendezvous, transports, collectives, all with deadlines.
