//! Presses and runs: the processes in which documents are set.
//!
//! [`room`] is the function's end: it starts a press, feeds it and replaces it. [`parent`] is the
//! press, with [`child`] as its hold on a run; [`run`] is the copy of it that sets one
//! invocation's documents. Both are this same program in other roles. [`frames`] is what travels
//! between the three, [`sandbox`] what walls the last two in. Imports [`crate::typeset`] and
//! the leaves [`crate::os`], [`crate::job`] and [`crate::census`] only. Must never be true: that a press has a second thread, or sets a document.

mod child;
pub mod frames;
pub mod parent;
pub mod room;
mod run;
pub mod sandbox;
