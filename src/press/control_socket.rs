//! The socket between function and press: it keeps packets apart (`SOCK_SEQPACKET`), and open files can be sent
//! with them (`SCM_RIGHTS`).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::protocol::{MAX_PACKET_BYTES, PressCommand, PressEvent, decode_packet, encode_packet};
use crate::os;

/// Makes the socket's two ends, both with `CLOEXEC`.
///
/// # Errors
/// When the process may open no more files.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// The function's end, which is asynchronous.
pub(super) struct FunctionEnd(AsyncFd<OwnedFd>);

impl FunctionEnd {
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        os::watch(socket).map(Self)
    }

    /// Sends a command, and copies of files with it.
    pub async fn send(&self, command: PressCommand, files: &[OwnedFd]) -> io::Result<()> {
        let packet = encode_packet(&command)?;
        self.0.async_io(Interest::WRITABLE, |socket| send(socket, &packet, files)).await
    }

    /// Waits for an event. `None` when the press has closed its end.
    pub async fn receive(&self) -> io::Result<Option<PressEvent>> {
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        let (length, _) = self.0.async_io(Interest::READABLE, |socket| os::receive_packet(socket, &mut buffer)).await?;
        if length == 0 { Ok(None) } else { decode_packet(&buffer[..length]).map(Some) }
    }
}

/// What the press has received.
pub(super) enum Received {
    Command(PressCommand, Vec<OwnedFd>),
    WouldBlock,
    /// The function is gone.
    Closed,
}

/// The press's end, which is its stdin.
pub(super) struct PressEnd<F = io::Stdin>(pub F);

impl<F: AsFd> PressEnd<F> {
    /// Receives a command if there is one. Never blocks.
    pub fn receive(&self) -> io::Result<Received> {
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        match os::receive_packet(&self.0, &mut buffer) {
            Ok((0, _)) => Ok(Received::Closed),
            // The function has closed its end without having read all events.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Received::Closed),
            Ok((length, files)) => Ok(Received::Command(decode_packet(&buffer[..length])?, files)),
            Err(error) if is_retriable(&error) => Ok(Received::WouldBlock),
            Err(error) => Err(error),
        }
    }

    /// Sends an event, and returns `false` if there is no room for it. Never blocks. If the function is gone the
    /// event is lost; the next [`PressEnd::receive`] returns [`Received::Closed`].
    pub fn try_send(&self, event: &PressEvent) -> io::Result<bool> {
        match send(&self.0, &encode_packet(event)?, &[]) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
            Err(error) if is_retriable(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends an event, and waits for room for it. Only for a press that has no runs yet.
    pub fn send(&self, event: &PressEvent) -> io::Result<()> {
        while !self.try_send(event)? {
            poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
        }
        Ok(())
    }
}

fn is_retriable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn send(socket: &impl AsFd, packet: &[u8], files: &[OwnedFd]) -> io::Result<()> {
    let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&files)];
    let ancillary = if files.is_empty() { &[][..] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(packet)], ancillary, flags, None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_command_brings_files_and_packets_stay_apart() {
        let (function, press) = pair().unwrap();
        let press = PressEnd(press);
        let (read_end, write_end) = nix::unistd::pipe().unwrap();
        for run in [7, 8] {
            let packet = encode_packet(&PressCommand::Fork { run, sample: Some(3) }).unwrap();
            send(&function, &packet, std::slice::from_ref(&write_end)).unwrap();
        }
        drop(write_end);
        for run in [7, 8] {
            let Received::Command(command, files) = press.receive().unwrap() else { panic!("there is a command") };
            assert_eq!(command, PressCommand::Fork { run, sample: Some(3) });
            File::from(files.into_iter().next().unwrap()).write_all(b"x").unwrap();
        }
        let mut written = String::new();
        File::from(read_end).read_to_string(&mut written).unwrap();
        assert_eq!(written, "xx", "and nobody holds the pipe any longer");
        assert!(matches!(press.receive().unwrap(), Received::WouldBlock));
        // With an event that it has not read.
        press.send(&PressEvent::Broken { reason: "any".to_owned() }).unwrap();
        drop(function);
        assert!(matches!(press.receive().unwrap(), Received::Closed));
        press.send(&PressEvent::Broken { reason: "any".to_owned() }).unwrap();
        assert!(matches!(press.receive().unwrap(), Received::Closed));
    }

    #[test]
    fn more_files_than_a_command_brings_are_an_error() {
        let (function, press) = pair().unwrap();
        let files: Vec<OwnedFd> = (0..5).map(|_| File::open("/dev/null").unwrap().into()).collect();
        send(&function, &encode_packet(&PressCommand::Kill { run: 1 }).unwrap(), &files).unwrap();
        assert!(PressEnd(press).receive().is_err());
    }
}
