//! Suites of whole models and of single operators, run through the command.

mod linked;
mod models;
mod node_suite;
mod support;
