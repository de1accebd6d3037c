//! The process: reads its arguments, does what they say, and ends with a documented code.

fn main() {}
