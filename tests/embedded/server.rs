//! A server of HTTP on a free loopback port, with a thread of its own.

use std::error::Error;
use std::net::SocketAddr;
use std::thread;

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// A running server. Ends, with its thread, when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    running: Option<(oneshot::Sender<()>, thread::JoinHandle<()>)>,
}

impl Server {
    /// Starts a server, whose thread has this name.
    pub fn start<S, B>(name: &str, service: S) -> Self
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<Box<dyn Error + Send + Sync>>,
        S::Future: Send,
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let serving = move || runtime.block_on(serve(listener, service, stopped));
        let thread = thread::Builder::new().name(name.to_owned()).spawn(serving).unwrap();
        Self { address, running: Some((stop, thread)) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            thread.join().unwrap();
        }
    }
}

async fn serve<S, B>(listener: std::net::TcpListener, service: S, mut stopped: oneshot::Receiver<()>)
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    S::Future: Send,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let listener = TcpListener::from_std(listener).unwrap();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => break,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((socket, _)) = accepted else { continue };
        socket.set_nodelay(true).unwrap();
        let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), service.clone());
        connections.spawn(async {
            // A client that goes away is no fault of the server's.
            let _ = connection.await;
        });
    }
}
