//! Speaks to any PostgreSQL server.
