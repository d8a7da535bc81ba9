//! What can become of bytes on their way: a proxy before the embedded S3 that loses, alters and
//! holds back what a PUT sends and what it is answered.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// What happens to the next PUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mischief {
    None,
    /// The connection is reset before anything arrives.
    Reset,
    /// Nothing arrives, and nothing is answered.
    Hang,
    /// One byte of the PDF arrives as another.
    Alter,
    /// The connection ends in the middle of the PDF.
    Truncate,
    /// All arrives, and the connection ends before the answer does.
    LoseAnswer,
}

pub struct Proxy {
    address: SocketAddr,
    mischief: Arc<Mutex<VecDeque<Mischief>>>,
    connections: Arc<Connections>,
    server: Option<(oneshot::Sender<()>, thread::JoinHandle<()>)>,
}

/// The connections that there have been, which are numbered from 0.
#[derive(Default)]
struct Connections {
    accepted: AtomicUsize,
    /// Those before this one are silent: they stay open, and nothing is relayed any more.
    first_not_silent: AtomicUsize,
}

impl Connections {
    fn is_silent(&self, number: usize) -> bool {
        number < self.first_not_silent.load(Ordering::SeqCst)
    }
}

impl Proxy {
    pub fn start(upstream: &str) -> Self {
        let upstream: SocketAddr = upstream.trim_start_matches("http://").parse().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let mischief = Arc::new(Mutex::new(VecDeque::new()));
        let (stop, stopped) = oneshot::channel();
        let connections = Arc::new(Connections::default());
        let shared = (mischief.clone(), connections.clone());
        let server = thread::spawn(move || serve(listener, upstream, &shared.0, &shared.1, stopped));
        Self { address, mischief, connections, server: Some((stop, server)) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Silences all connections that there are: they stay open, and nothing is answered on them. Says how many
    /// there have been.
    pub fn silence(&self) -> usize {
        let accepted = self.connections.accepted.load(Ordering::SeqCst);
        self.connections.first_not_silent.store(accepted, Ordering::SeqCst);
        accepted
    }

    pub fn next_puts(&self, mischief: impl IntoIterator<Item = Mischief>) {
        self.mischief.lock().unwrap().extend(mischief);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some((stop, server)) = self.server.take() {
            drop(stop);
            server.join().unwrap();
        }
    }
}

fn serve(
    listener: std::net::TcpListener,
    upstream: SocketAddr,
    mischief: &Arc<Mutex<VecDeque<Mischief>>>,
    numbers: &Arc<Connections>,
    mut stopped: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener).unwrap();
        let mut connections = JoinSet::new();
        loop {
            let (client, _) = tokio::select! {
                accepted = listener.accept() => accepted.unwrap(),
                _ = &mut stopped => break,
                Some(_) = connections.join_next() => continue,
            };
            let (mischief, numbers) = (mischief.clone(), numbers.clone());
            let number = numbers.accepted.fetch_add(1, Ordering::SeqCst);
            connections.spawn(async move {
                // Either end may go away at any time.
                let _ = relay(client, upstream, &mischief, &numbers, number).await;
            });
        }
    });
}

async fn relay(
    mut client: TcpStream,
    upstream: SocketAddr,
    mischief: &Mutex<VecDeque<Mischief>>,
    numbers: &Connections,
    number: usize,
) -> std::io::Result<()> {
    let mut server = TcpStream::connect(upstream).await?;
    let mut current = Mischief::None;
    let (mut up, mut down) = (vec![0; 256 * 1024], vec![0; 256 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let chunk = &mut up[..read?];
                if chunk.is_empty() {
                    return Ok(());
                }
                if numbers.is_silent(number) {
                    tokio::time::sleep(Duration::MAX).await;
                }
                if chunk.starts_with(b"PUT ") {
                    current = mischief.lock().unwrap().pop_front().unwrap_or(Mischief::None);
                }
                match current {
                    Mischief::Reset => return client.set_zero_linger(),
                    Mischief::Hang => tokio::time::sleep(Duration::MAX).await,
                    _ => {}
                }
                if let Some(start) = chunk.windows(5).position(|part| part == b"%PDF-") {
                    match current {
                        Mischief::Alter => chunk[start + 5] ^= 1,
                        Mischief::Truncate => return server.write_all(&chunk[..start + 100]).await,
                        _ => {}
                    }
                }
                server.write_all(chunk).await?;
            }
            read = server.read(&mut down) => {
                let chunk = &down[..read?];
                if chunk.is_empty() || current == Mischief::LoseAnswer {
                    return Ok(());
                }
                client.write_all(chunk).await?;
            }
        }
    }
}
