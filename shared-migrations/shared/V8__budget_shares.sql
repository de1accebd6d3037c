-- What each of several daemons may have of a server's budget. A daemon reads and writes these rows only while it holds
-- the lock of its server's row, so that nobody takes what another has taken meanwhile.

CREATE TABLE budget_shares (
    server text NOT NULL REFERENCES servers (name),
    -- The daemon's name in its configuration.
    instance text NOT NULL,
    -- One run of it; its sessions' names begin with the end of this.
    daemon uuid NOT NULL,
    -- A session on the server holds the lock that this stands for, for as long as the daemon is there.
    anchor uuid NOT NULL,
    connections_max integer NOT NULL CHECK (connections_max > 0),
    connections_reserved integer NOT NULL CHECK (connections_reserved >= 0),
    held integer NOT NULL CHECK (held >= 0),
    since timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (server, instance)
);
