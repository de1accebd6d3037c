//! Operations: everything that can outlast a call, as persisted steps with do and undo, and whatever joins two rooms
//! of rank 5.

pub mod sample_data;
