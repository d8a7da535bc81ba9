//! Stand-ins for AWS's services, in this process. Shared by the tests, the benchmarks and the local
//! example.
#![allow(dead_code, reason = "each of those uses a part of it")]

mod faults;
pub mod s3;
mod server;
pub mod sqs;
