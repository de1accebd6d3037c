//! Who gets in, and who no longer does: keys, tokens, people, certificates, how often, and what is written down of it.

mod audit;
mod certificates;
mod issuer;
mod keys;
mod late;
mod limits;
mod roles;
mod scopes;
mod streams;
mod tokens;
mod users;
