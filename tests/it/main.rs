//! The tests through the public doors, in one program: events in, objects and outcomes out. Those that need a
//! process of their own are programs beside this one.

#[path = "../support/mod.rs"]
mod support;

mod announcements;
mod bad_documents;
mod broken_templates;
mod cache_eviction;
mod census;
mod confidential;
mod delivered_twice;
mod direct_calls;
mod e_invoices;
mod event_shapes;
mod failed_queue;
mod fifo;
mod finished_pdfs;
mod handler;
mod hostile_data;
mod imports;
mod joined_pdfs;
mod killed_runs;
mod limits;
mod lying_runs;
mod malformed_input;
mod message_bodies;
mod metrics;
mod no_message_is_lost;
mod parts;
mod pool;
mod press_failures;
mod retries;
mod shipped_templates;
mod silent_connections;
mod snapshots;
mod storage_faults;
mod template_projects;
mod timings;
